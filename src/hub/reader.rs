//! The one reader: its own connection, never blocking, pulling what is dirty.
//!
//! It lives as long as the process. Each connection is one [`Connected::run`]; between two of
//! them it waits and tries again. What it pulls goes on from the positions that the feeds hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use super::Shared;
use super::chunk::Chunk;
use super::continuity::{self, Known, Verdict};
use super::dirty::{Held, Sweep};
use super::feed::{Feed, Mark};
use crate::config::Wake;
use crate::metrics::{REDIS_RECONNECTS, REDIS_TRACKING, REDIS_UP};
use crate::protocol::LossReason;
use crate::store::{Answer, Push, Read, ReaderConnection, StoreError, StreamInfo, Unreadable};
use crate::stream::{EntryId, StreamKey};

/// Keys read in one train.
const TRAIN_KEYS: usize = 64;
/// What one train is meant to bring at the most.
const TRAIN_BYTES: usize = 4 * 1024 * 1024;
/// What one key of it is meant to bring at the most.
const PULL_BYTES: usize = 1024 * 1024;
const MAX_PULL_ENTRIES: usize = 4096;
/// A torn answer is asked for again this often.
const TORN_TRIES: usize = 3;
/// How often the server's role is asked for.
const HELLO_EVERY: Duration = Duration::from_secs(5);
/// Streams polled by one XREAD.
const POLL_KEYS: usize = 100;
/// Polling takes at most this fraction of the time.
const POLL_SHARE: u32 = 10;
/// How long to poll after the server's tracking table has overflowed.
const POLL_AFTER_OVERFLOW: Duration = Duration::from_secs(60);
/// Pulls of a second that found nothing, from which on the table may have overflowed.
const OVERFLOW_PULLS: u32 = 100;

/// Pulls for all feeds.
pub(super) struct Reader {
    shared: Arc<Shared>,
    /// Rung by the connection's end.
    disconnected: Arc<Notify>,
    answered_at: Instant,
    sweep: Sweep,
    polling_was_told: bool,
}

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
enum Down {
    #[error("{0}")]
    Unavailable(String),
    #[error("the connection was closed")]
    Disconnected,
    #[error("the server has changed its role")]
    RoleChanged,
    #[error("CLIENT TRACKING is refused: {0}")]
    TrackingRefused(Unreadable),
}

impl Down {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Disconnected => "disconnected",
            Self::RoleChanged => "role_changed",
            Self::TrackingRefused(_) => "tracking_refused",
        }
    }
}

impl From<StoreError> for Down {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(reason) => Self::Unavailable(reason),
            StoreError::Unreadable(reason) => Self::Unavailable(reason.to_string()),
        }
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            disconnected: Arc::default(),
            answered_at: Instant::now(),
            sweep: Sweep::new(shared.config.redis.sweep),
            polling_was_told: false,
            shared,
        }
    }

    /// Reads for ever. Should it ever end, readiness fails: a relay that reads nothing must not
    /// look healthy.
    pub(super) async fn run(mut self) {
        let _alarm = Alarm(self.shared.clone());
        loop {
            let connection = self.connect().await;
            let down = Connected::new(&mut self, connection).run().await;
            self.note_down(&down);
        }
    }

    /// Connects, however often it takes. Clients hear of it once no command has been answered
    /// for as long as one may take.
    async fn connect(&mut self) -> ReaderConnection {
        let shared = self.shared.clone();
        let disconnected = self.disconnected.clone();
        let attempts = attempt_until_connected(&shared, &disconnected);
        tokio::pin!(attempts);
        let silent = sleep_until(self.answered_at + shared.config.redis.command_timeout);
        let connection = tokio::select! {
            connection = &mut attempts => connection,
            () = silent => {
                degrade(&shared);
                attempts.await
            }
        };
        self.answered_at = Instant::now();
        let mut health = shared.health();
        health.was_up = true;
        health.down_since = None;
        shared.metrics.gauge(&REDIS_UP, &[]).set(1.0);
        connection
    }

    fn note_down(&self, down: &Down) {
        warn!(reason = %down, "connection to redis lost, connecting again");
        let metrics = &self.shared.metrics;
        metrics
            .counter(&REDIS_RECONNECTS, &[down.as_str()])
            .increment(1);
        metrics.gauge(&REDIS_UP, &[]).set(0.0);
        self.shared
            .health()
            .down_since
            .get_or_insert_with(Instant::now);
        if matches!(down, Down::RoleChanged) {
            self.shared.store.drop_pool();
        }
    }
}

fn degrade(shared: &Shared) {
    warn!("redis does not answer, clients are told");
    for feed in shared.all_feeds() {
        feed.degrade();
    }
}

