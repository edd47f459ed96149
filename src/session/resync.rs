//! Continuity is lost: a reason, a new snapshot, and on from its position.
//!
//! Resyncs end. They are spread, so that a thousand sessions of one stream don't ask the API in
//! one moment; one session has at most one in five seconds; and three in a row without becoming
//! live in between are its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::debug;

use super::begin::{positions, unproven};
use super::{Done, First, ServedRoute, Session, Stage};
use crate::config::History;
use crate::hub::feed::{Basis, Feed, Position};
use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::{ControlFrame, LossReason};
use crate::snapshot::{Callback, Snapshot, Snapshots};
use crate::stream::EntryId;

/// Where a session goes on after a resync.
pub(super) struct Fresh {
    first: First,
    /// For each stream that starts anew: its index, the position noted, and where it begins.
    anew: Vec<(usize, EntryId, Position)>,
}

/// How often continuity was lost of late.
#[derive(Default)]
pub(super) struct Resyncs {
    pub(super) in_a_row: u32,
    last: Option<Instant>,
}

/// More than this many without becoming live in between end the session.
const MAX_RESYNCS_IN_A_ROW: u32 = 3;
/// Sessions of one stream are spread over this time.
const SPREAD: Duration = Duration::from_secs(1);
/// One session resyncs at most once in this time.
const AT_MOST_EVERY: Duration = Duration::from_secs(5);
/// A callback that fails is tried again for this long.
const TRIED_FOR: Duration = Duration::from_secs(30);

impl Session {
    /// A stream can't be continued.
    pub(super) fn lose(&mut self, index: usize, reason: LossReason) {
        let route = self.route.clone();
        route.meters().note_resync(reason);
        debug!(route = route.name(), stream.key = %self.keys.as_slice()[index].shown(), reason = reason.as_str(), "session resyncs");
        let has_snapshot = self.callback.is_some();
        self.resyncs.in_a_row += 1;
        let is_told_otherwise = self.route.message().control || has_snapshot;
        if self.resyncs.in_a_row > MAX_RESYNCS_IN_A_ROW || !is_told_otherwise {
            self.close(Refusal::new(Outcome::ContinuityLost, "continuity_lost"));
            return;
        }
        let lost = self.cursor();
        self.tell(&ControlFrame::Resync {
            reason,
            lost: &lost,
        });
        self.live = false;
        self.stage = Stage::Resyncing;
        let delay = self.resyncs.delay();
        let feeds = self.feeds();
        self.work = Some(match (&self.callback, route.snapshots()) {
            (Some(callback), Some(snapshots)) => {
                let (callback, snapshots) = (callback.clone(), snapshots.clone());
                Box::pin(async move {
                    Done::Resynced(
                        with_snapshot(&route, &snapshots, &callback, feeds, reason, delay).await,
                    )
                })
            }
            _ => {
                let from = self.oldest_kept(index, reason);
                Box::pin(async move {
                    let feed = &feeds[index];
                    Done::Resynced(Ok(without_snapshot(&route, feed, index, from, delay).await))
                })
            }
        });
    }

    /// Where the oldest entry kept is to be looked for, without a snapshot: after what the client
    /// has, unless ids may have begun anew.
    fn oldest_kept(&self, index: usize, reason: LossReason) -> Position {
        let id = match reason {
            LossReason::Trimmed | LossReason::Lagged => self.streams[index].position.id,
            LossReason::Deleted | LossReason::RolledBack => EntryId::ZERO,
        };
        Position {
            id,
            basis: Basis::Start,
        }
    }

    pub(super) fn start_anew(&mut self, fresh: Fresh) {
        let mut positions: Vec<Position> =
            self.streams.iter().map(|stream| stream.position).collect();
        for (index, noted, position) in fresh.anew {
            positions[index] = position;
            self.streams[index].target = noted;
        }
        self.stage = Stage::Preparing(fresh.first);
        self.start_streaming(&positions);
    }
}

impl Resyncs {
    fn delay(&mut self) -> Duration {
        let now = Instant::now();
        let pause = self.last.map_or(Duration::ZERO, |last| {
            (last + AT_MOST_EVERY).saturating_duration_since(now)
        });
        let delay = pause + SPREAD.mul_f64(rand::random_range(0.0..1.0));
        self.last = Some(now + delay);
        delay
    }
}

/// Asks the API anew; all streams start at the positions noted for that.
async fn with_snapshot(
    route: &ServedRoute,
    snapshots: &Snapshots,
    callback: &Callback,
    feeds: Vec<Arc<Feed>>,
    reason: LossReason,
    delay: Duration,
) -> Result<Fresh, Refusal> {
    let found_at = Instant::now();
    sleep(delay).await;
    // A feed that has not noticed the loss yet would note a position that is lost too.
    route.hub().refreshed(&feeds).await;
    let note = {
        let feeds = feeds.clone();
        move || feeds.iter().map(|feed| feed.tail()).collect()
    };
    let (first, noted, positions) =
        match fetch(route, snapshots, callback, note.clone(), found_at).await? {
            Some(snapshot) => {
                let positions = positions(
                    route,
                    &feeds,
                    &snapshot.positions,
                    &snapshot.declared,
                    History::None,
                )
                .await?;
                let first = First::Snapshot {
                    reason: reason.as_str(),
                    body: snapshot.body,
                };
                (first, snapshot.positions, positions)
            }
            None => {
                let noted: Vec<EntryId> = note();
                let positions = unproven(&noted);
                (First::SnapshotFailed, noted, positions)
            }
        };
    let anew = noted.into_iter().zip(positions).enumerate();
    Ok(Fresh {
        first,
        anew: anew
            .map(|(index, (noted, position))| (index, noted, position))
            .collect(),
    })
}

/// The callback, tried again while it fails; `None` where the route then goes on without.
async fn fetch<N>(
    route: &ServedRoute,
    snapshots: &Snapshots,
    callback: &Callback,
    note: N,
    found_at: Instant,
) -> Result<Option<Snapshot>, Refusal>
where
    N: Fn() -> Vec<EntryId> + Clone + Send + Sync + 'static,
{
    let give_up_at = Instant::now() + TRIED_FOR;
    loop {
        let error = match snapshots
            .fetch(callback, note.clone(), Some(found_at))
            .await
        {
            Ok(snapshot) => return Ok(Some(snapshot)),
            Err(error) => error,
        };
        if error.is_refusal_by_api() || Instant::now() >= give_up_at {
            return match route.goes_on_without(&error) {
                true => Ok(None),
                false => Err(error.refusal()),
            };
        }
        debug!(
            route = route.name(),
            "snapshot for a resync failed, trying again"
        );
        sleep(Duration::from_millis(rand::random_range(500..2_000))).await;
    }
}

/// Without a snapshot only the lost stream starts anew, from the oldest entry kept.
async fn without_snapshot(
    route: &ServedRoute,
    feed: &Arc<Feed>,
    index: usize,
    from: Position,
    delay: Duration,
) -> Fresh {
    sleep(delay).await;
    route.hub().refreshed(std::slice::from_ref(feed)).await;
    Fresh {
        first: First::Nothing,
        anew: vec![(index, feed.tail(), from)],
    }
}
