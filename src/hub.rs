//! All feeds, and the reader that fills them.
//!
//! A session attaches to the feeds of its streams, asks them what follows its position, and
//! goes to the [`backlog`] for what the ring no longer holds. One reader pulls for all.

pub mod backlog;
pub mod chunk;
pub mod continuity;
mod dirty;
pub mod feed;
mod reader;

use std::collections::HashMap;
use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared as SharedFuture};
use tokio::time::{Instant, interval};

use crate::config::Config;
use crate::metrics::{FEEDS, Gauge, Metrics, RING_BYTES, amount};
use crate::protocol::outcome::{Outcome, Refusal};
use crate::store::{Store, StoreError, Unreadable};
use crate::stream::{EntryId, StreamKey};
use crate::tasks::Tasks;
use crate::wake::Bell;

use backlog::Backlog;
use chunk::Formats;
use dirty::Dirty;
use feed::{Feed, Mark, RingBounds, Watch};
use reader::Reader;

/// All feeds; cloning shares them.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

/// How the reader is doing.
#[derive(Debug, Clone, Copy)]
pub struct Health {
    /// The reader's task runs.
    pub reader_alive: bool,
    /// Redis has answered at least once.
    pub was_up: bool,
    /// Since when Redis has not answered; `None` while it does.
    pub down_since: Option<Instant>,
    /// Changes are pushed by `CLIENT TRACKING`, not polled for.
    pub tracking: bool,
    /// Streams that are being watched.
    pub feeds: usize,
    /// Bytes in all rings.
    pub ring_bytes: usize,
}

/// Why a stream can't be attached to.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AttachError {
    /// The stream is not known yet, and Redis does not answer.
    #[error("redis is unavailable: {0}")]
    Unavailable(String),
    /// The key can't be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl AttachError {
    /// What the client is told.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Unavailable(_) => Refusal::retry(
                Outcome::Overloaded,
                "redis_unavailable",
                Duration::from_secs(2),
            ),
            Self::Unreadable(_) => STREAM_UNREADABLE,
        }
    }
}

/// What the clients of a key that can't be read are told.
pub const STREAM_UNREADABLE: Refusal = Refusal::new(Outcome::Internal, "stream_unreadable");

type Resolution = SharedFuture<BoxFuture<'static, Result<(), AttachError>>>;

struct Shared {
    config: Arc<Config>,
    store: Arc<Store>,
    formats: Formats,
    backlog: Backlog,
    feeds: Mutex<Feeds>,
    dirty: Dirty,
    tasks: Tasks,
    health: Mutex<Health>,
    /// Rung after each train of reads.
    train_done: Arc<Bell>,
    /// Counts the reader's connections.
    connection: AtomicU64,
    ring_bytes: AtomicIsize,
    feeds_gauge: Gauge,
    ring_bytes_gauge: Gauge,
    metrics: Metrics,
}

#[derive(Default)]
struct Feeds {
    known: HashMap<StreamKey, Arc<Feed>>,
    /// Feeds whose tail is being asked for: many clients of one new stream ask once.
    resolving: HashMap<StreamKey, Resolution>,
    /// Keys that could not be read a moment ago.
    refused: HashMap<StreamKey, (Unreadable, Instant)>,
    /// Feeds that the reader has not yet taken into its rotation.
    new: Vec<Arc<Feed>>,
}

/// How long attaches to a key that can't be read are refused without asking again.
const REFUSED_FOR: Duration = Duration::from_secs(5);

impl Hub {
    /// Starts the reader; it connects by itself, and tries again for ever.
    ///
    /// # Errors
    /// The address of Redis can't be used.
    pub fn start(config: Arc<Config>, tasks: &Tasks, metrics: &Metrics) -> anyhow::Result<Self> {
        let store = Arc::new(Store::new(&config.redis, metrics)?);
        let formats = Formats::new(&config.routes, metrics);
        let backlog = Backlog::new(
            store.clone(),
            formats.clone(),
            config.redis.backlog_total,
            tasks,
            metrics,
        );
        let shared = Arc::new(Shared {
            config,
            store,
            formats,
            backlog,
            feeds: Mutex::default(),
            dirty: Dirty::default(),
            tasks: tasks.clone(),
            health: Mutex::new(Health {
                reader_alive: true,
                was_up: false,
                down_since: Some(Instant::now()),
                tracking: false,
                feeds: 0,
                ring_bytes: 0,
            }),
            train_done: Arc::default(),
            connection: AtomicU64::new(0),
            ring_bytes: AtomicIsize::new(0),
            feeds_gauge: metrics.gauge(&FEEDS, &[]),
            ring_bytes_gauge: metrics.gauge(&RING_BYTES, &[]),
            metrics: metrics.clone(),
        });
        tasks.spawn("reader", Reader::new(shared.clone()).run());
        tasks.spawn("hub-upkeep", upkeep(shared.clone()));
        Ok(Self { shared })
    }

    /// Joins the feed of a stream, which is made if there is none: then its tail is asked for.
    ///
    /// # Errors
    /// The tail can't be had within `command_timeout`, or the key can't be read.
    pub async fn attach(&self, key: &StreamKey) -> Result<Watch, AttachError> {
        loop {
            let resolution = {
                let mut feeds = self.shared.feeds();
                if let Some(feed) = feeds.known.get(key) {
                    // Entered under the lock: the reader drops only feeds that nobody has entered.
                    return Ok(feed.enter());
                }
                if let Some(reason) = feeds.refusal(key) {
                    return Err(reason.into());
                }
                let resolving = feeds.resolving.entry(key.clone());
                resolving
                    .or_insert_with(|| self.resolve(key.clone()))
                    .clone()
            };
            // Then it is known, and maybe gone again: it is looked for anew.
            resolution.await?;
        }
    }

