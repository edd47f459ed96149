//! Keys that an issuer publishes: fetched, kept, and fetched anew.
//!
//! One task per set fetches it: at the start, each `refresh`, and for the sake of an unknown key
//! at most once per `cooldown`. Whatever goes wrong with a fetch, the keys of the last good one
//! stay. Nobody is told that a key is unknown before it was looked for: until then the answer
//! is to come back later.

mod fetch;
mod set;
mod unknown;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use jsonwebtoken::Algorithm;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::config;
use crate::metrics::{JWKS_KEYS, JWKS_LAST_SUCCESS, JWKS_REFRESHES, Metrics, amount};
use crate::tasks::Tasks;
use crate::throttle::Throttle;
pub use fetch::JwksError;
pub(super) use set::SetKey;
use set::{Fitting, KeySet};
use unknown::UnknownKids;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(60);
/// How often a set that can't be fetched is complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

const OK: &str = "ok";

/// One set; cloning shares it.
#[derive(Clone)]
pub(super) struct Jwks {
    shared: Arc<Shared>,
}

struct Shared {
    config: config::Jwks,
    algorithms: Vec<Algorithm>,
    state: watch::Sender<State>,
    /// A fetch is asked for.
    wanted: Notify,
    /// When one was last asked for.
    asked_at: Mutex<Option<Instant>>,
    unknown: UnknownKids,
    complaints: Throttle,
    /// Its place in the config, from 1: a label.
    place: String,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    set: Option<Arc<KeySet>>,
    /// When the fetch began that brought the set.
    fetched_at: Option<Instant>,
    is_fetching: bool,
    /// The last fetch went wrong.
    is_failing: bool,
    /// Fetches that have ended, well or not.
    ended: u64,
}

/// What there is for a token now.
pub(super) enum Lookup {
    /// Each of these may have signed it.
    Keys(Vec<Arc<SetKey>>),
    /// It has no kid, and several keys could have signed it.
    Undecided,
    /// No key that is known can have signed it.
    Nothing,
}

/// What is known after looking for a key anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    /// A set that was fetched since the key was first asked for is there.
    Since,
    /// There is no such set yet.
    NotYet,
}

