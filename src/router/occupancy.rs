//! How many connections somebody has.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts by key. Who has none left is forgotten, so there are never more entries than places.
pub(super) struct Occupancy<K: Eq + Hash> {
    most: u32,
    taken: Arc<Mutex<HashMap<K, u32>>>,
}

/// One connection of somebody; dropping it gives the place back.
pub struct Place<K: Eq + Hash> {
    key: K,
    taken: Arc<Mutex<HashMap<K, u32>>>,
}

impl<K: Eq + Hash + Clone> Occupancy<K> {
    pub(super) fn new(most: u32) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    /// `None` if all places of this key are taken.
    pub(super) fn enter(&self, key: K) -> Option<Place<K>> {
        let mut taken = lock(&self.taken);
        let count = taken.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        drop(taken);
        Some(Place {
            key,
            taken: self.taken.clone(),
        })
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

fn lock<K>(taken: &Mutex<HashMap<K, u32>>) -> MutexGuard<'_, HashMap<K, u32>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_key_and_given_back() {
        let occupancy = Occupancy::new(2);
        let first = occupancy.enter("a");
        let second = occupancy.enter("a");
        assert!(first.is_some() && second.is_some());
        assert!(occupancy.enter("a").is_none());
        assert!(occupancy.enter("b").is_some());
        drop(first);
        let third = occupancy.enter("a");
        assert!(third.is_some());
        assert!(occupancy.enter("a").is_none());
        drop((second, third));
        assert!(lock(&occupancy.taken).is_empty(), "nobody is left");
    }

    #[test]
    fn a_refused_one_leaves_no_trace() {
        let occupancy = Occupancy::new(1);
        let place = occupancy.enter("a");
        assert!((0..10).all(|_| occupancy.enter("a").is_none()));
        drop(place);
        assert!(lock(&occupancy.taken).is_empty());
    }
}
