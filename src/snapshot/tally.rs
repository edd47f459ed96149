//! What operators learn of a route's callbacks: metrics, and a log that a failing API can't flood.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::SnapshotError;
use crate::metrics::{
    Counter, Gauge, Histogram, Metrics, SNAPSHOT_CURSORS_IGNORED, SNAPSHOT_DURATION,
    SNAPSHOT_IN_FLIGHT, SNAPSHOT_REQUESTS,
};
use crate::throttle::Throttle;

const OK: &str = "ok";
/// The API said 401, 403 or 404.
const REFUSED: &str = "refused";
/// Everybody who waited for it has left.
const ABANDONED: &str = "abandoned";

const BETWEEN_FAILURES: Duration = Duration::from_secs(10);
const BETWEEN_CURSORS: Duration = Duration::from_secs(60);

/// Counts and logs the callbacks of one route.
pub(super) struct Tally {
    route: String,
    metrics: Metrics,
    duration: Histogram,
    in_flight: Gauge,
    unknown_streams: Counter,
    failures: Throttle,
    cursors: Throttle,
}

impl Tally {
    pub(super) fn new(route: &str, metrics: &Metrics) -> Self {
        for outcome in [OK, REFUSED, ABANDONED]
            .into_iter()
            .chain(SnapshotError::FAILURES)
        {
            metrics
                .counter(&SNAPSHOT_REQUESTS, &[route, outcome])
                .inc_by(0);
        }
        let unknown_streams = [route, "unknown_stream"];
        Self {
            route: route.to_owned(),
            metrics: metrics.clone(),
            duration: metrics.histogram(&SNAPSHOT_DURATION, &[route]),
            in_flight: metrics.gauge(&SNAPSHOT_IN_FLIGHT, &[route]),
            unknown_streams: metrics.counter(&SNAPSHOT_CURSORS_IGNORED, &unknown_streams),
            failures: Throttle::new(BETWEEN_FAILURES),
            cursors: Throttle::new(BETWEEN_CURSORS),
        }
    }

    /// A callback is about to be sent.
    pub(super) fn sent(&self) -> Sent<'_> {
        self.in_flight.inc();
        Sent {
            tally: self,
            at: Instant::now(),
            outcome: ABANDONED,
        }
    }

    /// A callback did not get its turn.
    pub(super) fn not_sent(&self, error: &SnapshotError) {
        self.count(error.reason());
        self.complain(error);
    }

    /// The API's cursor headers named so many streams that the route does not have.
    pub(super) fn cursors_of_unknown_streams(&self, count: u64) {
        if count == 0 {
            return;
        }
        self.unknown_streams.inc_by(count);
        if let Some(left_out) = self.cursors.pass() {
            let route = &self.route;
            warn!(
                route,
                left_out, "a cursor header of the API names no stream of its route"
            );
        }
    }

    fn count(&self, outcome: &str) {
        self.metrics
            .counter(&SNAPSHOT_REQUESTS, &[&self.route, outcome])
            .inc();
    }

    fn complain(&self, error: &SnapshotError) {
        let (route, reason) = (&self.route, error.reason());
        if error.is_refusal_by_api() {
            debug!(route, reason, "the API refused a client");
        } else if let Some(left_out) = self.failures.pass() {
            warn!(route, reason, %error, left_out, "snapshot callback failed");
        }
    }
}

/// A callback that is with the API. However it ends, it is counted and timed.
pub(super) struct Sent<'a> {
    tally: &'a Tally,
    at: Instant,
    outcome: &'static str,
}

impl Sent<'_> {
    pub(super) fn answered<T>(mut self, answer: &Result<T, SnapshotError>) {
        self.outcome = match answer {
            Ok(_) => OK,
            Err(error) if error.is_refusal_by_api() => REFUSED,
            Err(error) => error.reason(),
        };
        if let Err(error) = answer {
            self.tally.complain(error);
        }
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.tally.in_flight.dec();
        self.tally.duration.observe(self.at.elapsed().as_secs_f64());
        self.tally.count(self.outcome);
    }
}
