//! A route as its sessions see it: its config, and everything that they share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tracing::warn;

use super::Presence;
use super::ending::DrainSignal;
use crate::config::{Client, Config, DrainMode, Keepalive, Message, OnError, Route, Slow};
use crate::hub::Hub;
use crate::hub::chunk::FormatId;
use crate::metrics::{
    BYTES_SENT, CLIENT_MESSAGES, CLOSES, CURSORS_MALFORMED, Counter, DELIVERY_LATENCY,
    ENTRIES_CONFLATED, FRAMES_SENT, Gauge, Histogram, Metrics, RESYNCS, SESSION_LAG, SESSIONS,
    SNAPSHOT_CURSORS_IGNORED, TOKEN_RENEWALS,
};
use crate::protocol::encoder::Encoder;
use crate::protocol::{ClientMessage, LossReason};
use crate::snapshot::{SnapshotError, Snapshots};
use crate::tasks::Tasks;
use crate::throttle::Throttle;

/// One route that is being served.
pub struct ServedRoute {
    config: Arc<Config>,
    index: usize,
    hub: Hub,
    format: FormatId,
    encoder: Encoder,
    snapshots: Option<Arc<Snapshots>>,
    drain: DrainSignal,
    meters: Meters,
    present: Arc<AtomicUsize>,
    ignored_cursors: Throttle,
}

impl ServedRoute {
    /// The route at this place of the config.
    pub fn new(
        config: Arc<Config>,
        index: usize,
        hub: &Hub,
        drain: &DrainSignal,
        tasks: &Tasks,
        metrics: &Metrics,
    ) -> Self {
        let route = &config.routes[index];
        let format = hub.formats().find(route);
        let format = format
            .expect("the hub has the formats of all routes of the config that it was started with");
        Self {
            encoder: hub.formats().encoder(format).clone(),
            snapshots: Snapshots::new(route, tasks, metrics),
            meters: Meters::new(&route.name, metrics),
            hub: hub.clone(),
            drain: drain.clone(),
            present: Arc::default(),
            ignored_cursors: Throttle::new(Duration::from_secs(60)),
            format,
            index,
            config,
        }
    }

    /// As configured.
    pub fn route(&self) -> &Route {
        &self.config.routes[self.index]
    }

    /// Its label in logs and metrics.
    pub fn name(&self) -> &str {
        &self.route().name
    }

    /// Its snapshot callbacks, if it has any.
    pub fn snapshots(&self) -> Option<&Arc<Snapshots>> {
        self.snapshots.as_ref()
    }

    /// All feeds.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The signal that ends sessions.
    pub fn drain(&self) -> &DrainSignal {
        &self.drain
    }

    /// Its metrics.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// Counts a session, until it is dropped; `held` is dropped with it.
    pub fn enter(&self, held: impl Send + Sync + 'static) -> Presence {
        Presence::enter(&self.present, &self.meters.sessions, held)
    }

    /// How many sessions there are.
    pub fn present(&self) -> usize {
        self.present.load(Ordering::Acquire)
    }

    pub(super) fn format(&self) -> FormatId {
        self.format
    }

    pub(super) fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    pub(super) fn message(&self) -> &Message {
        &self.route().message
    }

    pub(super) fn slow(&self) -> &Slow {
        &self.route().slow
    }

    pub(super) fn keepalive(&self) -> Keepalive {
        self.config.keepalive
    }

    pub(super) fn client(&self) -> Client {
        self.config.client
    }

    /// What a client may send, in bytes.
    pub fn max_client_message(&self) -> usize {
        self.config.client.max_message
    }

    /// How often a client may send something, in a second.
    pub fn max_client_messages(&self) -> u32 {
        self.config.client.max_messages_per_second
    }

    /// How long the kernel may take no byte before the connection is reset.
    pub fn write_timeout(&self) -> Duration {
        self.slow().write_timeout
    }

