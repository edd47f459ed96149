//! How a connection ended, and what a client does then.

use std::fmt;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::RETRY_AFTER;
use serde::Deserialize;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// RFC 6455: a close frame without a code, and an end without a close frame.
const NO_CODE: u16 = 1005;
const ABNORMAL: u16 = 1006;
const TOO_BIG: u16 = 1009;
const TOO_SLOW: u16 = 4408;

/// How a connection, or the attempt at one, ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// After the upgrade.
    Closed {
        code: u16,
        reason: String,
        retry_after: Option<Duration>,
    },
    /// Before the upgrade, with a status.
    Refused {
        status: StatusCode,
        reason: String,
        retry_after: Option<Duration>,
    },
    /// There was no answer.
    Unreachable(String),
    /// What answered is no relay.
    Unusable(String),
}

/// What a client does after an ending.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Coming back would end the same way.
    Stop,
    /// Come back: after this time, or when the client likes.
    Again(Option<Duration>),
}

/// The body of a refusal.
#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Ending {
    /// A connection that ended without a close frame.
    pub(super) fn lost(reason: &str) -> Self {
        Self::Closed {
            code: ABNORMAL,
            reason: reason.to_owned(),
            retry_after: None,
        }
    }

    /// A connection on which nothing was heard any more.
    pub(super) fn silent() -> Self {
        Self::lost("nothing was heard for too long")
    }

    /// A connection that was closed; `retry_after` is what a goaway frame said before.
    pub(super) fn of_close(frame: Option<&CloseFrame>, retry_after: Option<Duration>) -> Self {
        Self::Closed {
            code: frame.map_or(NO_CODE, |frame| frame.code.into()),
            reason: frame.map_or_else(String::new, |frame| frame.reason.to_string()),
            retry_after,
        }
    }

    /// An attempt that failed.
    pub(super) fn of_connect(error: Error) -> Self {
        match error {
            Error::Http(response) => {
                let headers = response.headers();
                let seconds = headers
                    .get(RETRY_AFTER)
                    .and_then(|value| value.to_str().ok());
                let seconds = seconds.and_then(|value| value.parse().ok());
                let body = response.body().as_deref().unwrap_or_default();
                let refusal = serde_json::from_slice(body).map(|Refusal { error }| error);
                Self::Refused {
                    status: response.status(),
                    reason: refusal.unwrap_or_default(),
                    retry_after: seconds.map(Duration::from_secs),
                }
            }
            // The last is a connection that was dropped within the handshake.
            Error::Io(_)
            | Error::Tls(_)
            | Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Protocol(ProtocolError::HandshakeIncomplete) => {
                Self::Unreachable(error.to_string())
            }
            Error::Protocol(_)
            | Error::Capacity(_)
            | Error::WriteBufferFull(_)
            | Error::Utf8(_)
            | Error::AttackAttempt
            | Error::Url(_)
            | Error::HttpFormat(_) => Self::Unusable(error.to_string()),
        }
    }

    /// The rules of the protocol for coming back.
    pub(super) fn next(&self) -> Next {
        match self {
            Self::Closed { code: TOO_SLOW, .. } => Next::Again(None),
            Self::Closed {
                code: TOO_BIG | 4400..=4499,
                ..
            }
            | Self::Unusable(_) => Next::Stop,
            Self::Closed { retry_after, .. } => Next::Again(*retry_after),
            Self::Refused {
                status,
                retry_after,
                ..
            } if status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS => {
                Next::Again(*retry_after)
            }
            Self::Refused { .. } => Next::Stop,
            Self::Unreachable(_) => Next::Again(None),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { code, reason, .. } => write!(f, "closed with {code} {reason}"),
            Self::Refused { status, reason, .. } => {
                write!(f, "refused with {} {reason}", status.as_u16())
            }
            Self::Unreachable(why) => write!(f, "no connection: {why}"),
            Self::Unusable(why) => write!(f, "not a relay: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Option<Duration> = Some(Duration::from_millis(700));

    fn after_close(code: u16) -> Next {
        let frame = CloseFrame {
            code: code.into(),
            reason: "x".into(),
        };
        Ending::of_close(Some(&frame), SOON).next()
    }

    fn after_refusal(status: u16) -> Next {
        let refused = Ending::Refused {
            status: StatusCode::from_u16(status).unwrap(),
            reason: String::new(),
            retry_after: SOON,
        };
        refused.next()
    }

    #[test]
    fn refusals_of_the_protocol_are_final() {
        for code in [4400, 4401, 4403, 4404, 4409, 4429, 1009] {
            assert_eq!(after_close(code), Next::Stop, "{code}");
        }
        for status in [200, 302, 400, 401, 403, 404, 413, 426] {
            assert_eq!(after_refusal(status), Next::Stop, "{status}");
        }
    }

    #[test]
    fn everything_else_is_worth_another_try() {
        for code in [1000, 1001, 1005, 1006, 1011, 1012, 1013] {
            assert_eq!(after_close(code), Next::Again(SOON), "{code}");
        }
        assert_eq!(after_close(4408), Next::Again(None));
        for status in [429, 500, 502, 503, 504] {
            assert_eq!(after_refusal(status), Next::Again(SOON), "{status}");
        }
        assert_eq!(Ending::silent().next(), Next::Again(None));
    }
}
