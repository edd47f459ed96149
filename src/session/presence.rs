//! A session counts as present until it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::metrics::Gauge;

/// Undone by dropping it, whichever way the session ends.
pub struct Presence {
    count: Arc<AtomicUsize>,
    gauge: Gauge,
    /// Whatever else is held for the session's life, such as the connection's permit.
    _held: Box<dyn Send + Sync>,
}

impl Presence {
    /// Counts one more.
    pub fn enter(
        count: &Arc<AtomicUsize>,
        gauge: &Gauge,
        held: impl Send + Sync + 'static,
    ) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        gauge.inc();
        Self {
            count: count.clone(),
            gauge: gauge.clone(),
            _held: Box::new(held),
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.gauge.dec();
    }
}
