//! The signal that tells sessions and waiting requests that the relay is draining.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::wake::{Bell, Listener};

/// How far a drain has come. Phases only go forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No drain.
    Serving,
    /// Not ready any more; connections are still accepted and served.
    Announced,
    /// Requests are refused; sessions end at random times in between.
    Ending {
        /// When it began.
        since: Instant,
        /// When the last session is to end.
        until: Instant,
    },
    /// Whatever is left is cut.
    Cut,
}

/// The phase, and a bell that rings when it changes. Cloning shares both.
#[derive(Clone, Default)]
pub struct DrainSignal {
    shared: Arc<Shared>,
}

struct Shared {
    phase: Mutex<Phase>,
    bell: Arc<Bell>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            phase: Mutex::new(Phase::Serving),
            bell: Arc::default(),
        }
    }
}

impl DrainSignal {
    /// Nothing is draining.
    pub fn new() -> Self {
        Self::default()
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.lock()
    }

    /// Whether requests are refused.
    pub fn is_refusing(&self) -> bool {
        self.phase() > Phase::Announced
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

    /// Waits until requests are refused.
    pub async fn refusing(&self) {
        let mut listener = self.listen();
        while !self.is_refusing() {
            listener.rung().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.shared
            .phase
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One session's part in a drain: its own random moment in the window.
pub(super) struct Ending {
    signal: DrainSignal,
    listener: Listener,
    turn: Turn,
    is_cut: bool,
}

enum Turn {
    NotYet,
    At(Pin<Box<Sleep>>),
    Over,
}

impl Ending {
    pub(super) fn new(signal: &DrainSignal) -> Self {
        let mut ending = Self {
            // Before the phase is looked at: a change in between is heard.
            listener: signal.listen(),
            signal: signal.clone(),
            turn: Turn::NotYet,
            is_cut: false,
        };
        ending.look();
        ending
    }

    /// Ready once, when it is this session's turn to end.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.listener.poll_rung(cx).is_ready() {
            self.look();
        }
        let Turn::At(moment) = &mut self.turn else {
            return Poll::Pending;
        };
        ready!(moment.as_mut().poll(cx));
        self.turn = Turn::Over;
        Poll::Ready(())
    }

    /// Ready when whatever is left is cut.
    pub(super) fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.listener.poll_rung(cx).is_ready() {
            self.look();
        }
        match self.is_cut {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    fn look(&mut self) {
        let phase = self.signal.phase();
        self.is_cut = phase == Phase::Cut;
        if let (Phase::Ending { until, .. }, Turn::NotYet) = (phase, &self.turn) {
            let left = until.saturating_duration_since(Instant::now());
            let moment = Instant::now() + left.mul_f64(rand::random_range(0.0..1.0));
            self.turn = Turn::At(Box::pin(sleep_until(moment)));
        }
    }
}
