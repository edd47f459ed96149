//! What the threads tell each other while a load runs.

use std::sync::atomic::{AtomicBool, AtomicU64};

pub(crate) struct Tally {
    /// Entries by stream.
    pub(crate) published: Vec<AtomicU64>,
    /// Entries that clients have, repeated ones not counted.
    pub(crate) delivered: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) ready: AtomicU64,
    /// Never became ready.
    pub(crate) failed: AtomicU64,
    /// Ended after they were ready.
    pub(crate) lost: AtomicU64,
    /// When the last client was ready, by `now_ns`.
    pub(crate) last_ready_ns: AtomicU64,
    /// When the last client had the whole history.
    pub(crate) last_whole_ns: AtomicU64,
    /// Entries added before are not measured.
    pub(crate) measured_from_ns: AtomicU64,
    pub(crate) stop: AtomicBool,
}

impl Tally {
    pub(crate) fn new(streams: usize) -> Self {
        Self {
            published: (0..streams).map(|_| AtomicU64::new(0)).collect(),
            delivered: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            ready: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            last_ready_ns: AtomicU64::new(0),
            last_whole_ns: AtomicU64::new(0),
            measured_from_ns: AtomicU64::new(u64::MAX),
            stop: AtomicBool::new(false),
        }
    }
}
