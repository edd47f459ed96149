//! What all parts of a run share.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{RwLock, watch};

use super::log::Log;
use super::totals::Totals;

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) log: Arc<Log>,
    pub(crate) totals: Totals,
    pub(crate) redis_url: String,
    /// Held while something is added. Who takes all streams away holds it alone.
    pub(crate) adding: RwLock<()>,
    /// Held by who must have an answer from this Redis. Who kills Redis holds it alone.
    pub(crate) answered: RwLock<()>,
    pub(crate) phase: watch::Sender<Phase>,
    /// Where clients connect; `None` while a relay is down.
    relays: Mutex<Vec<Option<SocketAddr>>>,
    first_violation: watch::Sender<Option<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Everything may happen.
    Running,
    /// Faults and publishers have ended: these are the last entries.
    Quiet(Arc<Vec<u64>>),
    Over,
}

impl World {
    pub(crate) fn new(seed: u64, log: Arc<Log>, redis_url: String, relays: usize) -> Self {
        Self {
            seed,
            log,
            totals: Totals::new(),
            redis_url,
            adding: RwLock::default(),
            answered: RwLock::default(),
            phase: watch::channel(Phase::Running).0,
            relays: Mutex::new(vec![None; relays]),
            first_violation: watch::channel(None).0,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        *self.phase.borrow() == Phase::Running
    }

    pub(crate) fn relay_is_at(&self, index: usize, address: Option<SocketAddr>) {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)[index] = address;
    }

    /// The one of this index, or else any that is there.
    pub(crate) fn relay(&self, index: usize) -> Option<SocketAddr> {
        let relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        relays[index].or_else(|| relays.iter().flatten().next().copied())
    }

    /// The run has failed. Only the first violation is told: others may follow from it.
    pub(crate) fn violated(&self, what: String) {
        self.first_violation.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(what);
            }
            is_first
        });
    }

    pub(crate) fn violation(&self) -> watch::Receiver<Option<String>> {
        self.first_violation.subscribe()
    }
}
