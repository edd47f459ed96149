//! Which feeds are to be read: those that Redis says have changed, and those whose turn it is.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::feed::{Feed, Mark};

/// Feeds waiting for the reader. A feed is in it once at the most, so it is bounded by their number.
#[derive(Default)]
pub(super) struct Dirty {
    queue: Mutex<VecDeque<Arc<Feed>>>,
    added: Notify,
}

impl Dirty {
    /// Asks for a read of this feed.
    pub(super) fn mark(&self, feed: &Arc<Feed>, mark: Mark) {
        if feed.mark(mark) {
            self.lock().push_back(feed.clone());
            self.added.notify_one();
        }
    }

    /// Makes sure that these feeds wait, whatever their marks say.
    pub(super) fn add_all(&self, feeds: &[Arc<Feed>]) {
        let mut queue = self.lock();
        let queued: HashSet<*const Feed> = queue.iter().map(Arc::as_ptr).collect();
        for feed in feeds {
            feed.mark(Mark::Asked);
            if !queued.contains(&Arc::as_ptr(feed)) {
                queue.push_back(feed.clone());
            }
        }
        self.added.notify_one();
    }

    /// Takes feeds out, the longest waiting first; their marks stay until they are read.
    pub(super) fn take(&self, most: usize) -> Vec<Arc<Feed>> {
        let mut queue = self.lock();
        let count = most.min(queue.len());
        queue.drain(..count).collect()
    }

    /// Whether no feed waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Waits until a feed is added; at once if one was added since the last time.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Feed>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Feeds that were published a moment ago: under load their entries gather before the next read.
#[derive(Default)]
pub(super) struct Held {
    feeds: Vec<(Instant, Arc<Feed>)>,
}

impl Held {
    /// Sorts feeds into those that may be read now and those that wait until `hold` after their
    /// last publication. The first entry after a quiet time goes at once.
    pub(super) fn split(&mut self, feeds: Vec<Arc<Feed>>, hold: Duration) -> Vec<Arc<Feed>> {
        let now = Instant::now();
        let mut due = Vec::with_capacity(feeds.len());
        for feed in feeds {
            match feed.published_at().map(|at| at + hold) {
                Some(until) if until > now => self.feeds.push((until, feed)),
                _ => due.push(feed),
            }
        }
        due
    }

    /// Takes those whose time has come.
    pub(super) fn take_due(&mut self) -> Vec<Arc<Feed>> {
        let now = Instant::now();
        let due = self.feeds.extract_if(.., |(until, _)| *until <= now);
        due.map(|(_, feed)| feed).collect()
    }

    /// When the next one's time comes.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.feeds.iter().map(|(until, _)| *until).min()
    }
}

/// Reads every feed once per sweep, spread evenly.
pub(super) struct Sweep {
    rotation: VecDeque<Weak<Feed>>,
    period: Duration,
    swept_at: Instant,
    /// Fractions of a feed that are owed.
    owed: f64,
}

impl Sweep {
    pub(super) fn new(period: Duration) -> Self {
        Self {
            rotation: VecDeque::new(),
            period,
            swept_at: Instant::now(),
            owed: 0.0,
        }
    }

    /// A new feed takes its place at the end.
    pub(super) fn add(&mut self, feed: &Arc<Feed>) {
        self.rotation.push_back(Arc::downgrade(feed));
    }

    /// Feeds whose turn has come since the last call. Those that are gone leave the rotation.
    pub(super) fn due(&mut self) -> Vec<Arc<Feed>> {
        let now = Instant::now();
        let share = (now - self.swept_at).as_secs_f64() / self.period.as_secs_f64();
        self.swept_at = now;
        let count = u32::try_from(self.rotation.len()).unwrap_or(u32::MAX);
        self.owed = (self.owed + f64::from(count) * share).min(f64::from(count));
        let mut due = Vec::new();
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            let Some(next) = self.rotation.pop_front() else {
                break;
            };
            if let Some(feed) = next.upgrade() {
                self.rotation.push_back(next);
                due.push(feed);
            }
        }
        due
    }
}
