//! Every metric, in one table.
//!
//! Labels come from small closed sets (a route's name, an outcome, a reason, a code), never
//! from a key, a subject or anything else that a client chooses. Handles that a hot path
//! needs are fetched once and kept.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use prometheus::{Histogram, IntCounter as Counter, IntGauge as Gauge};

/// One row of the table.
#[derive(Debug)]
pub struct Metric {
    /// The whole name, as Prometheus sees it.
    pub name: &'static str,
    /// What its labels are called; values are given in this order.
    pub labels: &'static [&'static str],
    /// One sentence for people.
    pub help: &'static str,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

/// Seconds, from a fraction of a millisecond to half a minute.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
const ENTRIES: &[f64] = &[
    0.0, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0,
];

macro_rules! table {
    ($($constant:ident = $kind:expr, $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $constant: Metric = Metric {
                name: $name,
                labels: &[$($label),*],
                help: $help,
                kind: $kind,
            };
        )*
        /// All rows.
        pub static ALL: &[&Metric] = &[$(&$constant),*];
    };
}

table! {
    BUILD_INFO = Kind::Gauge, "relay_build_info" ["version"] "Always 1; the version is its label.";
    CONNECTIONS = Kind::Gauge, "relay_connections" [] "Open TCP connections of clients, upgraded or not.";
    CONNECTIONS_LIMIT = Kind::Gauge, "relay_connections_limit" [] "Connections that are possible at once: server.max_connections, or fewer where the limit of open files is too low.";
    SESSIONS = Kind::Gauge, "relay_sessions" ["route"] "Clients that are being served.";
    CONNECTS = Kind::Counter, "relay_connects_total" ["route", "outcome"] "Requests by outcome: accepted, or the reason of the refusal.";
    TLS_FAILURES = Kind::Counter, "relay_tls_handshake_failures_total" ["reason"] "TLS handshakes that failed: closed by the client, out of time, or refused by either side.";
    TLS_RELOADS = Kind::Counter, "relay_tls_reloads_total" ["outcome"] "Times that the certificate's files have changed: loaded, or failed and the old one stays.";
    TLS_UNUSABLE = Kind::Gauge, "relay_tls_certificate_unusable" [] "1 while the certificate's files can't be used and the old one stays.";
    CLOSES = Kind::Counter, "relay_closes_total" ["route", "code"] "Sessions that ended, by close code; 1005 and 1006 as RFC 6455 has them.";
    FRAMES_SENT = Kind::Counter, "relay_frames_sent_total" ["route"] "Messages handed to clients.";
    BYTES_SENT = Kind::Counter, "relay_bytes_sent_total" ["route"] "Bytes to clients that the kernel took; with TLS as they are encrypted.";
    DELIVERY_LATENCY = Kind::Histogram(SECONDS), "relay_delivery_latency_seconds" ["route"] "From the milliseconds of an entry's id to its sending; live entries only.";
    SESSION_LAG = Kind::Histogram(ENTRIES), "relay_session_lag_entries" ["route"] "Entries of a stream that a session has still before it, seen at each batch.";
    RESYNCS = Kind::Counter, "relay_resyncs_total" ["route", "reason"] "Times that continuity was lost and the client was told.";
    ENTRIES_OMITTED = Kind::Counter, "relay_entries_omitted_total" ["reason"] "Entries whose payload could not be sent, by reason; once per entry and format.";
    ENTRIES_CONFLATED = Kind::Counter, "relay_entries_conflated_total" ["route"] "Entries left out for clients that lag, as a newer one of the same key followed.";
    CURSORS_MALFORMED = Kind::Counter, "relay_cursors_malformed_total" ["route"] "Cursors of clients that were no cursor for their route.";
    CLIENT_MESSAGES = Kind::Counter, "relay_client_messages_total" ["route", "kind"] "Messages from clients, by kind.";
    SNAPSHOT_REQUESTS = Kind::Counter, "relay_snapshot_requests_total" ["route", "outcome"] "Snapshot callbacks by outcome; shared ones count once.";
    SNAPSHOT_DURATION = Kind::Histogram(SECONDS), "relay_snapshot_duration_seconds" ["route"] "Duration of snapshot callbacks, with their retries, without the queue.";
    SNAPSHOT_IN_FLIGHT = Kind::Gauge, "relay_snapshot_in_flight" ["route"] "Snapshot callbacks that are waiting for the API.";
    SNAPSHOT_CURSORS_IGNORED = Kind::Counter, "relay_snapshot_cursors_ignored_total" ["route", "reason"] "Cursor headers of the API that could not be used.";
    TOKEN_REJECTIONS = Kind::Counter, "relay_token_rejections_total" ["reason"] "Requests whose token was refused, by reason.";
    TOKEN_RENEWALS = Kind::Counter, "relay_token_renewals_total" ["route", "outcome"] "Fresh tokens on open connections, accepted or refused.";
    JWKS_REFRESHES = Kind::Counter, "relay_jwks_refreshes_total" ["key", "outcome"] "Fetches of a JWKS by outcome; key is its place in the config, from 1.";
    JWKS_LAST_SUCCESS = Kind::Gauge, "relay_jwks_last_success_timestamp_seconds" ["key"] "When a JWKS was last fetched, in seconds from the Unix epoch; 0: never.";
    JWKS_KEYS = Kind::Gauge, "relay_jwks_keys" ["key"] "Keys of a JWKS that can be used.";
    KEY_FILE_RELOADS = Kind::Counter, "relay_key_file_reloads_total" ["outcome"] "Changes of files that hold keys: read, or not usable.";
    KEY_FILE_UNUSABLE = Kind::Gauge, "relay_key_file_unusable" ["key"] "1 while the file of a key can't be used and the old key stays; key is its place in the config, from 1.";
    REDIS_UP = Kind::Gauge, "relay_redis_up" [] "1 while the reader gets answers from Redis.";
    REDIS_RECONNECTS = Kind::Counter, "relay_redis_reconnects_total" ["reason"] "Connections of the reader that were given up, by reason.";
    REDIS_TRACKING = Kind::Gauge, "relay_redis_tracking" [] "1 while changes are pushed by CLIENT TRACKING, 0 while streams are polled.";
    REDIS_COMMANDS = Kind::Counter, "relay_redis_commands_total" ["command"] "Commands sent to Redis.";
    BACKLOG_READS = Kind::Counter, "relay_backlog_reads_total" ["kind"] "Reads of entries older than the ring, by kind.";
    BACKLOG_BYTES = Kind::Gauge, "relay_backlog_bytes" [] "Bytes of backlog pages in memory.";
    FEEDS = Kind::Gauge, "relay_feeds" [] "Streams that are being watched.";
    RING_BYTES = Kind::Gauge, "relay_ring_bytes" [] "Bytes of recent entries in memory, all feeds together.";
    DRAINING = Kind::Gauge, "relay_draining" [] "1 from the start of a drain on.";
}

