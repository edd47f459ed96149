//! Log lines that somebody outside could otherwise multiply.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lets one through per interval, and counts those it holds back.
pub struct Throttle {
    interval: Duration,
    state: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    passed_at: Option<Instant>,
    left_out: u64,
}

impl Throttle {
    /// One per `interval`.
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            state: Mutex::default(),
        }
    }

    /// `Some` with the number of those held back since the last one that passed.
    pub fn pass(&self) -> Option<u64> {
        let mut held = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let too_soon = |at: Instant| at.elapsed() < self.interval;
        if held.passed_at.is_some_and(too_soon) {
            held.left_out += 1;
            return None;
        }
        held.passed_at = Some(Instant::now());
        Some(std::mem::take(&mut held.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn one_passes_per_interval_and_says_how_many_did_not() {
        let throttle = Throttle::new(INTERVAL);
        assert_eq!(throttle.pass(), Some(0));
        assert_eq!(throttle.pass(), None);
        assert_eq!(throttle.pass(), None);
        tokio::time::advance(INTERVAL).await;
        assert_eq!(throttle.pass(), Some(2));
        tokio::time::advance(INTERVAL).await;
        assert_eq!(throttle.pass(), Some(0));
    }
}
