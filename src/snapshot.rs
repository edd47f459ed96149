//! The snapshot callback: limits, retries, sharing.
//!
//! A session prepares its [`Callback`] once and fetches it at connect and at each resync. A
//! fetch waits for its turn among those of its route, notes the positions of its streams, and
//! only then asks the API: whatever is added while the API answers comes after the snapshot.
//! With `share = "url"` all this happens in a task that those who want the same share, and
//! the body goes to each of them together with the positions that were noted for it.

mod declared;
mod error;
mod fetch;
mod queue;
mod request;
mod share;
mod tally;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;
use tokio::time::Instant;

use crate::config::template::{Unusable, Values};
use crate::config::{self, Route};
use crate::metrics::Metrics;
use crate::stream::{EntryId, StreamKeys};
use crate::tasks::Tasks;

pub use error::SnapshotError;
pub use request::{Callback, on_its_own};

use fetch::Api;
use queue::Queue;
use request::Recipe;
use share::Shares;
use tally::Tally;

/// The state that the API returned, and where the stream continues it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The API's answer, byte for byte. For a 204 it is `null` where JSON is needed.
    pub body: Bytes,
    /// For each stream of the route: the position noted before the callback was sent.
    pub positions: Vec<EntryId>,
    /// For each stream: what the API's cursor header said, unchecked; `None` where it said nothing.
    pub declared: Vec<Option<String>>,
}

/// The callbacks of one route.
pub struct Snapshots {
    recipe: Recipe,
    calls: Arc<Calls>,
    /// Absent with `share = "none"`.
    shares: Option<Shares>,
}

impl Snapshots {
    /// `None` if the route has no snapshot.
    pub fn new(route: &Route, tasks: &Tasks, metrics: &Metrics) -> Option<Arc<Self>> {
        let snapshot = route.snapshot.as_ref()?;
        let shares = match snapshot.share {
            config::Share::None => None,
            config::Share::Url { ttl } => Some(Shares::new(ttl, tasks)),
        };
        Some(Arc::new(Self {
            recipe: Recipe::new(&route.name, snapshot),
            calls: Arc::new(Calls {
                api: Api::new(snapshot, &route.message.format.kind),
                queue: Queue::new(snapshot.max_in_flight, snapshot.queue),
                tally: Tally::new(&route.name, metrics),
            }),
            shares,
        }))
    }

    /// Renders URL and headers, and picks what is forwarded from the client's request.
    pub fn prepare(
        &self,
        values: &Values,
        headers: &HeaderMap,
        keys: &StreamKeys,
    ) -> Result<Callback, Unusable> {
        self.recipe.prepare(values, headers, keys)
    }

    /// Asks the API, or joins somebody who is asking it. Dropping the future gives its place
    /// back; a shared callback goes on as long as somebody waits for it.
    ///
    /// `note` is called when the callback is sent, not when it is queued, and says the
    /// positions from which the stream continues. It is called by another task and may outlive
    /// this future if the callback is shared, and not at all if another's is joined. A shared
    /// body keeps the positions that were noted for it. `not_before` refuses shared bodies
    /// whose callback was sent earlier.
    pub async fn fetch<N>(
        &self,
        callback: &Callback,
        note: N,
        not_before: Option<Instant>,
    ) -> Result<Snapshot, SnapshotError>
    where
        N: Fn() -> Vec<EntryId> + Send + Sync + 'static,
    {
        let Some(shares) = &self.shares else {
            return self.calls.call(callback, note).await;
        };
        let lead = |departure: share::Departure| {
            let (calls, callback) = (self.calls.clone(), callback.clone());
            async move {
                // Departed before the positions are noted: whoever refuses bodies from before
                // an instant must not get positions from before it either.
                let depart_and_note = || {
                    departure.now();
                    note()
                };
                calls.call(&callback, depart_and_note).await
            }
        };
        shares.join(&callback.identity(), not_before, lead).await
    }
}

/// What it takes to make one callback of a route.
struct Calls {
    api: Api,
    queue: Queue,
    tally: Tally,
}

impl Calls {
    /// Waits for a turn, notes the positions, asks.
    async fn call<N>(&self, callback: &Callback, note: N) -> Result<Snapshot, SnapshotError>
    where
        N: FnOnce() -> Vec<EntryId>,
    {
        let _turn = match self.queue.turn().await {
            Ok(turn) => turn,
            Err(error) => {
                self.tally.not_sent(&error);
                return Err(error);
            }
        };
        let sent = self.tally.sent();
        let positions = note();
        let answer = self.api.ask(callback).await;
        sent.answered(&answer);
        let answer = answer?;
        let declared = declared::read(&answer.cursors, &callback.keys);
        self.tally.cursors_of_unknown_streams(declared.unknown);
        Ok(Snapshot {
            body: answer.body,
            positions,
            declared: declared.ids,
        })
    }
}
