//! What a run has shown, as JSON.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::clients::Found;
use super::marker::now_ns;
use super::options::Options;
use super::process::{Machine, Usage};
use super::tally::Tally;

/// All counters at one time.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) at_ns: u64,
    server: Usage,
    redis: Usage,
    load: Usage,
    machine: Machine,
    delivered: u64,
    bytes: u64,
    reads: u64,
    ready: u64,
    failed: u64,
    lost: u64,
    last_ready_ns: u64,
    published: u64,
}

pub(crate) struct Report {
    pub(crate) options: Arc<Options>,
    pub(crate) before: Moment,
    pub(crate) connected: Moment,
    /// What is measured lies between these.
    pub(crate) span: (Moment, Moment),
    pub(crate) after: Moment,
    /// By how much the most belated entry came after its time.
    pub(crate) late_s: f64,
    pub(crate) found: Found,
}

impl Moment {
    pub(crate) fn now(options: &Options, tally: &Tally) -> Self {
        let published = tally.published.iter();
        Self {
            at_ns: now_ns(),
            server: Usage::of(options.server_pid),
            redis: Usage::of(options.redis_pid),
            load: Usage::of_us(),
            machine: Machine::now(),
            delivered: tally.delivered.load(Ordering::Relaxed),
            bytes: tally.bytes.load(Ordering::Relaxed),
            reads: tally.reads.load(Ordering::Relaxed),
            ready: tally.ready.load(Ordering::Relaxed),
            failed: tally.failed.load(Ordering::Relaxed),
            lost: tally.lost.load(Ordering::Relaxed),
            last_ready_ns: tally.last_ready_ns.load(Ordering::Relaxed),
            published: published
                .map(|entries| entries.load(Ordering::Relaxed))
                .sum(),
        }
    }
}

impl Report {
    pub(crate) fn json(&self) -> Value {
        let (from, to) = &self.span;
        let seconds = to.at_ns.saturating_sub(from.at_ns) as f64 / 1e9;
        let per_second = |amount: f64| ratio(amount, seconds);
        let deliveries = (to.delivered - from.delivered) as f64;
        let server_s = to.server.cpu_s - from.server.cpu_s;
        let redis_s = to.redis.cpu_s - from.redis.cpu_s;
        let load_s = to.load.cpu_s - from.load.cpu_s;
        let busy_s = to.machine.busy_s - from.machine.busy_s;
        // A process that is reaped during a look may be counted twice, or not at all.
        let most_s = to.machine.cpus as f64 * seconds;
        let others_s = (busy_s - server_s - redis_s - load_s).clamp(0.0, most_s);
        json!({
            "clients": self.options.clients,
            "streams": self.options.streams(),
            "payload_bytes": self.options.payload,
            "seconds": rounded(seconds),
            "published_per_s": per_second((to.published - from.published) as f64),
            "publisher_late_ms": rounded(self.late_s * 1e3),
            "deliveries": deliveries,
            "deliveries_per_s": per_second(deliveries),
            "deliveries_per_read": ratio(deliveries, (to.reads - from.reads) as f64),
            "bytes_per_delivery": ratio((to.bytes - from.bytes) as f64, deliveries),
            "server_cpu_s": rounded(server_s),
            "server_cpu_s_per_million": ratio(server_s * 1e6, deliveries),
            "server_cores": per_second(server_s),
            "redis_cores": per_second(redis_s),
            "load_cores": per_second(load_s),
            "other_cores": per_second(others_s),
            "steal_cores": per_second(to.machine.steal_s - from.machine.steal_s),
            "latency_ms": self.latency(),
            "connect": self.connect(),
            "rss": self.rss(),
            "wrong": self.wrong(),
            "ends": self.found.ends,
        })
    }

    fn latency(&self) -> Value {
        let latency = &self.found.latency_us;
        if latency.is_empty() {
            return Value::Null;
        }
        let ms = |quantile| rounded(latency.value_at_quantile(quantile) as f64 / 1e3);
        json!({ "p50": ms(0.5), "p99": ms(0.99), "p999": ms(0.999), "max": ms(1.0) })
    }

    fn connect(&self) -> Value {
        let (before, connected) = (&self.before, &self.connected);
        let seconds = connected.last_ready_ns.saturating_sub(before.at_ns) as f64 / 1e9;
        json!({
            "ready": connected.ready,
            "seconds": rounded(seconds),
            "per_s": ratio(connected.ready as f64, seconds),
        })
    }

    /// Bytes; per client what is more than before anybody was there.
    fn rss(&self) -> Value {
        let before = self.before.server.rss_bytes;
        let per_client = |rss: u64| ratio(rss as f64 - before as f64, self.connected.ready as f64);
        json!({
            "before": before,
            "connected": self.connected.server.rss_bytes,
            "after": self.after.server.rss_bytes,
            "per_client_connected": per_client(self.connected.server.rss_bytes),
            "per_client_after": per_client(self.after.server.rss_bytes),
        })
    }

    /// All of it is to be zero.
    fn wrong(&self) -> Value {
        json!({
            "gaps": self.found.gaps,
            "repeated": self.found.repeated,
            "reordered": self.found.late,
            "misrouted": self.found.misrouted,
            "missing_at_end": self.found.missing_at_end,
            "failed": self.after.failed,
            "lost": self.after.lost,
            "never_tried": self.options.clients as u64 - self.after.ready - self.after.failed,
        })
    }
}

/// `null` where there is nothing to divide by.
fn ratio(amount: f64, by: f64) -> Value {
    if by > 0.0 {
        json!(rounded(amount / by))
    } else {
        Value::Null
    }
}

/// Four digits are more than any of this is good for.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
