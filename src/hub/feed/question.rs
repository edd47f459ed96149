//! What a session asks a feed, and what it hears.

use smallvec::SmallVec;

use super::super::chunk::{BATCH_BYTES, Slice};
use crate::store::Unreadable;
use crate::stream::EntryId;

/// Counts the feed's own losses of continuity.
pub type Epoch = u64;

/// What a session knows of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The id of the last entry that it has dealt with.
    pub id: EntryId,
    /// What that rests on.
    pub basis: Basis,
}

/// What a position rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Continuity up to here was proven in this epoch of the feed.
    Proven(Epoch),
    /// A cursor, or a position noted earlier: to be proven by the ring or by Redis.
    Unproven,
    /// Where a history begins: what is before it does not matter, so nothing needs proof.
    Start,
}

/// One, if there was one pull since.
pub type Slices = SmallVec<[Slice; 1]>;

/// The answer to "what is after my position?".
pub enum After {
    /// These; together they are proven to follow the position.
    Entries {
        /// In order.
        slices: Slices,
        /// They are up to the tail.
        is_all: bool,
        /// The epoch in which they were read.
        epoch: Epoch,
        /// Entries published in the life of the feed, to measure lag by.
        published: u64,
    },
    /// Nothing yet.
    CaughtUp {
        /// The epoch in which the position is proven.
        epoch: Epoch,
        /// As above.
        published: u64,
    },
    /// The ring can't say: the backlog can.
    Behind {
        /// The epoch as of now, which an answer of the backlog is good for.
        epoch: Epoch,
        /// As above.
        published: u64,
    },
    /// The stream can't be read.
    Unreadable(Unreadable),
}

/// How much of the ring one answer may have.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// Bytes of entries.
    pub bytes: usize,
    /// Chunks: as many as there were pulls, when these are small.
    pub chunks: usize,
}

impl Reach {
    /// What a client is sent at a time.
    pub const BATCH: Self = Self {
        bytes: BATCH_BYTES,
        chunks: 64,
    };
}
