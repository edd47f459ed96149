//! `relay explain`: why a request would be accepted or refused.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::{HeaderMap, Request, Uri};
use relay::auth::Authority;
use relay::config::Config;
use relay::metrics::Metrics;
use relay::router::explain::explain;

use super::{Failure, say};

/// Larger tokens are refused anyway.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

#[derive(clap::Args)]
pub(super) struct Explain {
    /// Where a client would connect: an address, or its path and query.
    #[arg(value_name = "URL", value_parser = url)]
    url: Uri,
    /// The token, wherever the client would put it. Others see it in the list of processes.
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,
    /// The file that holds it; - is standard input.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A header of the request. May be given several times.
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
}

impl Explain {
    pub(super) async fn run(self, file: &Path) -> Result<(), Failure> {
        let config = Config::load(file)?;
        let token = self.token()?;
        let authority = Authority::new(&config, &Metrics::new());
        for fetched in authority.fetch_jwks().await {
            let place = format!(
                "[[auth.key]] {} from {}",
                fetched.index + 1,
                fetched.authority
            );
            match fetched.keys {
                Ok((usable, _)) => line(true, "jwks", &format!("{place}: {usable} usable"))?,
                Err(error) => line(false, "jwks", &format!("{place}: {error}"))?,
            }
        }
        let (parts, ()) = self.request()?.into_parts();
        let explanation = explain(&config, &authority, &parts, token.as_deref()).await;
        for finding in &explanation.findings {
            line(finding.is_good, finding.what, &finding.said)?;
        }
        let Some(refusal) = explanation.refusal else {
            return Ok(say("accepted, if Redis and the API agree")?);
        };
        let outcome = refusal.outcome;
        say(&format!(
            "refused: {} (status {}, close code {})",
            refusal.reason,
            outcome.status().as_u16(),
            outcome.close_code()
        ))?;
        Err(Failure::Told)
    }

    fn token(&self) -> anyhow::Result<Option<String>> {
        let Some(file) = &self.token_file else {
            return Ok(self.token.clone());
        };
        let mut text = String::new();
        let read = match file.to_str() {
            Some("-") => std::io::stdin()
                .take(MAX_TOKEN_BYTES)
                .read_to_string(&mut text),
            _ => std::fs::File::open(file)
                .and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text)),
        };
        read.with_context(|| format!("the token can't be read from {}", file.display()))?;
        Ok(Some(text.trim().to_owned()))
    }

    fn request(&self) -> anyhow::Result<Request<()>> {
        let mut headers = HeaderMap::new();
        if let Some(host) = self.url.authority() {
            headers.insert(HOST, HeaderValue::from_str(host.as_str())?);
        }
        for (name, value) in &self.header {
            headers.append(name, value.clone());
        }
        let target = self.url.path_and_query();
        let target = target.ok_or_else(|| anyhow!("the address has no path"))?;
        let mut request = Request::new(());
        *request.uri_mut() = target.as_str().parse()?;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

fn line(is_good: bool, what: &str, said: &str) -> std::io::Result<()> {
    let mark = if is_good { "OK  " } else { "FAIL" };
    say(&format!("{mark}  {what}: {said}"))
}

fn url(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|error| format!("{error}"))?;
    match url.path().starts_with('/') {
        true => Ok(url),
        false => Err("expected an address such as ws://host/path, or a path".to_owned()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    let name = name.trim().parse().map_err(|error| format!("{error}"))?;
    let value = value.trim().parse().map_err(|error| format!("{error}"))?;
    Ok((name, value))
}
