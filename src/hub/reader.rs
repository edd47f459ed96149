//! The one reader: its own connection, never blocking, pulling what is dirty.
//!
//! It lives as long as the process. Each connection is one [`Connected::run`]; between two of
//! them it waits and tries again. What it pulls goes on from the positions that the feeds hold.

mod connected;
mod pull;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use super::Shared;
use super::dirty::Sweep;
use super::feed::Mark;
use crate::metrics::{REDIS_RECONNECTS, REDIS_TRACKING, REDIS_UP};
use crate::store::{Push, ReaderConnection, StoreError, Unreadable};
use crate::stream::StreamKey;
use crate::throttle::Throttle;
use connected::Connected;

/// Pulls for all feeds.
pub(super) struct Reader {
    shared: Arc<Shared>,
    /// When Redis last answered.
    answered_at: Instant,
    /// Clients have been told that it does not.
    is_degraded: bool,
    /// Before the next attempt.
    pause: Duration,
    /// Before those after it.
    delays: Delays,
    complaints: Throttle,
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
        // Told from the first moment on, so that an alert sees a Redis that was never there.
        for gauge in [&REDIS_UP, &REDIS_TRACKING] {
            shared.metrics.gauge(gauge, &[]).set(0);
        }
        Self {
            answered_at: Instant::now(),
            is_degraded: false,
            pause: Duration::ZERO,
            delays: delays(),
            complaints: Throttle::new(Duration::from_secs(10)),
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
            let (connection, ended) = self.connect().await;
            let connected_at = Instant::now();
            let down = Connected::new(&mut self, connection, ended).run().await;
            if connected_at.elapsed() >= STABLE {
                self.delays = delays();
            }
            self.pause = self.delays.next().unwrap_or(MAX_DELAY);
            self.note_down(&down);
        }
    }

    /// Connects, however often it takes. Clients hear of it once no command has been answered
    /// for as long as one may take.
    async fn connect(&mut self) -> (ReaderConnection, Arc<Notify>) {
        let attempts =
            attempt_until_connected(&self.shared, self.pause, &mut self.delays, &self.complaints);
        tokio::pin!(attempts);
        let silent = self.answered_at + self.shared.config.redis.command_timeout;
        tokio::select! {
            connected = &mut attempts => return connected,
            () = sleep_until(silent), if !self.is_degraded => {}
        }
        self.is_degraded = true;
        warn!("redis does not answer, clients are told");
        for feed in self.shared.all_feeds() {
            feed.degrade();
        }
        attempts.await
    }

    /// Redis has answered as it should.
    fn note_up(&mut self) {
        self.answered_at = Instant::now();
        if std::mem::take(&mut self.is_degraded) {
            info!("redis answers again");
        }
        let mut health = self.shared.health();
        health.was_up = true;
        health.down_since = None;
        self.shared.metrics.gauge(&REDIS_UP, &[]).set(1);
    }

    fn note_down(&self, down: &Down) {
        if let Some(left_out) = self.complaints.pass() {
            warn!(reason = %down, left_out, "connection to redis lost, connecting again");
        }
        let metrics = &self.shared.metrics;
        metrics.counter(&REDIS_RECONNECTS, &[down.as_str()]).inc();
        metrics.gauge(&REDIS_UP, &[]).set(0);
        let mut health = self.shared.health();
        health.down_since.get_or_insert_with(Instant::now);
        if matches!(down, Down::RoleChanged) {
            self.shared.store.drop_pool();
        }
    }
}

/// A connection, with what is rung when it ends.
async fn attempt_until_connected(
    shared: &Arc<Shared>,
    pause: Duration,
    delays: &mut Delays,
    complaints: &Throttle,
) -> (ReaderConnection, Arc<Notify>) {
    sleep(pause).await;
    loop {
        // One for each attempt: the end of an earlier connection says nothing about this one.
        let ended = Arc::new(Notify::new());
        let connected = shared.store.connect_reader(on_push(shared, &ended)).await;
        match connected {
            Ok(connection) => return (connection, ended),
            Err(error) => {
                if let Some(left_out) = complaints.pass() {
                    warn!(reason = %error, left_out, "redis can't be reached, trying again");
                }
                sleep(delays.next().unwrap_or(MAX_DELAY)).await;
            }
        }
    }
}

type Delays = <ExponentialBuilder as BackoffBuilder>::Backoff;

/// A connection that lived this long was a good one: the next is made without much delay.
const STABLE: Duration = Duration::from_secs(1);
const MIN_DELAY: Duration = Duration::from_millis(10);
/// Short enough that entries flow within a second of Redis' return, with the jitter added.
const MAX_DELAY: Duration = Duration::from_millis(400);

fn delays() -> Delays {
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
    ended: &Arc<Notify>,
) -> impl Fn(Push) + Clone + Send + Sync + 'static {
    let (shared, ended) = (shared.clone(), ended.clone());
    move |push| match push {
        Push::Disconnected => ended.notify_one(),
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
