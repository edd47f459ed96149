//! How many control frames a client may send.

use crate::session::rate::MessageRate;

/// So many pings a second hurt nobody, however few messages a client may send.
const ALWAYS_ALLOWED: u32 = 10;

/// The pings and pongs of a client: as many a second as messages, and counted apart from them.
/// A pong that answers a ping of ours is not counted.
pub(super) struct ControlRate {
    rate: MessageRate,
    /// Pings of ours whose pong may still come.
    unanswered: u32,
}

impl ControlRate {
    pub(super) fn new(max_messages_per_second: u32) -> Self {
        Self {
            rate: MessageRate::new(max_messages_per_second.max(ALWAYS_ALLOWED)),
            unanswered: 0,
        }
    }

    /// A ping of ours is on its way.
    pub(super) fn note_ping(&mut self) {
        self.unanswered = self.unanswered.saturating_add(1);
    }

    pub(super) fn allows_ping(&mut self) -> bool {
        self.rate.allows()
    }

    pub(super) fn allows_pong(&mut self) -> bool {
        if self.unanswered > 0 {
            self.unanswered -= 1;
            return true;
        }
        self.rate.allows()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_are_free_and_the_rest_is_bounded() {
        let mut control = ControlRate::new(1);
        for _ in 0..1_000 {
            control.note_ping();
        }
        assert!((0..1_000).all(|_| control.allows_pong()));
        assert!((0..ALWAYS_ALLOWED).all(|_| control.allows_ping()));
        assert!(!control.allows_ping());
        assert!(!control.allows_pong());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!((0..ALWAYS_ALLOWED).all(|_| control.allows_pong()));
        assert!(!control.allows_pong());
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_as_messages() {
        let mut control = ControlRate::new(50);
        assert!((0..50).all(|_| control.allows_ping()));
        assert!(!control.allows_ping());
    }
}
