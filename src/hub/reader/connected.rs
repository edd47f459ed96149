//! One connection's life: what is dirty is pulled, timers keep the rest honest.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::super::Shared;
use super::super::dirty::Held;
use super::super::feed::{Feed, Mark};
use super::{Down, Reader};
use crate::config::Wake;
use crate::metrics::REDIS_TRACKING;
use crate::store::ReaderConnection;
use crate::stream::{EntryId, StreamKey};

/// Keys read in one train.
const TRAIN_KEYS: usize = 64;
/// How often the server's role is asked for.
const HELLO_EVERY: Duration = Duration::from_secs(5);
/// Streams polled by one XREAD.
const POLL_KEYS: usize = 100;
/// Polling takes at most this fraction of the time, unless that would mean a longer pause than
/// the next: one slow answer must not make entries wait for seconds.
const POLL_SHARE: u32 = 10;
const LONGEST_POLL_PAUSE: Duration = Duration::from_millis(400);
/// How long to poll after the server's tracking table has overflowed.
const POLL_AFTER_OVERFLOW: Duration = Duration::from_secs(60);
/// Pulls of a second that found nothing, from which on the table may have overflowed.
const OVERFLOW_PULLS: u32 = 100;

/// One connection's life.
pub(super) struct Connected<'a> {
    pub(super) reader: &'a mut Reader,
    pub(super) shared: Arc<Shared>,
    pub(super) connection: ReaderConnection,
    /// Rung when the connection ends.
    ended: Arc<Notify>,
    /// Counts connections.
    pub(super) number: u64,
    held: Held,
    /// No read before this.
    paced_until: Instant,
    wake: WakeState,
    hello_at: Instant,
    tick_at: Instant,
    pub(super) pulls: Pulls,
}

/// How changes are noticed right now.
enum WakeState {
    Tracking,
    Polling {
        next: Instant,
        /// When to ask for tracking again.
        until: Option<Instant>,
    },
}

/// Pulls of the current second that a push has caused.
pub(super) struct Pulls {
    pub(super) all: u32,
    pub(super) found_nothing: u32,
    since: Instant,
}

impl<'a> Connected<'a> {
    pub(super) fn new(
        reader: &'a mut Reader,
        connection: ReaderConnection,
        ended: Arc<Notify>,
    ) -> Self {
        let shared = reader.shared.clone();
        let now = Instant::now();
        Self {
            number: shared.connection.fetch_add(1, Ordering::AcqRel) + 1,
            reader,
            shared,
            connection,
            ended,
            held: Held::default(),
            paced_until: now,
            wake: WakeState::Polling {
                next: now,
                until: None,
            },
            hello_at: now + HELLO_EVERY,
            tick_at: now,
            pulls: Pulls::since(now),
        }
    }

    /// Pulls until the connection is of no use any more. The select's arms: a feed was marked,
    /// the connection ended, or the next timer is due (a held feed, the poll, the tick, the
    /// hello). All are cancel-safe: nothing is taken before an arm is chosen.
    pub(super) async fn run(mut self) -> Down {
        match self.serve().await {
            Err(down) => down,
            Ok(never) => match never {},
        }
    }

    async fn serve(&mut self) -> Result<Infallible, Down> {
        self.shared.read_all_anew();
        // A server that is still loading its data answers HELLO, and nothing else.
        self.connection.ping().await?;
        self.arm().await?;
        self.reader.note_up();
        let ended = self.ended.clone();
        loop {
            self.pull_due().await?;
            self.keep_time().await?;
            tokio::select! {
                () = self.shared.dirty.added() => {}
                () = ended.notified() => return Err(Down::Disconnected),
                () = sleep_until(self.next_timer()) => {}
            }
        }
    }

