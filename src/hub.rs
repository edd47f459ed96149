//! All feeds, and the reader that fills them.

use std::sync::Arc;

use tokio::time::Instant;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::tasks::Tasks;

/// All feeds; cloning shares them.
#[derive(Clone)]
pub struct Hub {}

/// How the reader is doing.
#[derive(Debug, Clone)]
pub struct Health {
    /// The reader's task runs.
    pub reader_alive: bool,
    /// Redis has answered at least once.
    pub was_up: bool,
    /// Since when Redis has not answered; `None` while it does.
    pub down_since: Option<Instant>,
    /// Changes are pushed by CLIENT TRACKING, not polled for.
    pub tracking: bool,
    pub feeds: usize,
    pub ring_bytes: usize,
}

impl Hub {
    /// Starts the reader; it connects by itself, and tries again for ever.
    pub fn start(_config: Arc<Config>, _tasks: &Tasks, _metrics: &Metrics) -> anyhow::Result<Self> {
        todo!()
    }

    /// How the reader is doing now.
    pub fn health(&self) -> Health {
        todo!()
    }

    /// Keys that are watched, with their tails, sorted by key.
    pub fn tails(&self) -> Vec<(String, String)> {
        todo!()
    }
}
