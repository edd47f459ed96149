//! `relay check`: is the configuration valid, and with --live, is what it points to there?

mod live;

use std::io;
use std::path::Path;

use relay::config::Config;
use relay::telemetry;

use super::{Failure, block_on, say};

#[derive(clap::Args)]
pub(super) struct Check {
    /// Ask Redis, JWKS and the callbacks' hosts too.
    #[arg(long)]
    live: bool,
    /// A stream whose retention to show; may be given several times.
    #[arg(long, value_name = "KEY", requires = "live")]
    stream: Vec<String>,
}

impl Check {
    pub(super) fn run(self, file: &Path) -> Result<(), Failure> {
        let config = Config::load(file)?;
        telemetry::filter(&config.log.level)?;
        say(&format!(
            "{} is valid: {}",
            file.display(),
            summary(&config)
        ))?;
        if !self.live {
            return Ok(());
        }
        let mut report = Report::default();
        block_on(async {
            live::check(&config, &self.stream, &mut report).await?;
            Ok(())
        })?;
        match report.failures {
            0 => Ok(()),
            failures => Err(anyhow::anyhow!("{failures} of these must be fixed").into()),
        }
    }
}

fn summary(config: &Config) -> String {
    let names: Vec<_> = config
        .routes
        .iter()
        .map(|route| route.name.as_str())
        .collect();
    let auth = match &config.auth.jwt {
        Some(jwt) => format!(
            "tokens are verified with {}",
            count(jwt.keys.len() as u64, "key", "keys")
        ),
        None => "every route is public".to_owned(),
    };
    format!(
        "{} ({}), {auth}",
        count(names.len() as u64, "route", "routes"),
        names.join(", ")
    )
}

fn count(number: u64, one: &str, many: &str) -> String {
    let what = if number == 1 { one } else { many };
    format!("{number} {what}")
}

/// Findings, printed as they come.
#[derive(Default)]
struct Report {
    failures: u64,
}

impl Report {
    fn ok(&mut self, finding: &str) -> io::Result<()> {
        say(&format!("OK    {finding}"))
    }

    /// Works, but not as well as it could, or not for ever.
    fn warn(&mut self, finding: &str) -> io::Result<()> {
        say(&format!("WARN  {finding}"))
    }

    /// Does not work.
    fn fail(&mut self, finding: &str) -> io::Result<()> {
        self.failures += 1;
        say(&format!("FAIL  {finding}"))
    }

    /// Belongs to the finding before it.
    fn note(&mut self, text: &str) -> io::Result<()> {
        say(&format!("      {text}"))
    }
}