    /// Asks in a task of its own: whoever asked may leave, and others wait for the same answer.
    fn resolve(&self, key: StreamKey) -> Resolution {
        let shared = self.shared.clone();
        let resolving = async move {
            let resolved = resolve(&shared, &key).await;
            let mut feeds = shared.feeds();
            feeds.resolving.remove(&key);
            let feed = resolved?;
            feeds.known.insert(key, feed.clone());
            feeds.new.push(feed.clone());
            drop(feeds);
            // Reading the key arms the push for it.
            shared.dirty.mark(&feed, Mark::Asked);
            Ok(())
        };
        let task = self.shared.tasks.spawn("attach", resolving);
        let ended = task.map(|ended| {
            ended.unwrap_or_else(|error| Err(AttachError::Unavailable(error.to_string())))
        });
        ended.boxed().shared()
    }

    /// Asks the reader to read this feed soon.
    pub fn refresh(&self, feed: &Arc<Feed>) {
        self.shared.dirty.mark(feed, Mark::Asked);
    }

    /// Waits until every one of these feeds has been read by a command sent from now on: its
    /// tail is then no older than this call. While Redis is away that lasts.
    pub async fn refreshed(&self, feeds: &[Arc<Feed>]) {
        let mut train_done = self.shared.train_done.listen();
        let sent: Vec<u64> = feeds.iter().map(|feed| feed.reads_sent()).collect();
        feeds.iter().for_each(|feed| self.refresh(feed));
        while !feeds
            .iter()
            .zip(&sent)
            .all(|(feed, sent)| feed.was_read_since(*sent))
        {
            train_done.rung().await;
        }
    }

    /// Entries that the rings no longer hold.
    pub fn backlog(&self) -> &Backlog {
        &self.shared.backlog
    }

    /// All formats.
    pub fn formats(&self) -> &Formats {
        &self.shared.formats
    }

    /// How the reader is doing now.
    pub fn health(&self) -> Health {
        Health {
            feeds: self.shared.feeds().known.len(),
            ring_bytes: self.shared.ring_bytes(),
            ..*self.shared.health()
        }
    }

    /// Keys that are watched, with their tails, sorted by key.
    pub fn tails(&self) -> Vec<(StreamKey, EntryId)> {
        let feeds = self.shared.feeds();
        let mut tails: Vec<_> = feeds
            .known
            .values()
            .map(|feed| (feed.key.clone(), feed.tail()))
            .collect();
        drop(feeds);
        tails.sort();
        tails
    }
}

/// Asks for a stream's tail and makes its feed.
async fn resolve(shared: &Shared, key: &StreamKey) -> Result<Arc<Feed>, AttachError> {
    // The number is read first: a key that was seen missing before a reconnect says nothing after it.
    let connection = shared.connection.load(Ordering::Acquire);
    let info = match shared.store.stream_info(key).await {
        Ok(info) => info,
        Err(StoreError::Unavailable(reason)) => return Err(AttachError::Unavailable(reason)),
        Err(StoreError::Unreadable(reason)) => {
            shared.feeds().refuse(key, reason.clone());
            return Err(reason.into());
        }
    };
    let bounds = RingBounds {
        entries: shared.config.redis.ring_entries,
        bytes: shared.config.redis.ring_bytes,
    };
    let feed = Feed::new(key.clone(), info.as_ref(), connection, bounds);
    Ok(Arc::new(feed))
}

/// What has to happen now and then, whether Redis answers or not.
async fn upkeep(shared: Arc<Shared>) {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        shared.backlog.prune();
        let feeds = {
            let mut feeds = shared.feeds();
            feeds
                .refused
                .retain(|_, (_, since)| since.elapsed() < REFUSED_FOR);
            feeds.known.len()
        };
        shared.feeds_gauge.set(amount(feeds));
        shared.ring_bytes_gauge.set(amount(shared.ring_bytes()));
    }
}

impl Feeds {
    fn refusal(&self, key: &StreamKey) -> Option<Unreadable> {
        let (reason, since) = self.refused.get(key)?;
        (since.elapsed() < REFUSED_FOR).then(|| reason.clone())
    }

    /// Forgets a feed, unless another has taken its place.
    fn remove(&mut self, feed: &Arc<Feed>) {
        if self
            .known
            .get(&feed.key)
            .is_some_and(|known| Arc::ptr_eq(known, feed))
        {
            self.known.remove(&feed.key);
        }
    }

    fn refuse(&mut self, key: &StreamKey, reason: Unreadable) {
        self.refused.insert(key.clone(), (reason, Instant::now()));
    }
}

impl Shared {
    fn feeds(&self) -> MutexGuard<'_, Feeds> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring_bytes(&self) -> usize {
        usize::try_from(self.ring_bytes.load(Ordering::Acquire)).unwrap_or(0)
    }

    fn all_feeds(&self) -> Vec<Arc<Feed>> {
        self.feeds().known.values().cloned().collect()
    }

    /// Lets every feed wait to be read, also those that are marked and in no queue: the end of a
    /// connection may have come between a feed's leaving the queue and its read.
    fn read_all_anew(&self) {
        self.dirty.add_all(&self.all_feeds());
    }

    fn mark_all(&self) {
        for feed in self.all_feeds() {
            self.dirty.mark(&feed, Mark::Asked);
        }
    }
}
