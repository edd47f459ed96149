//! Where a session begins: at a cursor, at the cut between snapshot and stream, in its history.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::{Done, First, ServedRoute, Session, Stage, Start};
use crate::config::History;
use crate::hub::STREAM_UNREADABLE;
use crate::hub::backlog::{Page, Proof};
use crate::hub::feed::{Basis, Feed, Position};
use crate::protocol::outcome::Refusal;
use crate::protocol::{LossReason, State, snapshot_framed};
use crate::session::{Batch, Output};
use crate::store::StoreError;
use crate::stream::EntryId;

impl Session {
    pub(super) fn begin(&mut self, start: Start) {
        match start {
            Start::Resume(cursor) => {
                for (stream, id) in self.streams.iter_mut().zip(cursor.0) {
                    stream.position = Position {
                        id,
                        basis: Basis::Unproven,
                    };
                }
            }
            Start::Now(positions) => self.prepare(First::Nothing, positions, Vec::new()),
            Start::SnapshotFailed(positions) => {
                self.prepare(First::SnapshotFailed, positions, Vec::new())
            }
            Start::Snapshot(snapshot) => {
                let first = First::Snapshot {
                    reason: "connect",
                    body: snapshot.body,
                };
                self.prepare(first, snapshot.positions, snapshot.declared);
            }
        }
    }

    /// Finds out where to begin; at once where that needs no question.
    fn prepare(&mut self, first: First, noted: Vec<EntryId>, declared: Vec<Option<String>>) {
        for (stream, id) in self.streams.iter_mut().zip(&noted) {
            stream.target = *id;
        }
        self.stage = Stage::Preparing(first);
        let history = self.route.route().history;
        if history == History::None && declared.iter().all(Option::is_none) {
            self.start_streaming(&unproven(&noted));
            return;
        }
        let (route, feeds) = (self.route.clone(), self.feeds());
        self.work = Some(Box::pin(async move {
            Done::Prepared(positions(&route, &feeds, &noted, &declared, history).await)
        }));
    }

    pub(super) fn feeds(&self) -> Vec<Arc<Feed>> {
        self.streams
            .iter()
            .map(|stream| stream.watch.feed.clone())
            .collect()
    }

    /// The cut is made: the snapshot goes out, and then what follows these positions.
    pub(super) fn start_streaming(&mut self, positions: &[Position]) {
        for (stream, position) in self.streams.iter_mut().zip(positions) {
            stream.move_to(*position);
            stream.nothing_follows = false;
        }
        match std::mem::replace(&mut self.stage, Stage::Streaming) {
            Stage::Preparing(First::Snapshot { reason, body }) => {
                // The callback's body was checked to be text.
                let body = String::from_utf8_lossy(&body);
                let message = snapshot_framed(self.route.message(), reason, &self.cursor(), &body);
                self.outbox.push(Output::Messages(Batch::one(message)));
            }
            Stage::Preparing(First::SnapshotFailed) => self.tell_state(State::NoSnapshot),
            Stage::Preparing(First::Nothing) | Stage::Streaming | Stage::Resyncing => {}
        }
    }
}

pub(super) fn unproven(ids: &[EntryId]) -> Vec<Position> {
    let unproven = |id: &EntryId| Position {
        id: *id,
        basis: Basis::Unproven,
    };
    ids.iter().map(unproven).collect()
}

/// For each stream: the position that the API has declared, else where the history begins, else
/// the position noted.
pub(super) async fn positions(
    route: &ServedRoute,
    feeds: &[Arc<Feed>],
    noted: &[EntryId],
    declared: &[Option<String>],
    history: History,
) -> Result<Vec<Position>, Refusal> {
    let mut positions = Vec::with_capacity(feeds.len());
    for (index, (feed, noted)) in feeds.iter().zip(noted).enumerate() {
        let declared = match declared.get(index).and_then(Option::as_deref) {
            Some(text) => accept_declared(route, feed, text).await,
            None => None,
        };
        positions.push(match declared {
            Some(id) => Position {
                id,
                basis: Basis::Unproven,
            },
            None => history_position(route, feed, history, *noted).await?,
        });
    }
    Ok(positions)
}

/// The API's own position, if the stream continues there. One that is malformed, ahead of the
/// stream or older than what is kept is counted and ignored: the position noted is safe.
async fn accept_declared(route: &ServedRoute, feed: &Arc<Feed>, text: &str) -> Option<EntryId> {
    let checked = match EntryId::parse(text) {
        None => Err("malformed"),
        Some(id) if feed.holds(id) => return Some(id),
        // Redis is asked, not the feed, whose tail may be behind.
        Some(id) => match route
            .hub()
            .backlog()
            .page(feed.clone(), id, Proof::Needed)
            .await
        {
            Ok(Page::Entries(_) | Page::Nothing { .. }) => Ok(id),
            Ok(Page::Lost(LossReason::RolledBack)) => Err("ahead"),
            Ok(Page::Lost(reason)) => Err(reason.as_str()),
            Err(_) => Err("unchecked"),
        },
    };
    match checked {
        Ok(id) => Some(id),
        Err(reason) => {
            route.ignore_declared(reason);
            None
        }
    }
}

/// Where the history begins. While Redis is away the session hears it from the feed.
async fn history_position(
    route: &ServedRoute,
    feed: &Feed,
    history: History,
    noted: EntryId,
) -> Result<Position, Refusal> {
    let basis = match history {
        History::None => Basis::Unproven,
        History::All | History::Last(_) | History::Since(_) => Basis::Start,
    };
    let backlog = route.hub().backlog();
    loop {
        match backlog.history_start(feed, history, noted).await {
            Ok(id) => return Ok(Position { id, basis }),
            Err(StoreError::Unreadable(_)) => return Err(STREAM_UNREADABLE),
            Err(StoreError::Unavailable(_)) => rest().await,
        };
    }
}

/// Waits a moment before Redis is asked again.
pub(super) async fn rest() -> Done {
    sleep(Duration::from_millis(rand::random_range(250..1_000))).await;
    Done::Rested
}
