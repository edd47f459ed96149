//! Log lines on stderr: text for people or one JSON object a line.

use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterFn, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// `[log]`.
#[derive(Debug, Clone)]
pub struct Log {
    /// Text for people, or JSON.
    pub format: LogFormat,
    /// A level, or directives such as `info,relay::hub=debug`.
    pub level: String,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Below `info` other crates print what passes through them: payloads, tokens, passwords.
const OWN: &str = env!("CARGO_CRATE_NAME");

/// The log can't be written as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `[log] level` is neither a level nor a list of directives.
    #[error(
        "log.level = {level:?}: expected error, warn, info, debug, trace, off or a list such as \"info,relay=debug\": {source}"
    )]
    Level {
        /// What the config says.
        level: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Something else in this process writes the log already.
    #[error("the log is taken: {0}")]
    Taken(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends the log of this process to stderr, from now on.
pub fn start(log: &Log) -> Result<(), TelemetryError> {
    let lines = match log.format {
        LogFormat::Text => fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter(&log.level)?)
        .with(FilterFn::new(is_harmless))
        .with(lines)
        .try_init()?;
    Ok(())
}

/// What `[log] level` means: a level, or a list of directives as `tracing-subscriber` has them.
pub fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(level)
        .map_err(|source| TelemetryError::Level {
            level: level.to_owned(),
            source,
        })
}

/// Holds whatever the configured level is: no level brings payloads or tokens into the log.
fn is_harmless(line: &Metadata<'_>) -> bool {
    let crate_name = line.target().split("::").next();
    *line.level() <= Level::INFO || crate_name == Some(OWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_accepted() {
        for level in [
            "info",
            "off",
            "INFO",
            "warn,relay=debug",
            "relay::hub=trace",
        ] {
            assert!(filter(level).is_ok(), "{level}");
        }
    }

    #[test]
    fn a_bad_level_is_named() {
        let error = filter("relay=loud").unwrap_err();
        assert!(error.to_string().contains("relay=loud"), "{error}");
    }
}
