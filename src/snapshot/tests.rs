//! Against a real HTTP server of ours.

mod api;
mod asking;
mod headers;
mod queueing;
mod sharing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::header::HeaderName;
use hyper::{HeaderMap, Method};

use super::{Callback, Snapshot, SnapshotError, Snapshots};
use crate::config::template::{Known, Template, Values};
use crate::config::{
    self, Format, FormatKind, History, Message, OnError, Route, Share, Slow, WhenLagging,
};
use crate::metrics::Metrics;
use crate::stream::{EntryId, StreamKey, StreamKeys};
use crate::tasks::Tasks;
use api::Api;

const ENVELOPE: FormatKind = FormatKind::Envelope { field: None };

/// A route's callbacks, with what a test wants to see of them.
struct Fixture {
    snapshots: Arc<Snapshots>,
    metrics: Metrics,
    tasks: Tasks,
    /// How often positions have been noted.
    noted: Arc<AtomicU64>,
}

impl Fixture {
    fn new(api: &Api, change: impl FnOnce(&mut config::Snapshot)) -> Self {
        Self::with_format(api, ENVELOPE, change)
    }

    fn with_format(
        api: &Api,
        kind: FormatKind,
        change: impl FnOnce(&mut config::Snapshot),
    ) -> Self {
        let mut snapshot = snapshot(&format!("http://{}/state", api.address));
        change(&mut snapshot);
        let (tasks, metrics) = (Tasks::default(), Metrics::new());
        let route = route(snapshot, kind);
        Self {
            snapshots: Snapshots::new(&route, &tasks, &metrics).unwrap(),
            metrics,
            tasks,
            noted: Arc::default(),
        }
    }

    fn callback(&self) -> Callback {
        self.snapshots
            .prepare(&Values::default(), &HeaderMap::new(), &keys(&["a"]))
            .unwrap()
    }

    /// Notes 1-0, 2-0 and so on as the position.
    fn note(&self) -> impl Fn() -> Vec<EntryId> + Send + Sync + 'static {
        let noted = self.noted.clone();
        move || vec![EntryId::new(noted.fetch_add(1, Ordering::SeqCst) + 1, 0)]
    }

    fn noted(&self) -> u64 {
        self.noted.load(Ordering::SeqCst)
    }

    async fn fetch(&self) -> Result<Snapshot, SnapshotError> {
        self.snapshots
            .fetch(&self.callback(), self.note(), None)
            .await
    }

    async fn body(&self) -> Result<String, SnapshotError> {
        let snapshot = self.fetch().await?;
        Ok(String::from_utf8(snapshot.body.to_vec()).unwrap())
    }

    /// The value of this line of the metrics.
    fn metric(&self, line: &str) -> Option<f64> {
        let text = self.metrics.render();
        let value = text.lines().find_map(|l| l.strip_prefix(line))?;
        Some(value.trim().parse().unwrap())
    }

    fn outcome(&self, outcome: &str) -> Option<f64> {
        let name = "relay_snapshot_requests_total";
        self.metric(&format!("{name}{{outcome=\"{outcome}\",route=\"job\"}}"))
    }

    fn in_flight(&self) -> Option<f64> {
        self.metric("relay_snapshot_in_flight{route=\"job\"}")
    }
}

fn snapshot(url: &str) -> config::Snapshot {
    config::Snapshot {
        url: template(url),
        method: Method::GET,
        headers: Vec::new(),
        forward: Vec::new(),
        timeout: Duration::from_secs(5),
        retries: 2,
        max_bytes: 1024,
        max_in_flight: 64,
        queue: Duration::from_secs(5),
        share: Share::None,
        cursor_header: HeaderName::from_static("relay-cursor"),
        on_error: OnError::Close,
    }
}

fn route(snapshot: config::Snapshot, kind: FormatKind) -> Route {
    Route {
        name: "job".to_owned(),
        path: "/ws".to_owned(),
        streams: Vec::new(),
        params: BTreeMap::new(),
        public: false,
        authorize: None,
        history: History::None,
        resume_query: "cursor".to_owned(),
        snapshot: Some(snapshot),
        message: Message {
            format: Format {
                kind,
                max_bytes: 1024,
            },
            control: true,
            snapshot_template: String::new(),
        },
        slow: Slow {
            write_timeout: Duration::from_secs(15),
            max_lag: None,
            then: WhenLagging::Close,
        },
    }
}

fn template(text: &str) -> Template {
    let params = ["job_id".to_owned()];
    let known = Known {
        params: &params,
        claims: true,
    };
    Template::compile(text, &known).unwrap()
}

fn keys(names: &[&str]) -> StreamKeys {
    StreamKeys::new(names.iter().map(|name| StreamKey::from(*name)).collect())
}

fn position(ms: u64) -> Vec<EntryId> {
    vec![EntryId::new(ms, 0)]
}

/// Polls a future once: it has begun, and is not done.
macro_rules! begin {
    ($future:expr) => {
        assert!(
            futures_util::poll!(&mut $future).is_pending(),
            "it is done already"
        )
    };
}
use begin;
