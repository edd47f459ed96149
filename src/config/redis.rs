//! `[redis]`.

use std::time::Duration;

use redis::IntoConnectionInfo;

use super::source::Source;
use super::value::{Wrong, any, duration, not_empty, one_of, positive_duration, size_from};
use super::written::Text;
use super::{ConfigError, written};
use crate::secret::Secret;

/// `[redis]`.
#[derive(Debug, Clone)]
pub struct Redis {
    /// `redis://`, `valkey://` or `unix://`; secret because a password may be in it.
    pub url: Secret,
    /// Empty: the url's.
    pub username: String,
    /// Empty: the url's.
    pub password: Secret,
    /// What `CLIENT LIST` shows.
    pub client_name: String,
    /// Connections for backlog reads and stream info; at least 3, as two are kept for attaching.
    pub pool_size: usize,
    /// How changes are noticed.
    pub wake: Wake,
    /// Within this each watched key is read anyway.
    pub sweep: Duration,
    /// The same where reading on time is the only means.
    pub poll: Duration,
    /// Per reply.
    pub command_timeout: Duration,
    /// Newest entries kept per feed.
    pub ring_entries: usize,
    /// Bytes of entries kept per feed.
    pub ring_bytes: usize,
    /// Bytes of all rings together; at least `ring_bytes`.
    pub ring_total: usize,
    /// Bytes of all backlog pages in memory.
    pub backlog_total: usize,
    /// How long entries of a busy feed gather before they are read; zero: not at all.
    pub hold: Duration,
    /// How long a feed that nobody watches is kept.
    pub linger: Duration,
    /// How long Redis may be away before `/readyz` says so.
    pub grace: Duration,
}

/// How changes of streams are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The first that Redis allows.
    Auto,
    /// Invalidation pushes of `CLIENT TRACKING`.
    Tracking,
    /// Reading on time alone.
    Poll,
}

const URL: &str = "${REDIS_URL:-redis://127.0.0.1:6379/0}";

impl written::Redis {
    pub(super) fn check(&self, source: &Source<'_>) -> Result<Redis, ConfigError> {
        let wakes = [
            ("auto", Wake::Auto),
            ("tracking", Wake::Tracking),
            ("poll", Wake::Poll),
        ];
        let redis = Redis {
            url: url(self.url.as_ref(), source)?,
            username: source.parse_or(self.username.as_ref(), "", any)?,
            password: match &self.password {
                Some(password) => Secret::new(source.text(password)?),
                None => Secret::default(),
            },
            client_name: source.parse_or(self.client_name.as_ref(), "relay", client_name)?,
            // Two are kept for attaching.
            pool_size: source.number_or(self.pool_size.as_ref(), 8, 3..=1024)?,
            wake: source.parse_or(self.wake.as_ref(), "auto", one_of(&wakes))?,
            sweep: source.parse_or(self.sweep.as_ref(), "30s", positive_duration)?,
            poll: source.parse_or(self.poll.as_ref(), "25ms", positive_duration)?,
            command_timeout: source.parse_or(
                self.command_timeout.as_ref(),
                "2s",
                positive_duration,
            )?,
            ring_entries: source.number_or(self.ring_entries.as_ref(), 256, 1..=1_000_000)?,
            ring_bytes: source.parse_or(self.ring_bytes.as_ref(), "1MiB", size_from("1KiB"))?,
            ring_total: source.parse_or(self.ring_total.as_ref(), "256MiB", size_from("1KiB"))?,
            backlog_total: source.parse_or(
                self.backlog_total.as_ref(),
                "64MiB",
                // One page.
                size_from("256KiB"),
            )?,
            hold: source.parse_or(self.hold.as_ref(), "2ms", duration)?,
            linger: source.parse_or(self.linger.as_ref(), "30s", duration)?,
            grace: source.parse_or(self.grace.as_ref(), "10s", duration)?,
        };
        if let Some(written) = self.ring_total.as_ref().or(self.ring_bytes.as_ref())
            && redis.ring_total < redis.ring_bytes
        {
            return Err(source.error(
                &written.span(),
                "`ring_total` is smaller than `ring_bytes`; expected room for at least one ring",
            ));
        }
        Ok(redis)
    }
}

/// The url is never shown: a password may be in it.
fn url(written: Option<&Text>, source: &Source<'_>) -> Result<Secret, ConfigError> {
    let at = written.map_or(0..0, Text::span);
    let url = source.text_at(&at, written.map_or(URL, |written| written.get_ref()))?;
    let wrong = |what: &str| {
        let what = format!("{what}; expected redis://, valkey:// or unix://");
        Err(source.error(&at, what))
    };
    match url.split_once("://").map(|(scheme, _)| scheme) {
        Some("rediss" | "valkeys") => wrong("TLS is not supported yet"),
        Some("redis" | "valkey" | "unix") if url.as_str().into_connection_info().is_ok() => {
            Ok(Secret::new(url))
        }
        _ => wrong("is not the url of a Redis"),
    }
}

/// Redis takes neither spaces nor controls in it.
fn client_name(text: &str) -> Result<String, Wrong> {
    if text.bytes().all(|b| b.is_ascii_graphic()) {
        return not_empty(text);
    }
    Err(Wrong::new(
        "can't be a name for Redis; expected visible ASCII without spaces",
    ))
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn without_a_url_the_environment_may_name_one() {
        let text =
            "[auth]\nmode = \"none\"\n[[route]]\nname = \"a\"\npath = \"/a\"\nstreams = [\"a\"]\n";
        let url = |environment: &dyn Fn(&str) -> Option<String>| {
            let config = Config::parse(text, "relay.toml", environment).unwrap();
            config.redis.url.expose().to_owned()
        };
        let named = |name: &str| (name == "REDIS_URL").then(|| "redis://there:1/2".to_owned());
        assert_eq!(url(&|_| None), "redis://127.0.0.1:6379/0");
        assert_eq!(url(&named), "redis://there:1/2");
    }
}