impl Jwks {
    /// A set without keys; `index` is its place among the keys of the config.
    pub(super) fn new(
        config: &config::Jwks,
        algorithms: &[Algorithm],
        index: usize,
        metrics: &Metrics,
    ) -> Self {
        let place = (index + 1).to_string();
        for outcome in [OK].iter().chain(&JwksError::LABELS) {
            let counter = metrics.counter(&JWKS_REFRESHES, &[&place, outcome]);
            counter.inc_by(0);
        }
        metrics.gauge(&JWKS_LAST_SUCCESS, &[&place]).set(0);
        metrics.gauge(&JWKS_KEYS, &[&place]).set(0);
        let shared = Shared {
            config: config.clone(),
            algorithms: algorithms.to_owned(),
            state: watch::Sender::default(),
            wanted: Notify::new(),
            asked_at: Mutex::default(),
            unknown: UnknownKids::default(),
            complaints: Throttle::new(COMPLAIN_EVERY),
            place,
            metrics: metrics.clone(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Fetches the set for as long as the process lives, in a task of `tasks`.
    pub(super) fn start(&self, tasks: &Tasks) {
        // From the first moment on, so that a client that is there first waits for it.
        self.shared
            .state
            .send_modify(|state| state.is_fetching = true);
        tasks.spawn("jwks", self.shared.clone().keep());
    }

    /// Fetches it once. Says how many keys can be used and how many can't.
    pub(super) async fn fetch_once(&self) -> Result<(usize, usize), JwksError> {
        self.shared.refresh().await?;
        let state = self.shared.state.borrow();
        let set = state.set.as_ref();
        Ok(set.map_or((0, 0), |set| (set.len(), set.skipped)))
    }

    /// Host and port of its endpoint.
    pub(super) fn authority(&self) -> &str {
        self.shared.config.authority()
    }

    /// Whether it was ever fetched.
    pub(super) fn is_there(&self) -> bool {
        self.shared.state.borrow().set.is_some()
    }

    /// What there is now for a token of this kid and algorithm.
    pub(super) fn lookup(&self, kid: Option<&str>, algorithm: Algorithm) -> Lookup {
        let state = self.shared.state.borrow();
        let Some(set) = &state.set else {
            return Lookup::Nothing;
        };
        match set.fitting(kid, algorithm) {
            Fitting::Keys(keys) => {
                let keys = keys.iter().filter(|key| key.key.verifies(algorithm));
                Lookup::Keys(keys.cloned().collect())
            }
            Fitting::UnknownKid | Fitting::Unnamed { candidates: 0 } => Lookup::Nothing,
            Fitting::Unnamed { .. } => Lookup::Undecided,
        }
    }

    /// Looks for a key that is not there: waits for the fetch under way, or for one of its own
    /// if the cooldown allows it. A fetch that began before the key was asked for may miss it:
    /// then it is worth asking again.
    pub(super) async fn look_for(&self, kid: Option<&str>) -> Looked {
        let shared = &self.shared;
        let since = shared.unknown.asked_since(kid);
        let mut state = shared.state.subscribe();
        let (ended, is_fetching) = {
            let state = state.borrow();
            (state.ended, state.is_fetching)
        };
        if is_fetching || shared.ask() {
            // The sender is in `shared`: it can't be gone.
            state.wait_for(|state| state.ended > ended).await.ok();
        }
        match shared.state.borrow().has_looked(since) {
            true => Looked::Since,
            false => Looked::NotYet,
        }
    }
}

impl State {
    fn has_looked(&self, since: Instant) -> bool {
        self.fetched_at.is_some_and(|at| at >= since)
    }
}

impl Shared {
    /// Asks for a fetch, unless that was done within the cooldown.
    fn ask(&self) -> bool {
        let mut asked_at = self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
        if asked_at.is_some_and(|at| at.elapsed() < self.config.cooldown) {
            return false;
        }
        *asked_at = Some(Instant::now());
        self.wanted.notify_one();
        true
    }

    async fn keep(self: Arc<Self>) {
        let mut pauses = backoff(self.config.refresh);
        loop {
            let pause = match self.refresh().await {
                Ok(()) => {
                    pauses = backoff(self.config.refresh);
                    jittered(self.config.refresh)
                }
                Err(error) => {
                    self.complain(&error);
                    pauses.next().unwrap_or(LAST_BACKOFF)
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.wanted.notified() => {}
            }
        }
    }

    async fn refresh(&self) -> Result<(), JwksError> {
        self.state.send_modify(|state| state.is_fetching = true);
        let began = Instant::now();
        let fetched = fetch::fetch(&self.config, &self.algorithms).await;
        self.count(&fetched);
        let fetched = fetched.map(Arc::new);
        let (before, was_failing) = {
            let state = self.state.borrow();
            (state.set.clone(), state.is_failing)
        };
        self.state.send_modify(|state| {
            state.is_fetching = false;
            state.is_failing = fetched.is_err();
            state.ended += 1;
            if let Ok(set) = &fetched {
                state.set = Some(set.clone());
                state.fetched_at = Some(began);
            }
        });
        let set = fetched?;
        let (added, removed) = set.changes(before.as_deref());
        if added + removed > 0 || was_failing {
            info!(
                key = self.place,
                issuer = self.config.authority(),
                keys = set.len(),
                added,
                removed,
                unusable = set.skipped,
                "the JWKS is fetched"
            );
        }
        Ok(())
    }

    fn count(&self, fetched: &Result<KeySet, JwksError>) {
        let outcome = fetched.as_ref().map_or_else(JwksError::label, |_| OK);
        let labels = [self.place.as_str(), outcome];
        self.metrics.counter(&JWKS_REFRESHES, &labels).inc();
        let Ok(set) = fetched else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let labels = [self.place.as_str()];
        let gauge = self.metrics.gauge(&JWKS_LAST_SUCCESS, &labels);
        gauge.set(now.unwrap_or_default().as_secs().cast_signed());
        let keys = self.metrics.gauge(&JWKS_KEYS, &labels);
        keys.set(amount(set.len()));
    }

    fn complain(&self, error: &JwksError) {
        if let Some(left_out) = self.complaints.pass() {
            let has_keys = self.state.borrow().set.is_some();
            warn!(
                key = self.place,
                issuer = self.config.authority(),
                %error,
                has_keys,
                left_out,
                "the JWKS can't be fetched: keys that are known stay, others have to wait"
            );
        }
    }
}

/// Never longer than what is between two fetches when all is well.
fn backoff(refresh: Duration) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(FIRST_BACKOFF)
        .with_max_delay(LAST_BACKOFF.min(refresh))
        .without_max_times()
        .with_jitter()
        .with_jitter_seed(rand::random())
        .build()
}

/// A tenth less or more, so that many relays don't ask at once.
fn jittered(refresh: Duration) -> Duration {
    refresh.mul_f64(rand::random_range(0.9..1.1))
}
