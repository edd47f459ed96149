//! The signal that tells sessions and waiting requests that the relay is draining.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::wake::{Bell, Listener};

/// How far a drain has come. Phases only go forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No drain.
    Serving,
    /// Not ready any more; connections are still accepted and served.
    Announced,
    /// Requests are refused; sessions end at random times before `until`.
    Ending { since: Instant, until: Instant },
    /// Whatever is left is cut.
    Cut,
}

/// The phase, and a bell that rings when it changes. Cloning shares both.
#[derive(Clone)]
pub struct DrainSignal {
    shared: Arc<Shared>,
}

struct Shared {
    phase: Mutex<Phase>,
    bell: Arc<Bell>,
}

impl DrainSignal {
    /// Nothing is draining.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                phase: Mutex::new(Phase::Serving),
                bell: Arc::default(),
            }),
        }
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.lock()
    }

    /// Goes on to a later phase and wakes every listener; an earlier phase changes nothing.
    pub fn advance(&self, to: Phase) {
        {
            let mut phase = self.lock();
            if to <= *phase {
                return;
            }
            *phase = to;
        }
        self.shared.bell.ring();
    }

    /// Hears of changes from now on.
    pub fn listen(&self) -> Listener {
        self.shared.bell.listen()
    }

    /// Waits until requests are refused: the phase `Ending` or later.
    pub async fn ending(&self) {
        let mut listener = self.listen();
        while self.phase() < Phase::Announced || self.phase() == Phase::Announced {
            listener.rung().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Phase> {
        self.shared
            .phase
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for DrainSignal {
    fn default() -> Self {
        Self::new()
    }
}