async fn attempt_until_connected(
    shared: &Arc<Shared>,
    disconnected: &Arc<Notify>,
) -> ReaderConnection {
    let mut delays = backoff();
    let mut was_told = false;
    loop {
        match shared
            .store
            .connect_reader(on_push(shared, disconnected))
            .await
        {
            Ok(connection) => return connection,
            Err(error) if !was_told => {
                was_told = true;
                warn!(reason = %error, "redis can't be reached, trying again");
            }
            Err(error) => tracing::debug!(reason = %error, "redis can't be reached"),
        }
        sleep(delays.next().unwrap_or(MAX_DELAY)).await;
    }
}

const MIN_DELAY: Duration = Duration::from_millis(50);
/// Short enough that entries flow within a second of Redis' return, with the jitter added.
const MAX_DELAY: Duration = Duration::from_millis(400);

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(MIN_DELAY)
        .with_max_delay(MAX_DELAY)
        .with_jitter()
        // Without a seed of its own every relay would wait the same.
        .with_jitter_seed(rand::random())
        .without_max_times()
        .build()
}

/// What a push does. It runs in the connection's own task, so it only leaves marks.
fn on_push(
    shared: &Arc<Shared>,
    disconnected: &Arc<Notify>,
) -> impl Fn(Push) + Clone + Send + Sync + 'static {
    let (shared, disconnected) = (shared.clone(), disconnected.clone());
    move |push| match push {
        Push::Disconnected => disconnected.notify_one(),
        Push::AllChanged => shared.mark_all(),
        Push::Changed(keys) => {
            for key in keys {
                let Ok(key) = std::str::from_utf8(&key) else {
                    continue;
                };
                let feed = shared.feeds().known.get(&StreamKey::from(key)).cloned();
                if let Some(feed) = feed {
                    shared.dirty.mark(&feed, Mark::Changed);
                }
            }
        }
    }
}

/// Fails readiness when the reader's task ends, in whatever way.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        self.0.health().reader_alive = false;
        error!("the reader has ended: this relay delivers nothing any more and must be restarted");
    }
}

/// One connection's life.
struct Connected<'a> {
    reader: &'a mut Reader,
    shared: Arc<Shared>,
    connection: ReaderConnection,
    number: u64,
    held: Held,
    wake: WakeState,
    hello_at: Instant,
    tick_at: Instant,
    pulls: Pulls,
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
struct Pulls {
    all: u32,
    found_nothing: u32,
    since: Instant,
}

/// One key of a train.
struct Pull {
    feed: Arc<Feed>,
    mark: Mark,
    known: Known,
    read: Read,
    /// What was last said of the stream; `None` if there was no such key.
    info: Option<StreamInfo>,
}