    /// Whether a session goes on though there is no snapshot for it. What the API itself has
    /// refused stays refused.
    pub fn goes_on_without(&self, error: &SnapshotError) -> bool {
        let on_error = self
            .route()
            .snapshot
            .as_ref()
            .map(|snapshot| snapshot.on_error);
        on_error == Some(OnError::Stream) && !error.is_refusal_by_api()
    }

    /// A position that the API declared can't be used: counted, and said once a minute.
    pub(super) fn ignore_declared(&self, reason: &str) {
        self.meters.note_ignored_cursor(reason);
        if let Some(left_out) = self.ignored_cursors.pass() {
            warn!(
                route = self.name(),
                reason, left_out, "cursor header of the API ignored"
            );
        }
    }

    pub(super) fn ends_without_close_frame(&self, reason: &str) -> bool {
        reason == "drain" && self.config.drain.mode == DrainMode::Abort
    }
}

/// The route's metrics, fetched once.
pub struct Meters {
    route: String,
    metrics: Metrics,
    sessions: Gauge,
    frames: Counter,
    bytes: Counter,
    latency: Histogram,
    lag: Histogram,
    conflated: Counter,
}

impl Meters {
    fn new(route: &str, metrics: &Metrics) -> Self {
        Self {
            sessions: metrics.gauge(&SESSIONS, &[route]),
            frames: metrics.counter(&FRAMES_SENT, &[route]),
            bytes: metrics.counter(&BYTES_SENT, &[route]),
            latency: metrics.histogram(&DELIVERY_LATENCY, &[route]),
            lag: metrics.histogram(&SESSION_LAG, &[route]),
            conflated: metrics.counter(&ENTRIES_CONFLATED, &[route]),
            route: route.to_owned(),
            metrics: metrics.clone(),
        }
    }

    /// Messages were handed to a client.
    pub fn note_frames(&self, count: usize) {
        self.frames.inc_by(count as u64);
    }

    /// The kernel took bytes.
    pub fn note_bytes(&self, count: usize) {
        self.bytes.inc_by(count as u64);
    }

    /// A session has ended; with 1005 and 1006 where there was no code (RFC 6455 section 7.1.5).
    pub fn note_close(&self, code: u16) {
        let known = matches!(code, 1000..=1014 | 4400..=4499);
        let code = if known {
            code.to_string()
        } else {
            "other".to_owned()
        };
        self.metrics.counter(&CLOSES, &[&self.route, &code]).inc();
    }

    /// A client's cursor was none.
    pub fn note_malformed_cursor(&self) {
        self.metrics
            .counter(&CURSORS_MALFORMED, &[&self.route])
            .inc();
    }

    fn note_ignored_cursor(&self, reason: &str) {
        self.metrics
            .counter(&SNAPSHOT_CURSORS_IGNORED, &[&self.route, reason])
            .inc();
    }

    pub(super) fn note_resync(&self, reason: LossReason) {
        self.metrics
            .counter(&RESYNCS, &[&self.route, reason.as_str()])
            .inc();
    }

    /// A client has brought a fresh token, which was accepted or not.
    pub fn note_renewal(&self, accepted: bool) {
        let outcome = if accepted { "accepted" } else { "refused" };
        self.metrics
            .counter(&TOKEN_RENEWALS, &[&self.route, outcome])
            .inc();
    }

    pub(super) fn note_conflated(&self, entries: usize) {
        self.conflated.inc_by(entries as u64);
    }

    pub(super) fn note_client_message(&self, message: &ClientMessage) {
        self.metrics
            .counter(&CLIENT_MESSAGES, &[&self.route, message.as_str()])
            .inc();
    }

    pub(super) fn note_latency(&self, ms: u64) {
        self.latency
            .observe(Duration::from_millis(ms).as_secs_f64());
    }

    pub(super) fn note_lag(&self, entries: u64) {
        self.lag
            .observe(f64::from(u32::try_from(entries).unwrap_or(u32::MAX)));
    }
}
