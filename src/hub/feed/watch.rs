//! Who watches a feed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Feed;
use crate::wake::Listener;

impl Feed {
    pub(in crate::hub) fn enter(self: &Arc<Self>) -> Watch {
        self.watchers.fetch_add(1, Ordering::AcqRel);
        Watch {
            listener: self.bell.listen(),
            feed: self.clone(),
        }
    }

    /// Since when nobody has watched; `None` while somebody does.
    pub(in crate::hub) fn idle_since(&self) -> Option<Instant> {
        if self.watchers.load(Ordering::Acquire) > 0 {
            return None;
        }
        let mut state = self.lock();
        Some(*state.idle_since.get_or_insert_with(Instant::now))
    }
}

/// One session's place at a feed. Dropping it leaves the feed.
pub struct Watch {
    /// The feed.
    pub feed: Arc<Feed>,
    /// Hears when there is something new to ask for.
    pub listener: Listener,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.feed.watchers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.feed.lock().idle_since = Some(Instant::now());
        }
    }
}
