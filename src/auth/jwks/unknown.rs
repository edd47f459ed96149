//! Which kids were asked for in vain, and since when.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// Clients choose kids, and their number: those asked for least recently are forgotten.
const MOST: usize = 1024;

/// Remembers since when a kid has been asked for. Holds digests, so that long kids take up no
/// more than short ones.
#[derive(Default)]
pub(super) struct UnknownKids {
    digest: RandomState,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    since: HashMap<u64, Instant>,
    order: VecDeque<u64>,
}

impl UnknownKids {
    /// Since when this kid, or none, has been asked for; from now on if it is new.
    pub(super) fn asked_since(&self, kid: Option<&str>) -> Instant {
        let digest = self.digest.hash_one(kid);
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = asked.since.get(&digest) {
            return *since;
        }
        if asked.order.len() >= MOST
            && let Some(oldest) = asked.order.pop_front()
        {
            asked.since.remove(&oldest);
        }
        let now = Instant::now();
        asked.since.insert(digest, now);
        asked.order.push_back(digest);
        now
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_time_is_remembered_and_the_memory_has_a_bound() {
        let unknown = UnknownKids::default();
        let began = unknown.asked_since(Some("first"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(unknown.asked_since(Some("first")), began);
        assert!(unknown.asked_since(None) > began);
        assert!(unknown.asked_since(Some("")) > began);
        for number in 0..10_000 {
            unknown.asked_since(Some(&number.to_string()));
        }
        let asked = unknown.asked.lock().unwrap();
        assert_eq!((asked.since.len(), asked.order.len()), (MOST, MOST));
        drop(asked);
        assert!(unknown.asked_since(Some("first")) > began, "forgotten");
    }
}
