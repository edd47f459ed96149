//! How many of something a second.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may come at once after a quiet time is what may come in this time.
const BURST: Duration = Duration::from_secs(1);

/// Lets so many through each second (a token bucket that holds one second's worth).
pub(super) struct Pace {
    interval: Duration,
    /// When the bucket is full again.
    full_at: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            interval: BURST / per_second,
            full_at: Mutex::new(Instant::now()),
        }
    }

    /// Takes one, if there is one.
    pub(super) fn allows(&self) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let next = (*full_at).max(now) + self.interval;
        if next > now + BURST {
            return false;
        }
        *full_at = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(pace: &Pace, tries: u32) -> u32 {
        (0..tries).map(|_| u32::from(pace.allows())).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_brings_a_seconds_worth() {
        let pace = Pace::new(50);
        assert_eq!(passed(&pace, 200), 50);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(passed(&pace, 200), 5);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(passed(&pace, 200), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn one_a_second() {
        let pace = Pace::new(1);
        assert_eq!(passed(&pace, 10), 1);
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(passed(&pace, 10), 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(passed(&pace, 10), 1);
    }
}
