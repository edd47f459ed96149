//! Why there is no snapshot, and what that means for the client.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;

use crate::protocol::outcome::{Outcome, Refusal};

/// Why there is no snapshot. Its text has no URL, header or body in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The API refused the client with 401.
    #[error("the API answered 401")]
    Unauthorized,
    /// The API refused the client with 403.
    #[error("the API answered 403")]
    Forbidden,
    /// The API knows no such resource: 404.
    #[error("the API answered 404")]
    NotFound,
    /// A try took longer than `timeout`.
    #[error("the API did not answer in time")]
    Timeout,
    /// No connection, or it was lost before the whole answer was there.
    #[error("the API could not be reached: {0}")]
    Unreachable(Arc<str>),
    /// A status that is neither success, nor a redirect, nor a refusal.
    #[error("the API answered {}", .0.as_u16())]
    Status(StatusCode),
    /// Redirects are not followed.
    #[error("the API answered with a redirect ({})", .0.as_u16())]
    Redirect(StatusCode),
    /// The body is longer than `max_bytes`.
    #[error("the body is too large")]
    TooLarge,
    /// The route's format needs JSON.
    #[error("the body is not JSON")]
    InvalidJson,
    /// Every format needs UTF-8.
    #[error("the body is not UTF-8")]
    NotText,
    /// Too many wait, or this one has waited for too long.
    #[error("too many callbacks are waiting")]
    QueueFull,
    /// The task of a shared callback has ended without a result.
    #[error("the callback was interrupted")]
    Interrupted,
}

impl SnapshotError {
    /// Every reason that a callback can fail for; refusals by the API are not among them.
    pub(super) const FAILURES: [&'static str; 9] = [
        "snapshot_timeout",
        "snapshot_unreachable",
        "snapshot_status",
        "snapshot_redirect",
        "snapshot_too_large",
        "snapshot_invalid_json",
        "snapshot_not_text",
        "snapshot_queue_full",
        "snapshot_interrupted",
    ];

    /// What the client is told if this closes it.
    pub fn refusal(&self) -> Refusal {
        let (outcome, reason) = (self.outcome(), self.reason());
        match self {
            Self::QueueFull => Refusal::retry(outcome, reason, soon()),
            Self::Unauthorized
            | Self::Forbidden
            | Self::NotFound
            | Self::Timeout
            | Self::Unreachable(_)
            | Self::Status(_)
            | Self::Redirect(_)
            | Self::TooLarge
            | Self::InvalidJson
            | Self::NotText
            | Self::Interrupted => Refusal::new(outcome, reason),
        }
    }

    /// Whether the API itself refused the client (401, 403, 404): final, whatever `on_error` says.
    pub fn is_refusal_by_api(&self) -> bool {
        matches!(self, Self::Unauthorized | Self::Forbidden | Self::NotFound)
    }

    /// Short, stable and machine-readable; a metric label too.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unauthorized => "snapshot_unauthorized",
            Self::Forbidden => "snapshot_forbidden",
            Self::NotFound => "snapshot_not_found",
            Self::Timeout => "snapshot_timeout",
            Self::Unreachable(_) => "snapshot_unreachable",
            Self::Status(_) => "snapshot_status",
            Self::Redirect(_) => "snapshot_redirect",
            Self::TooLarge => "snapshot_too_large",
            Self::InvalidJson => "snapshot_invalid_json",
            Self::NotText => "snapshot_not_text",
            Self::QueueFull => "snapshot_queue_full",
            Self::Interrupted => "snapshot_interrupted",
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Unauthorized => Outcome::Unauthenticated,
            Self::Forbidden => Outcome::Forbidden,
            Self::NotFound => Outcome::NotFound,
            Self::QueueFull => Outcome::Overloaded,
            Self::Timeout
            | Self::Unreachable(_)
            | Self::Status(_)
            | Self::Redirect(_)
            | Self::TooLarge
            | Self::InvalidJson
            | Self::NotText
            | Self::Interrupted => Outcome::CallbackFailed,
        }
    }
}

/// A few seconds, spread: those who are sent away together must not come back together.
fn soon() -> Duration {
    Duration::from_millis(rand::random_range(2_000..6_000))
}