impl<'a> Connected<'a> {
    fn new(reader: &'a mut Reader, connection: ReaderConnection) -> Self {
        let shared = reader.shared.clone();
        let now = Instant::now();
        Self {
            number: shared.connection.fetch_add(1, Ordering::AcqRel) + 1,
            reader,
            shared,
            connection,
            held: Held::default(),
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
    async fn run(mut self) -> Down {
        match self.serve().await {
            Err(down) => down,
            Ok(never) => match never {},
        }
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, Down> {
        self.arm().await?;
        let disconnected = self.reader.disconnected.clone();
        loop {
            self.pull_due().await?;
            self.keep_time().await?;
            tokio::select! {
                () = self.shared.dirty.added() => {}
                () = disconnected.notified() => return Err(Down::Disconnected),
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
            .set(if tracking { 1.0 } else { 0.0 });
        self.wake = wake;
    }

    /// Pulls what is dirty and not held, train by train, until nothing is.
    async fn pull_due(&mut self) -> Result<(), Down> {
        let hold = self.shared.config.redis.hold;
        loop {
            let mut due = self.held.take_due();
            due.extend(self.held.split(self.shared.dirty.take(TRAIN_KEYS), hold));
            if due.is_empty() {
                return Ok(());
            }
            for train in due.chunks(TRAIN_KEYS) {
                self.pull(train).await?;
            }
            // A stream that never rests must not keep the timers from their turn.
            if self.next_timer() <= Instant::now() {
                return Ok(());
            }
        }
    }

    async fn pull(&mut self, feeds: &[Arc<Feed>]) -> Result<(), Down> {
        let budget = (TRAIN_BYTES / feeds.len()).min(PULL_BYTES);
        let mut pulls: Vec<Pull> = feeds.iter().map(|feed| self.begin(feed, budget)).collect();
        for _ in 0..=TORN_TRIES {
            if pulls.is_empty() {
                break;
            }
            let reads: Vec<Read> = pulls.iter().map(|pull| pull.read.clone()).collect();
            let answers = self.connection.read_all(&reads).await?;
            self.reader.answered_at = Instant::now();
            let settled = pulls
                .into_iter()
                .zip(answers)
                .filter_map(|(pull, answer)| self.settle(pull, answer));
            pulls = settled.collect();
        }
        for pull in pulls {
            // Its halves would not fit together: the worst that this can mean.
            let known = pull.known.position;
            let reason = pull
                .info
                .map_or(LossReason::Deleted, |info| continuity::loss(known, &info));
            self.lose(&pull, reason);
        }
        self.shared.train_done.ring();
        Ok(())
    }

    fn begin(&self, feed: &Arc<Feed>, budget: usize) -> Pull {
        // Cleared before the read is sent: a change from here on marks the feed again.
        let mark = feed.clear_mark();
        let reading = feed.begin_read(self.number);
        let entries = (budget / reading.mean_size.max(1)).clamp(1, MAX_PULL_ENTRIES);
        Pull {
            feed: feed.clone(),
            mark,
            known: reading.known,
            info: None,
            read: Read {
                key: feed.key.clone(),
                from: reading.known.position,
                // One more: the entry at the position.
                count: entries + 1,
                with_info: reading.with_info,
            },
        }
    }

    /// Applies an answer. Gives the pull back if it must be asked again.
    fn settle(&mut self, mut pull: Pull, answer: Result<Answer, Unreadable>) -> Option<Pull> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(reason) => {
                self.fail(&pull.feed, reason);
                return None;
            }
        };
        let begins_there = answer
            .entries
            .first()
            .is_some_and(|first| first.id == pull.known.position);
        let info = answer.info.filter(|_| !begins_there);
        pull.info = answer.info.flatten();
        let is_full = answer.entries.len() >= pull.read.count;
        match continuity::judge(&pull.known, answer, pull.read.count) {
            Verdict::Continuous(entries) => {
                self.note_pull(pull.mark, entries.is_empty());
                let chunk = Chunk::new(&pull.feed.key, entries, &self.shared.formats);
                let grown = pull.feed.publish(chunk, info, self.number);
                self.note_growth(grown);
                if is_full {
                    self.shared.dirty.mark(&pull.feed, Mark::Asked);
                }
                None
            }
            Verdict::Lost(reason) => {
                self.lose(&pull, reason);
                None
            }
            Verdict::InfoNeeded | Verdict::Torn => {
                pull.read.with_info = true;
                Some(pull)
            }
        }
    }

    /// The feed goes on in a new epoch; each session asks with its own position.
    fn lose(&self, pull: &Pull, reason: LossReason) {
        let after = pull.known.position;
        info!(stream.key = %pull.feed.key, %after, reason = reason.as_str(), "continuity lost");
        let grown = pull.feed.restart(pull.info.as_ref(), self.number);
        self.note_growth(grown);
        self.shared.dirty.mark(&pull.feed, Mark::Asked);
    }

    /// One key that can't be read fails alone.
    fn fail(&self, feed: &Arc<Feed>, reason: Unreadable) {
        warn!(stream.key = %feed.key, %reason, "stream can't be read, its clients are closed");
        {
            let mut feeds = self.shared.feeds();
            feeds.known.remove(&feed.key);
            feeds.refuse(&feed.key, reason.clone());
        }
        let grown = feed.shrink();
        self.shared.ring_bytes.fetch_add(grown, Ordering::AcqRel);
        feed.read_failed(reason);
    }

    fn note_pull(&mut self, mark: Mark, found_nothing: bool) {
        if mark == Mark::Changed {
            self.pulls.all += 1;
            self.pulls.found_nothing += u32::from(found_nothing);
        }
    }

    /// Keeps all rings together within their bound: those that were read least recently give way.
    fn note_growth(&self, grown: isize) {
        self.shared.ring_bytes.fetch_add(grown, Ordering::AcqRel);
        let bound = self.shared.config.redis.ring_total;
        if self.shared.ring_bytes() <= bound {
            return;
        }
        let mut feeds = self.shared.all_feeds();
        feeds.sort_by_cached_key(|feed| feed.asked_at());
        for feed in feeds {
            if self.shared.ring_bytes() <= bound - bound / 10 {
                return;
            }
            self.shared
                .ring_bytes
                .fetch_add(feed.shrink(), Ordering::AcqRel);
        }
    }
}

/// Timers.
impl Connected<'_> {
    fn next_timer(&self) -> Instant {
        let poll = match self.wake {
            WakeState::Tracking => None,
            WakeState::Polling { next, .. } => Some(next),
        };
        let others = self.held.next_due().into_iter().chain(poll);
        others.fold(self.tick_at.min(self.hello_at), Instant::min)
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
        feeds.known.remove(&feed.key);
        drop(feeds);
        self.shared
            .ring_bytes
            .fetch_add(feed.shrink(), Ordering::AcqRel);
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
        let pause = self
            .shared
            .config
            .redis
            .poll
            .max((now - started) * POLL_SHARE);
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
