//! One drain, however often it is asked for.
//!
//! The timetable: not ready at once; after `drain.delay` requests are refused and sessions end
//! at random times within `drain.window`; after `drain.grace` whatever is left is cut.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use crate::config;
use crate::metrics::{DRAINING, Gauge, Metrics};
use crate::session::ending::{DrainSignal, Phase};
use crate::tasks::Tasks;

/// How long tasks may take to end once they are cut.
const AFTER_CUT: Duration = Duration::from_secs(3);

/// Starts the drain, joins it, cuts it short, waits for its end. Cloning shares it.
#[derive(Clone)]
pub struct Drain {
    shared: Arc<Shared>,
}

struct Shared {
    times: config::Drain,
    signal: DrainSignal,
    clients: Tasks,
    own: Tasks,
    started: AtomicBool,
    gauge: Gauge,
}

/// Tasks that did not end although they were cut.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftBehind(BTreeMap<&'static str, usize>);

impl std::error::Error for LeftBehind {}

impl fmt::Display for LeftBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tasks that would not end:")?;
        for (name, count) in &self.0 {
            write!(f, " {name} ({count})")?;
        }
        Ok(())
    }
}

impl Drain {
    /// A drain that has not begun, of the tasks in `clients`. Its own task is one of `own`.
    pub fn new(times: config::Drain, clients: Tasks, own: Tasks, metrics: &Metrics) -> Self {
        let gauge = metrics.gauge(&DRAINING, &[]);
        gauge.set(0);
        Self {
            shared: Arc::new(Shared {
                times,
                signal: DrainSignal::new(),
                clients,
                own,
                started: AtomicBool::new(false),
                gauge,
            }),
        }
    }

    /// The signal that everybody who must end listens to.
    pub fn signal(&self) -> &DrainSignal {
        &self.shared.signal
    }

    /// Starts the drain. If it was started before, this changes nothing.
    pub fn start(&self) {
        if self.shared.started.swap(true, Ordering::SeqCst) {
            return;
        }
        self.shared.gauge.set(1);
        self.shared.signal.advance(Phase::Announced);
        let times = self.shared.times;
        info!(
            delay = ?times.delay, window = ?times.window, grace = ?times.grace,
            "draining: not ready from now on"
        );
        let shared = self.shared.clone();
        self.shared.own.spawn("drain", shared.keep_timetable());
    }

    /// Cuts whatever is left, whether the drain was started or not.
    pub fn cut(&self) {
        self.shared.started.store(true, Ordering::SeqCst);
        self.shared.gauge.set(1);
        self.shared.signal.advance(Phase::Cut);
    }

    /// Waits until nothing of the clients is left: at once, if the drain has ended long ago.
    /// Never returns before a drain has begun to refuse requests.
    pub async fn finished(&self) -> Result<(), LeftBehind> {
        let shared = &self.shared;
        shared.signal.refusing().await;
        tokio::select! {
            () = shared.clients.wait() => Ok(()),
            () = async { cut(&shared.signal).await; sleep(AFTER_CUT).await } => {
                Err(LeftBehind(shared.clients.running()))
            }
        }
    }

    /// The longest that a drain takes, from its start to its end.
    pub fn longest(&self) -> Duration {
        let times = &self.shared.times;
        times.delay + times.window + times.grace + AFTER_CUT
    }
}

impl Shared {
    async fn keep_timetable(self: Arc<Self>) {
        sleep(self.times.delay).await;
        let since = Instant::now();
        let until = since + self.times.window;
        info!(
            tasks = self.count(),
            "refusing requests and ending sessions"
        );
        self.signal.advance(Phase::Ending { since, until });
        tokio::select! {
            () = self.clients.wait() => {
                info!(took = ?since.elapsed(), "all sessions have ended");
                return;
            }
            () = sleep_until(until + self.times.grace) => {}
        }
        warn!(
            tasks = self.count(),
            "the drain has taken its time: cutting what is left"
        );
        self.signal.advance(Phase::Cut);
    }

    fn count(&self) -> usize {
        self.clients.running().values().sum()
    }
}

/// Waits until whatever is left is to be cut.
pub async fn cut(signal: &DrainSignal) {
    let mut listener = signal.listen();
    while signal.phase() != Phase::Cut {
        listener.rung().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const DELAY: Duration = Duration::from_secs(3);
    const WINDOW: Duration = Duration::from_secs(12);
    const GRACE: Duration = Duration::from_secs(5);
    const TICK: Duration = Duration::from_millis(1);

    fn drain(clients: &Tasks) -> Drain {
        let times = config::Drain {
            delay: DELAY,
            window: WINDOW,
            grace: GRACE,
            mode: config::DrainMode::Close,
        };
        Drain::new(times, clients.clone(), Tasks::default(), &Metrics::new())
    }

    /// A session that ends when its drain has come to this phase.
    fn session(clients: &Tasks, drain: &Drain, ends: fn(Phase) -> bool) {
        let signal = drain.signal().clone();
        clients.spawn("session", async move {
            let mut listener = signal.listen();
            while !ends(signal.phase()) {
                listener.rung().await;
            }
        });
    }

    #[tokio::test(start_paused = true)]
    async fn phases_follow_the_timetable() {
        let clients = Tasks::default();
        let drain = drain(&clients);
        session(&clients, &drain, |phase| phase == Phase::Cut);
        let began = Instant::now();
        let signal = drain.signal();
        assert_eq!(signal.phase(), Phase::Serving);

        drain.start();
        assert_eq!(signal.phase(), Phase::Announced);

        signal.refusing().await;
        let since = began + DELAY;
        let until = since + WINDOW;
        assert_eq!(Instant::now(), since);
        assert_eq!(signal.phase(), Phase::Ending { since, until });

        cut(signal).await;
        assert_eq!(Instant::now(), until + GRACE);
        assert_eq!(drain.finished().await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn asking_again_joins() {
        let clients = Tasks::default();
        let drain = drain(&clients);
        session(&clients, &drain, |phase| phase == Phase::Cut);
        let began = Instant::now();
        drain.start();
        sleep(DELAY * 2).await;
        let phase = drain.signal().phase();
        drain.start();
        assert_eq!(drain.signal().phase(), phase);
        cut(drain.signal()).await;
        assert_eq!(began.elapsed(), DELAY + WINDOW + GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_finished_with_the_last_session() {
        let clients = Tasks::default();
        let drain = drain(&clients);
        session(&clients, &drain, |phase| phase > Phase::Announced);
        let began = Instant::now();
        drain.start();
        assert_eq!(drain.finished().await, Ok(()));
        assert!(began.elapsed() < DELAY + TICK * 10);
        // Whoever asks later is answered at once.
        assert_eq!(drain.finished().await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_was_not_asked_for_never_finishes() {
        let clients = Tasks::default();
        let drain = drain(&clients);
        let hour = Duration::from_secs(3600);
        assert!(timeout(hour, drain.finished()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn cutting_skips_the_rest() {
        let clients = Tasks::default();
        let drain = drain(&clients);
        session(&clients, &drain, |phase| phase == Phase::Cut);
        let began = Instant::now();
        drain.start();
        drain.cut();
        assert_eq!(drain.finished().await, Ok(()));
        assert!(began.elapsed() < TICK * 10);
        sleep(DELAY * 2).await;
        assert_eq!(drain.signal().phase(), Phase::Cut);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_is_named() {
        let clients = Tasks::default();
        let drain = drain(&clients);
        session(&clients, &drain, |_| false);
        drain.start();
        let left = drain.finished().await.unwrap_err();
        assert_eq!(left.to_string(), "tasks that would not end: session (1)");
    }
}
