//! Whether a feed is to be read.

use std::sync::atomic::Ordering;

use super::Feed;

/// Why a feed is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// It is not.
    Clean = 0,
    /// A sweep, a new feed, a new connection, or a session that wants to be sure.
    Asked = 1,
    /// Redis has said that it changed.
    Changed = 2,
}

impl Feed {
    /// Marks the feed as to be read. Says whether it was clean, so that it joins a queue once.
    pub(in crate::hub) fn mark(&self, mark: Mark) -> bool {
        self.mark.fetch_max(mark as u8, Ordering::AcqRel) == Mark::Clean as u8
    }

    /// Clears the mark, before the read is sent: a change from here on marks it again.
    pub(in crate::hub) fn clear_mark(&self) -> Mark {
        match self.mark.swap(Mark::Clean as u8, Ordering::AcqRel) {
            0 => Mark::Clean,
            1 => Mark::Asked,
            _ => Mark::Changed,
        }
    }
}