/// Where metrics are kept; cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    families: Arc<HashMap<&'static str, Family>>,
}

enum Family {
    Counter(IntCounterVec),
    Gauge(IntGaugeVec),
    Histogram(HistogramVec),
}

impl Metrics {
    /// An empty set of every row.
    pub fn new() -> Self {
        let registry = Registry::new();
        let family = |metric: &&'static Metric| {
            let family = Family::register(metric, &registry);
            (metric.name, family.expect(IN_ORDER))
        };
        let metrics = Self {
            families: Arc::new(ALL.iter().map(family).collect()),
            registry,
        };
        metrics
            .gauge(&BUILD_INFO, &[env!("CARGO_PKG_VERSION")])
            .set(1);
        metrics
    }

    /// The counter of this row with these label values.
    pub fn counter(&self, metric: &'static Metric, values: &[&str]) -> Counter {
        match &self.families[metric.name] {
            Family::Counter(family) => family.with_label_values(values),
            Family::Gauge(_) | Family::Histogram(_) => panic!("{} is no counter", metric.name),
        }
    }

    /// The gauge of this row with these label values.
    pub fn gauge(&self, metric: &'static Metric, values: &[&str]) -> Gauge {
        match &self.families[metric.name] {
            Family::Gauge(family) => family.with_label_values(values),
            Family::Counter(_) | Family::Histogram(_) => panic!("{} is no gauge", metric.name),
        }
    }

    /// The histogram of this row with these label values.
    pub fn histogram(&self, metric: &'static Metric, values: &[&str]) -> Histogram {
        match &self.families[metric.name] {
            Family::Histogram(family) => family.with_label_values(values),
            Family::Counter(_) | Family::Gauge(_) => panic!("{} is no histogram", metric.name),
        }
    }

    /// All metrics in the Prometheus text format, version 0.0.4. Rows without a value are left
    /// out.
    pub fn render(&self) -> String {
        let rendered = TextEncoder::new().encode_to_string(&self.registry.gather());
        rendered.expect(IN_ORDER)
    }
}

/// A number of things or bytes, as gauges take it.
pub fn amount(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What every test that starts a relay would find out.
const IN_ORDER: &str = "the rows of the table have names and labels of their own";

impl Family {
    fn register(metric: &Metric, registry: &Registry) -> prometheus::Result<Self> {
        let (name, help, labels) = (metric.name, metric.help, metric.labels);
        Ok(match metric.kind {
            Kind::Counter => {
                let family = IntCounterVec::new(Opts::new(name, help), labels)?;
                registry.register(Box::new(family.clone()))?;
                Self::Counter(family)
            }
            Kind::Gauge => {
                let family = IntGaugeVec::new(Opts::new(name, help), labels)?;
                registry.register(Box::new(family.clone()))?;
                Self::Gauge(family)
            }
            Kind::Histogram(buckets) => {
                let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
                let family = HistogramVec::new(options, labels)?;
                registry.register(Box::new(family.clone()))?;
                Self::Histogram(family)
            }
        })
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
