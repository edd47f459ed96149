//! `[keepalive]` and `[drain]`.

use std::time::Duration;

use super::source::Source;
use super::value::{duration, one_of, positive_duration};
use super::{ConfigError, written};

/// `[keepalive]`.
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    /// How often a ping is sent.
    pub ping: Duration,
    /// No byte taken or received for this long: the connection is dead. Longer than `ping`.
    pub timeout: Duration,
    /// Then a session is closed with a goaway, give or take a fifth; `None`: never.
    pub max_age: Option<Duration>,
}

/// `[drain]`.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// `/readyz` fails already, and connections are still accepted.
    pub delay: Duration,
    /// Sessions end at random times in it.
    pub window: Duration,
    /// After the window; then whatever is left is cut.
    pub grace: Duration,
    /// How a session ends.
    pub mode: DrainMode,
}

/// How a session ends in a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainMode {
    /// With a goaway and a close frame.
    Close,
    /// What is written is flushed, then FIN without a close frame.
    Abort,
}

impl written::Keepalive {
    pub(super) fn check(&self, source: &Source<'_>) -> Result<Keepalive, ConfigError> {
        let max_age = source.parse_or(self.max_age.as_ref(), "0s", duration)?;
        let keepalive = Keepalive {
            ping: source.parse_or(self.ping.as_ref(), "25s", positive_duration)?,
            timeout: source.parse_or(self.timeout.as_ref(), "60s", positive_duration)?,
            max_age: (!max_age.is_zero()).then_some(max_age),
        };
        if let Some(written) = self.timeout.as_ref().or(self.ping.as_ref())
            && keepalive.timeout <= keepalive.ping
        {
            return Err(source.error(
                &written.span(),
                format!(
                    "`timeout` ({:?}) is not longer than `ping` ({:?}); expected time for an answer",
                    keepalive.timeout, keepalive.ping
                ),
            ));
        }
        Ok(keepalive)
    }
}

impl written::Drain {
    pub(super) fn check(&self, source: &Source<'_>) -> Result<Drain, ConfigError> {
        let modes = [("close", DrainMode::Close), ("abort", DrainMode::Abort)];
        Ok(Drain {
            delay: source.parse_or(self.delay.as_ref(), "3s", duration)?,
            window: source.parse_or(self.window.as_ref(), "12s", duration)?,
            grace: source.parse_or(self.grace.as_ref(), "5s", duration)?,
            mode: source.parse_or(self.mode.as_ref(), "close", one_of(&modes))?,
        })
    }
}
