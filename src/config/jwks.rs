//! `jwks_url` of `[[auth.key]]`, and what belongs to it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use jsonwebtoken::{Algorithm, AlgorithmFamily};

use super::ConfigError;
use super::source::Source;
use super::value::{Wrong, duration};
use super::written::{self, Text};
use crate::outbound::certificates;

/// A set of public keys that its issuer publishes (RFC 7517 section 5).
#[derive(Clone)]
pub struct Jwks {
    /// https, or http to this machine; may hold a secret in its query.
    pub url: Uri,
    /// How often it is fetched.
    pub refresh: Duration,
    /// The least time between two fetches for the sake of unknown keys.
    pub cooldown: Duration,
    /// PEM of certificate authorities that are trusted beside the system's. Read for each fetch.
    pub ca_file: Option<PathBuf>,
}

impl Jwks {
    /// Host and port: all of the URL that may be shown.
    pub fn authority(&self) -> &str {
        self.url
            .authority()
            .map_or("", |authority| authority.as_str())
    }
}

impl std::fmt::Debug for Jwks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwks")
            .field("authority", &self.authority())
            .field("refresh", &self.refresh)
            .field("cooldown", &self.cooldown)
            .finish_non_exhaustive()
    }
}

/// Others may be asked for as often as nobody would want to.
const SHORTEST: Duration = Duration::from_secs(1);

impl written::Key {
    pub(super) fn jwks(
        &self,
        url: &Text,
        algorithms: &[Algorithm],
        source: &Source<'_>,
    ) -> Result<Jwks, ConfigError> {
        let is_hmac = |algorithm: &&Algorithm| algorithm.family() == AlgorithmFamily::Hmac;
        if let Some(hmac) = algorithms.iter().find(is_hmac) {
            let what = format!(
                "what is published never verifies {hmac:?}; expected `secret`, or no HS algorithm"
            );
            return Err(source.error(&self.algorithms.span(), what));
        }
        let parsed = source.parse_hidden(url, jwks_url)?;
        Ok(Jwks {
            ca_file: self.ca_file(&parsed, source)?,
            url: parsed,
            refresh: source.parse_or(self.refresh.as_ref(), "10m", from_a_second)?,
            cooldown: source.parse_or(self.cooldown.as_ref(), "30s", from_a_second)?,
        })
    }

    fn ca_file(&self, url: &Uri, source: &Source<'_>) -> Result<Option<PathBuf>, ConfigError> {
        let Some(written) = &self.ca_file else {
            return Ok(None);
        };
        if url.scheme_str() != Some("https") {
            let what = "has no meaning over http; expected an https url, or no `ca_file`";
            return Err(source.error(&written.span(), what));
        }
        let usable = |text: &str| {
            let file = PathBuf::from(text);
            let wrong =
                |wrong| Wrong::new(format!("{wrong}; expected a file of certificates in PEM"));
            certificates(&file).map(|_| file).map_err(wrong)
        };
        source.parse(written, usable).map(Some)
    }

    /// Without a `jwks_url`, whoever writes how it is fetched is mistaken.
    pub(super) fn refuse_what_is_of_jwks(&self, source: &Source<'_>) -> Result<(), ConfigError> {
        let of_jwks = [&self.refresh, &self.cooldown, &self.ca_file];
        match of_jwks.into_iter().flatten().next() {
            Some(written) => Err(source.error(
                &written.span(),
                "has a meaning only beside `jwks_url`; expected that, or nothing here",
            )),
            None => Ok(()),
        }
    }
}

fn jwks_url(text: &str) -> Result<Uri, Wrong> {
    let wrong = |what: &str| {
        Wrong::new(format!(
            r#"{what}; expected a url such as "https://id.example.com/jwks.json""#
        ))
    };
    let url: Uri = text.parse().map_err(|_| wrong("is not a url"))?;
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err(wrong("is not a whole url"));
    };
    if authority.as_str().contains('@') {
        return Err(wrong("holds a user, whose password would not be sent"));
    }
    match scheme {
        "https" => Ok(url),
        // Whoever could change the answer on its way could sign any token.
        "http" if is_loopback(authority.host()) => Ok(url),
        "http" => Err(wrong(
            "would let anybody on the way put in keys: http is for this machine alone",
        )),
        _ => Err(wrong("is neither https nor http")),
    }
}

fn is_loopback(host: &str) -> bool {
    let ip = host.trim_start_matches('[').trim_end_matches(']');
    let ip = ip.parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
}

fn from_a_second(text: &str) -> Result<Duration, Wrong> {
    let duration = duration(text)?;
    if duration < SHORTEST {
        return Err(Wrong::new(r#"is too short; expected at least "1s""#));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_alone() {
        for (url, is_allowed) in [
            ("https://id.example.com/jwks.json", true),
            ("https://10.0.0.1:8443/jwks?key=x", true),
            ("http://127.0.0.1:8000/jwks", true),
            ("http://127.8.8.8/jwks", true),
            ("http://[::1]:8000/jwks", true),
            ("http://localhost/jwks", true),
            ("http://LocalHost:80/jwks", true),
            ("http://id.example.com/jwks", false),
            ("http://auth.default.svc/jwks", false),
            ("http://127.0.0.1.example.com/jwks", false),
            ("http://localhost.example.com/jwks", false),
            ("http://10.0.0.1/jwks", false),
            ("http://[::2]/jwks", false),
            ("https://user:password@id.example.com/jwks", false),
            ("ftp://id.example.com/jwks", false),
            ("file:///etc/jwks.json", false),
            ("id.example.com/jwks", false),
            ("/jwks", false),
            ("", false),
        ] {
            assert_eq!(jwks_url(url).is_ok(), is_allowed, "{url}");
        }
    }
}
