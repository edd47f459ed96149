//! `share = "url"`: clients that need the same snapshot share one callback.
//!
//! The callback runs in a task, so that a client that leaves does not take it away from the
//! others; when the last of those who wait has left, it is aborted. Its result goes to all who
//! wait, and a body is kept for later ones until `share_ttl` after its callback was sent, so
//! that nobody gets a state that is older.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::request::Identity;
use super::{Snapshot, SnapshotError};
use crate::tasks::Tasks;

/// How many bodies of one route are kept, and how many bytes of them; the oldest go first.
const MAX_KEPT: usize = 1_024;
const MAX_KEPT_BYTES: usize = 64 * 1_024 * 1_024;

type Landing = Result<Snapshot, SnapshotError>;
type Arrival = BoxFuture<'static, Landing>;

/// The shared callbacks of one route.
pub(super) struct Shares {
    table: Arc<Mutex<Table>>,
    ttl: Duration,
    tasks: Tasks,
}

/// When a shared callback was sent; empty while it waits for its turn.
#[derive(Clone, Default)]
pub(super) struct Departure(Arc<OnceLock<Instant>>);

impl Departure {
    /// The positions are about to be noted and the callback to be sent.
    pub(super) fn now(&self) {
        self.0.get_or_init(Instant::now);
    }

    fn at(&self) -> Option<Instant> {
        self.0.get().copied()
    }
}

impl Shares {
    pub(super) fn new(ttl: Duration, tasks: &Tasks) -> Self {
        Self {
            table: Arc::default(),
            ttl,
            tasks: tasks.clone(),
        }
    }

    /// Takes a kept body, joins a flight, or leads one of its own.
    pub(super) async fn join<L, F>(
        &self,
        identity: &Arc<Identity>,
        not_before: Option<Instant>,
        lead: L,
    ) -> Landing
    where
        L: FnOnce(Departure) -> F,
        F: Future<Output = Landing> + Send + 'static,
    {
        let flight = {
            let mut table = lock(&self.table);
            if let Some(snapshot) = table.kept(identity, not_before) {
                return Ok(snapshot);
            }
            match table.flight(identity, not_before) {
                Some(flight) => flight,
                None => self.depart(&mut table, identity, lead),
            }
        };
        flight.await
    }

    /// Lists a new flight. Its task starts when it is first waited for, which is not under the
    /// lock: a runtime that shuts down drops a new task at once, and with it what takes the lock.
    fn depart<L, F>(&self, table: &mut Table, identity: &Arc<Identity>, lead: L) -> Shared<Arrival>
    where
        L: FnOnce(Departure) -> F,
        F: Future<Output = Landing> + Send + 'static,
    {
        let departure = Departure::default();
        let listed = Listed {
            table: self.table.clone(),
            identity: identity.clone(),
            number: table.next_number(),
        };
        let (number, ttl, tasks) = (listed.number, self.ttl, self.tasks.clone());
        let call = lead(departure.clone());
        let arrival = async move {
            let task = tasks.spawn("snapshot", async move {
                let landing = call.await;
                listed.land(&landing, ttl);
                landing
            });
            let landing = AbortOnDropHandle::new(task).await;
            landing.unwrap_or(Err(SnapshotError::Interrupted))
        };
        let arrival = arrival.boxed().shared();
        if let Some(weak) = arrival.downgrade() {
            let flight = Flight {
                number,
                departure,
                arrival: weak,
            };
            table.list(identity, flight);
        }
        arrival
    }
}

/// Flights that may be joined, and bodies that may be taken.
#[derive(Default)]
struct Table {
    flights: HashMap<Arc<Identity>, Flight>,
    kept: HashMap<Arc<Identity>, Kept>,
    flights_so_far: u64,
}

struct Flight {
    number: u64,
    departure: Departure,
    /// Held by those who wait, and by nobody else: without them there is no flight.
    arrival: WeakShared<Arrival>,
}

struct Kept {
    snapshot: Snapshot,
    sent: Instant,
    until: Instant,
}

impl Table {
    fn next_number(&mut self) -> u64 {
        self.flights_so_far += 1;
        self.flights_so_far
    }

    fn kept(&self, identity: &Identity, not_before: Option<Instant>) -> Option<Snapshot> {
        let kept = self.kept.get(identity)?;
        let usable = kept.until > Instant::now() && is_in_time(kept.sent, not_before);
        usable.then(|| kept.snapshot.clone())
    }

    fn flight(&self, identity: &Identity, not_before: Option<Instant>) -> Option<Shared<Arrival>> {
        let flight = self.flights.get(identity)?;
        // What has not departed will do so after any gap that was found by now. And it is asked
        // for before it is held: to let go of a flight here, under the lock, could end it.
        let departed = flight.departure.at();
        let usable = departed.is_none_or(|sent| is_in_time(sent, not_before));
        usable.then(|| flight.arrival.upgrade()).flatten()
    }

