//! How many callbacks of a route may be with the API at once, and how many may wait.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::SnapshotError;

/// For each callback that may be in flight, so many more may wait for their turn. With more,
/// the newest comer is refused at once: it would hardly be served before its client gives up.
const WAITING_PER_TURN: usize = 16;

/// A fair queue: first come, first served.
pub(super) struct Queue {
    turns: Semaphore,
    /// One for each callback that waits or is in flight.
    places: Semaphore,
    patience: Duration,
}

/// Permission to send a callback. Dropping it gives the place to the next.
pub(super) struct Turn<'a> {
    _turn: SemaphorePermit<'a>,
    _place: SemaphorePermit<'a>,
}

impl Queue {
    pub(super) fn new(max_in_flight: usize, patience: Duration) -> Self {
        let turns = max_in_flight.clamp(1, Semaphore::MAX_PERMITS);
        let places = turns.saturating_mul(1 + WAITING_PER_TURN);
        Self {
            turns: Semaphore::new(turns),
            places: Semaphore::new(places.min(Semaphore::MAX_PERMITS)),
            patience,
        }
    }

    /// Waits for a turn, but not for longer than `patience`. Dropping the future leaves the queue.
    pub(super) async fn turn(&self) -> Result<Turn<'_>, SnapshotError> {
        let place = self.places.try_acquire();
        let place = place.map_err(|_| SnapshotError::QueueFull)?;
        let turn = timeout(self.patience, self.turns.acquire()).await;
        let turn = turn.map_err(|_| SnapshotError::QueueFull)?;
        Ok(Turn {
            _turn: turn.expect("this semaphore is never closed"),
            _place: place,
        })
    }
}