    /// Asks for pushes, as far as the config wants and Redis allows; every key may have changed.
    async fn arm(&mut self) -> Result<(), Down> {
        let wanted = self.shared.config.redis.wake;
        let refused = match wanted {
            Wake::Poll => None,
            Wake::Auto | Wake::Tracking => match self.connection.track().await? {
                Ok(()) => {
                    self.set_wake(WakeState::Tracking);
                    self.shared.mark_all();
                    return Ok(());
                }
                Err(reason) if wanted == Wake::Tracking => {
                    return Err(Down::TrackingRefused(reason));
                }
                Err(reason) => Some(reason),
            },
        };
        if let Some(reason) = refused.filter(|_| !self.reader.polling_was_told) {
            self.reader.polling_was_told = true;
            warn!(%reason, "CLIENT TRACKING is refused, streams are polled");
        }
        self.set_wake(WakeState::Polling {
            next: Instant::now(),
            until: None,
        });
        self.shared.mark_all();
        Ok(())
    }

    fn set_wake(&mut self, wake: WakeState) {
        let tracking = matches!(wake, WakeState::Tracking);
        self.shared.health().tracking = tracking;
        self.shared
            .metrics
            .gauge(&REDIS_TRACKING, &[])
            .set(tracking.into());
        self.wake = wake;
    }

