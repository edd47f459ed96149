//! A fresh token on a live session.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::Session;
use crate::protocol::outcome::Refusal;
use crate::secret::Secret;
use crate::snapshot::Callback;

/// Verifies a fresh token for the same subject and the same streams. What the answer refuses
/// ends the session.
pub type Renew = dyn Fn(Secret) -> BoxFuture<'static, Result<Renewed, Refusal>> + Send + Sync;

/// What a fresh token changes.
pub struct Renewed {
    /// When the session ends now; `None`: it does not expire.
    pub expires_at: Option<Instant>,
    /// The snapshot callback, if the route has one: with the fresh token and its claims.
    pub callback: Option<Arc<Callback>>,
}

impl Session {
    /// The newest token counts, if several come at once.
    pub(super) fn renew(&mut self, token: Secret) {
        if let Some(renew) = &self.renew {
            self.renewing = Some(renew(token));
        }
    }

    pub(super) fn poll_renewing(&mut self, cx: &mut Context<'_>) {
        let Some(renewing) = &mut self.renewing else {
            return;
        };
        let Poll::Ready(answer) = renewing.as_mut().poll(cx) else {
            return;
        };
        self.renewing = None;
        match answer {
            Ok(renewed) => {
                self.timers.expire_at(renewed.expires_at);
                self.callback = renewed.callback;
            }
            Err(refusal) => self.close(refusal),
        }
    }
}