    /// The newest flight is the one to join, and an older body is not handed out beside it:
    /// whoever refused that body has found a gap after its positions.
    fn list(&mut self, identity: &Arc<Identity>, flight: Flight) {
        self.forget_expired();
        self.kept.remove(identity);
        self.flights.insert(identity.clone(), flight);
    }

    /// Takes a flight out of the list, unless another has its place.
    fn take(&mut self, identity: &Identity, number: u64) -> Option<Flight> {
        let listed = self.flights.get(identity)?.number;
        (listed == number).then(|| self.flights.remove(identity))?
    }

    fn keep(&mut self, identity: &Arc<Identity>, kept: Kept) {
        self.forget_expired();
        self.kept.insert(identity.clone(), kept);
        while self.kept.len() > MAX_KEPT || self.kept_bytes() > MAX_KEPT_BYTES {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.until);
            let Some(oldest) = oldest.map(|(identity, _)| identity.clone()) else {
                return;
            };
            self.kept.remove(&oldest);
        }
    }

    fn kept_bytes(&self) -> usize {
        let sizes = self.kept.values().map(|kept| kept.snapshot.body.len());
        sizes.sum()
    }

    /// Called when a callback starts or lands, so it costs nothing beside it. A route that
    /// nobody asks keeps its last bodies, within the bounds.
    fn forget_expired(&mut self) {
        let now = Instant::now();
        self.kept.retain(|_, kept| kept.until > now);
    }
}

/// A flight's line in the table, taken out however the flight ends.
struct Listed {
    table: Arc<Mutex<Table>>,
    identity: Arc<Identity>,
    number: u64,
}

impl Listed {
    /// Keeps a body for later ones, unless a newer flight has taken this one's place.
    fn land(&self, landing: &Landing, ttl: Duration) {
        let Ok(snapshot) = landing else { return };
        if ttl.is_zero() || snapshot.body.len() > MAX_KEPT_BYTES {
            return;
        }
        let mut table = lock(&self.table);
        let flight = table.take(&self.identity, self.number);
        let Some(sent) = flight.and_then(|flight| flight.departure.at()) else {
            return;
        };
        let kept = Kept {
            snapshot: snapshot.clone(),
            sent,
            until: sent + ttl,
        };
        table.keep(&self.identity, kept);
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.table).take(&self.identity, self.number);
    }
}

