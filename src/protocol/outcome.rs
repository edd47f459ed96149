//! How a request or a session can end: the only place where code says status and close code.

use std::time::Duration;

use hyper::StatusCode;

/// The kinds of ending, each with its HTTP status and WebSocket close code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The request is wrong.
    BadRequest,
    /// The token is missing, invalid or expired.
    Unauthenticated,
    /// The token is fine, and not enough.
    Forbidden,
    /// There is no such route or resource.
    NotFound,
    /// The client does not take what is sent.
    TooSlow,
    /// Continuity is lost and can't be restored.
    ContinuityLost,
    /// Too many connections or messages.
    TooMany,
    /// A message of the client is too big.
    MessageTooBig,
    /// The relay can't serve this now.
    Overloaded,
    /// The snapshot callback failed.
    CallbackFailed,
    /// The relay's or the stream's fault.
    Internal,
    /// The relay ends the connection to have it made anew.
    Restart,
}

impl Outcome {
    /// The HTTP status before the upgrade. Endings that only a session can have are 500 here.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::MessageTooBig => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Overloaded | Self::Restart => StatusCode::SERVICE_UNAVAILABLE,
            Self::CallbackFailed => StatusCode::BAD_GATEWAY,
            Self::TooSlow | Self::ContinuityLost | Self::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// The close code after the upgrade: those of RFC 6455 section 7.4.1 where one fits, else
    /// of the private range, 4000 above the HTTP status.
    pub fn close_code(self) -> u16 {
        match self {
            Self::BadRequest => 4400,
            Self::Unauthenticated => 4401,
            Self::Forbidden => 4403,
            Self::NotFound => 4404,
            Self::TooSlow => 4408,
            Self::ContinuityLost => 4409,
            Self::TooMany => 4429,
            Self::MessageTooBig => 1009,
            Self::Overloaded => 1013,
            Self::CallbackFailed | Self::Internal => 1011,
            Self::Restart => 1012,
        }
    }
}

/// An ending with its reason: what a refused request or a closed session is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of ending.
    pub outcome: Outcome,
    /// Short, stable and machine-readable, such as `token_expired`; a metric label too.
    pub reason: &'static str,
    /// When coming back makes sense, where that is known.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal that says nothing about coming back.
    pub const fn new(outcome: Outcome, reason: &'static str) -> Self {
        Self {
            outcome,
            reason,
            retry_after: None,
        }
    }

    /// A refusal with a time to come back.
    pub const fn retry(outcome: Outcome, reason: &'static str, after: Duration) -> Self {
        Self {
            outcome,
            reason,
            retry_after: Some(after),
        }
    }
}
