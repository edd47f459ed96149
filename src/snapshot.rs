//! The snapshot callback: limits, retries, sharing.

use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;
use tokio::time::Instant;

use crate::config::Route;
use crate::config::template::{Unusable, Values};
use crate::metrics::Metrics;
use crate::protocol::outcome::Refusal;
use crate::stream::{EntryId, StreamKeys};
use crate::tasks::Tasks;

/// The state that the API returned, and where the stream continues it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub body: Bytes,
    /// For each stream of the route: the position noted before the callback was sent.
    pub positions: Vec<EntryId>,
    /// For each stream: what the API's cursor header said, unchecked; `None` where it said nothing.
    pub declared: Vec<Option<String>>,
}

/// Why there is no snapshot. (Variants are the snapshot module's to define.)
#[derive(Debug, Clone, thiserror::Error)]
#[error("no snapshot")]
pub struct SnapshotError;

impl SnapshotError {
    /// What the client is told if this closes it.
    pub fn refusal(&self) -> Refusal {
        todo!()
    }

    /// Whether the API itself refused the client (401, 403, 404): final, whatever `on_error` says.
    pub fn is_refusal_by_api(&self) -> bool {
        todo!()
    }
}

/// One client's callback, ready to be sent, again for each resync.
#[derive(Debug)]
pub struct Callback {}

/// The callbacks of one route.
pub struct Snapshots {}

impl Snapshots {
    /// `None` if the route has no snapshot.
    pub fn new(_route: &Route, _tasks: &Tasks, _metrics: &Metrics) -> Option<Arc<Self>> {
        todo!()
    }

    /// Renders URL and headers, and picks what is forwarded from the client's request.
    pub fn prepare(
        &self,
        _values: &Values,
        _headers: &HeaderMap,
        _keys: &StreamKeys,
    ) -> Result<Callback, Unusable> {
        todo!()
    }

    /// Asks the API, or joins somebody who is asking it.
    ///
    /// `note` is called when the callback is sent, not when it is queued, and says the
    /// positions from which the stream continues. A shared body keeps the positions that were
    /// noted for it. `not_before` refuses shared bodies whose callback was sent earlier.
    pub async fn fetch<N>(
        &self,
        _callback: &Callback,
        _note: N,
        _not_before: Option<Instant>,
    ) -> Result<Snapshot, SnapshotError>
    where
        N: Fn() -> Vec<EntryId> + Send + Sync,
    {
        todo!()
    }
}