fn is_in_time(sent: Instant, not_before: Option<Instant>) -> bool {
    not_before.is_none_or(|earliest| sent >= earliest)
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::poll;
    use hyper::{HeaderMap, Uri};
    use tokio::sync::Semaphore;
    use tokio::time::advance;

    use super::*;
    use crate::snapshot::Callback;
    use crate::stream::{StreamKey, StreamKeys};

    const TTL: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    /// Shares whose callbacks depart at once, and land when they are let.
    struct Fixture {
        shares: Shares,
        tower: Arc<Tower>,
    }

    struct Tower {
        departed: AtomicUsize,
        may_land: Semaphore,
        padding: usize,
    }

    impl Fixture {
        fn new(padding: usize) -> Self {
            Self {
                shares: Shares::new(TTL, &Tasks::default()),
                tower: Arc::new(Tower {
                    departed: AtomicUsize::new(0),
                    may_land: Semaphore::new(0),
                    padding,
                }),
            }
        }

        /// The body's number: how many had departed before.
        async fn join(&self, path: &str, not_before: Option<Instant>) -> String {
            let tower = self.tower.clone();
            let lead = |departure: Departure| async move {
                departure.now();
                let number = tower.departed.fetch_add(1, Ordering::SeqCst);
                tower.may_land.acquire().await.unwrap().forget();
                Ok(snapshot(format!("{number}{}", " ".repeat(tower.padding))))
            };
            let landing = self.shares.join(&identity(path), not_before, lead).await;
            let body = landing.unwrap().body;
            let number = body.split(|byte| *byte == b' ').next().unwrap();
            String::from_utf8(number.to_vec()).unwrap()
        }

        fn let_land(&self, flights: usize) {
            self.tower.may_land.add_permits(flights);
        }

        fn kept(&self) -> usize {
            lock(&self.shares.table).kept.len()
        }

        fn flights(&self) -> usize {
            lock(&self.shares.table).flights.len()
        }
    }

    fn snapshot(body: String) -> Snapshot {
        Snapshot {
            body: body.into(),
            positions: Vec::new(),
            declared: Vec::new(),
        }
    }

    fn identity(path: &str) -> Arc<Identity> {
        let callback = Callback {
            uri: path.parse::<Uri>().unwrap(),
            headers: HeaderMap::new(),
            keys: StreamKeys::new(vec![StreamKey::from("a")]),
        };
        callback.identity()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_kept_for_its_time_from_its_departure() {
        let fixture = Fixture::new(0);
        let mut first = pin!(fixture.join("/", None));
        assert!(poll!(&mut first).is_pending());
        tokio::task::yield_now().await;
        advance(SECOND).await;
        fixture.let_land(2);
        assert_eq!(first.await, "0");
        advance(TTL - SECOND * 2).await;
        assert_eq!(fixture.join("/", None).await, "0");
        advance(SECOND).await;
        assert_eq!(fixture.join("/", None).await, "1");
        assert_eq!((fixture.kept(), fixture.flights()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_from_before_the_gap_is_taken() {
        let fixture = Fixture::new(0);
        let mut old = pin!(fixture.join("/", None));
        assert!(poll!(&mut old).is_pending());
        tokio::task::yield_now().await;
        advance(SECOND).await;

        let gap = Some(Instant::now());
        let mut new = pin!(fixture.join("/", gap));
        assert!(poll!(&mut new).is_pending());
        // Whoever comes now joins the newer one, which departed after this gap too.
        let mut joined = pin!(fixture.join("/", gap));
        assert!(poll!(&mut joined).is_pending());
        fixture.let_land(2);
        assert_eq!(old.await, "0");
        assert_eq!((new.await, joined.await), ("1".into(), "1".into()));
        assert_eq!(fixture.tower.departed.load(Ordering::SeqCst), 2);

        assert_eq!(fixture.join("/", gap).await, "1", "the newer body is kept");
        advance(SECOND).await;
        fixture.let_land(1);
        assert_eq!(fixture.join("/", Some(Instant::now())).await, "2");
        assert_eq!(fixture.join("/", None).await, "2");
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_flight_that_lands_last_keeps_nothing() {
        let fixture = Fixture::new(0);
        let mut old = pin!(fixture.join("/", None));
        assert!(poll!(&mut old).is_pending());
        tokio::task::yield_now().await;
        advance(SECOND).await;
        let mut new = Box::pin(fixture.join("/", Some(Instant::now())));
        assert!(poll!(&mut new).is_pending());
        tokio::task::yield_now().await;
        drop(new);
        tokio::task::yield_now().await;
        assert_eq!(fixture.flights(), 0, "what nobody waits for is not listed");
        fixture.let_land(1);
        assert_eq!(old.await, "0");
        assert_eq!(fixture.kept(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_has_a_bound() {
        let fixture = Fixture::new(0);
        fixture.let_land(MAX_KEPT + 2);
        for path in 0..=MAX_KEPT {
            fixture.join(&format!("/{path}"), None).await;
            advance(Duration::from_millis(1)).await;
        }
        assert_eq!(fixture.kept(), MAX_KEPT);
        let oldest = fixture.join("/0", None).await;
        assert_eq!(oldest, (MAX_KEPT + 1).to_string(), "the oldest went first");

        let fixture = Fixture::new(MAX_KEPT_BYTES / 2 - 1);
        fixture.let_land(4);
        for path in ["/a", "/b", "/c"] {
            fixture.join(path, None).await;
            advance(SECOND).await;
        }
        assert_eq!(fixture.kept(), 2);
        assert_eq!(fixture.join("/c", None).await, "2");
        assert_eq!(fixture.join("/a", None).await, "3");

        let fixture = Fixture::new(MAX_KEPT_BYTES);
        fixture.let_land(1);
        fixture.join("/", None).await;
        assert_eq!(fixture.kept(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn expired_bodies_go_when_another_flight_departs() {
        let fixture = Fixture::new(0);
        fixture.let_land(2);
        for path in ["/a", "/b"] {
            fixture.join(path, None).await;
        }
        advance(TTL).await;
        let mut next = pin!(fixture.join("/c", None));
        assert!(poll!(&mut next).is_pending());
        assert_eq!(fixture.kept(), 0);
    }

    #[tokio::test]
    async fn a_task_that_panics_is_told_to_all_and_forgotten() {
        let fixture = Fixture::new(0);
        let lead = |_: Departure| async { panic!("on purpose") };
        let failed = fixture.shares.join(&identity("/"), None, lead).await;
        assert_eq!(failed.unwrap_err(), SnapshotError::Interrupted);
        assert_eq!(fixture.flights(), 0);
        fixture.let_land(1);
        assert_eq!(fixture.join("/", None).await, "0");
    }
}