    /// Pulls what is dirty and not held, train by train, until nothing is. Trains that are not full
    /// are a third of a hold apart: with 2,000 streams and 5,000 entries a second that costs 0.45 ms
    /// at the median, and saves the relay a fifth of its CPU and Redis a quarter.
    async fn pull_due(&mut self) -> Result<(), Down> {
        let hold = self.shared.config.redis.hold;
        while self.next_pull().is_some_and(|at| at <= Instant::now()) {
            let mut due = self.held.take_due();
            due.extend(self.held.split(self.shared.dirty.take(TRAIN_KEYS), hold));
            due.retain(|feed| !feed.is_retired());
            if due.is_empty() {
                return Ok(());
            }
            if due.len() < TRAIN_KEYS {
                self.paced_until = Instant::now() + hold / 3;
            }
            for train in due.chunks(TRAIN_KEYS) {
                self.pull(train).await?;
            }
            // A stream that never rests must not keep the timers from their turn.
            if self.next_chore() <= Instant::now() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Timers.
impl Connected<'_> {
    /// When dirty or held feeds may be read, if there are any.
    fn next_pull(&self) -> Option<Instant> {
        let dirty = (!self.shared.dirty.is_empty()).then_some(self.paced_until);
        // A feed that was held has waited already.
        dirty.into_iter().chain(self.held.next_due()).min()
    }

    fn next_timer(&self) -> Instant {
        let chore = self.next_chore();
        self.next_pull().map_or(chore, |pull| pull.min(chore))
    }

    /// The poll, the tick or the hello.
    fn next_chore(&self) -> Instant {
        let poll = match self.wake {
            WakeState::Tracking => None,
            WakeState::Polling { next, .. } => Some(next),
        };
        let others = self.tick_at.min(self.hello_at);
        poll.map_or(others, |poll| poll.min(others))
    }

    async fn keep_time(&mut self) -> Result<(), Down> {
        let now = Instant::now();
        if self.hello_at <= now {
            self.hello().await?;
        }
        if self.tick_at <= now {
            self.tick().await?;
        }
        self.poll_if_due().await
    }

    async fn hello(&mut self) -> Result<(), Down> {
        let role = self.connection.current_role().await?;
        if role != *self.connection.role() {
            return Err(Down::RoleChanged);
        }
        self.reader.answered_at = Instant::now();
        self.hello_at = Instant::now() + HELLO_EVERY;
        Ok(())
    }

    /// Ten times a second: the sweep's share. Feeds that nobody has watched for long go.
    async fn tick(&mut self) -> Result<(), Down> {
        let second_is_over = self.sweep();
        if second_is_over {
            self.watch_the_table().await?;
        }
        Ok(())
    }

    fn sweep(&mut self) -> bool {
        let now = Instant::now();
        self.tick_at = now + Duration::from_millis(100);
        let new = std::mem::take(&mut self.shared.feeds().new);
        for feed in &new {
            self.reader.sweep.add(feed);
        }
        let linger = self.shared.config.redis.linger;
        for feed in self.reader.sweep.due() {
            let is_left = feed.idle_since().is_some_and(|since| now - since >= linger);
            if !(is_left && self.forget(&feed)) {
                self.shared.dirty.mark(&feed, Mark::Asked);
            }
        }
        self.pulls.second_is_over(now)
    }

    /// Drops a feed, unless somebody has come meanwhile.
    fn forget(&self, feed: &Arc<Feed>) -> bool {
        let mut feeds = self.shared.feeds();
        if feed.idle_since().is_none() {
            return false;
        }
        feeds.remove(feed);
        drop(feeds);
        self.shared
            .ring_bytes
            .fetch_add(feed.retire(), Ordering::AcqRel);
        true
    }

    /// A tracking table that overflows evicts a key at each read, whose push causes a read: a
    /// storm without a single write. Then polling is the lesser evil for a while.
    async fn watch_the_table(&mut self) -> Result<(), Down> {
        let pulls = std::mem::replace(&mut self.pulls, Pulls::since(Instant::now()));
        match self.wake {
            WakeState::Tracking if pulls.are_a_storm() => {
                warn!(
                    pulls = pulls.all,
                    found_nothing = pulls.found_nothing,
                    "the tracking table of redis overflows, streams are polled for a minute: raise tracking-table-max-keys"
                );
                self.connection.stop_tracking().await?;
                self.set_wake(WakeState::Polling {
                    next: Instant::now(),
                    until: Some(Instant::now() + POLL_AFTER_OVERFLOW),
                });
                Ok(())
            }
            WakeState::Polling {
                until: Some(until), ..
            } if until <= Instant::now() => self.arm().await,
            WakeState::Tracking | WakeState::Polling { .. } => Ok(()),
        }
    }

    async fn poll_if_due(&mut self) -> Result<(), Down> {
        let WakeState::Polling { next, until } = self.wake else {
            return Ok(());
        };
        let started = Instant::now();
        if next > started {
            return Ok(());
        }
        self.poll().await?;
        let now = Instant::now();
        let stretched = ((now - started) * POLL_SHARE).min(LONGEST_POLL_PAUSE);
        let pause = self.shared.config.redis.poll.max(stretched);
        self.wake = WakeState::Polling {
            next: now + pause,
            until,
        };
        Ok(())
    }

    /// Marks every feed that has entries after its tail. Deletions and the like are seen by the sweep.
    async fn poll(&mut self) -> Result<(), Down> {
        for feeds in self.shared.all_feeds().chunks(POLL_KEYS) {
            let after: Vec<(StreamKey, EntryId)> = feeds
                .iter()
                .map(|feed| (feed.key.clone(), feed.tail()))
                .collect();
            match self.connection.keys_with_news(&after).await? {
                Ok(keys) => {
                    let is_named =
                        |feed: &&Arc<Feed>| keys.iter().any(|key| key == feed.key.as_str());
                    for feed in feeds.iter().filter(is_named) {
                        self.shared.dirty.mark(feed, Mark::Changed);
                    }
                }
                // One of them can't be read: each is asked alone, and that one fails alone.
                Err(_) => feeds
                    .iter()
                    .for_each(|feed| self.shared.dirty.mark(feed, Mark::Asked)),
            }
            self.reader.answered_at = Instant::now();
        }
        Ok(())
    }
}

impl Pulls {
    fn since(since: Instant) -> Self {
        Self {
            all: 0,
            found_nothing: 0,
            since,
        }
    }

    fn second_is_over(&self, now: Instant) -> bool {
        now - self.since >= Duration::from_secs(1)
    }

    fn are_a_storm(&self) -> bool {
        self.found_nothing > OVERFLOW_PULLS && self.found_nothing * 2 > self.all
    }
}
