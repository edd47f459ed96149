//! One page: entries in memory that count against the bound for all.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::super::chunk::{Chunk, Slice};
use crate::metrics::{Gauge, amount};
use crate::protocol::LossReason;
use crate::stream::EntryId;

/// What follows a position.
#[derive(Clone)]
pub enum Page {
    /// These entries, and then maybe more.
    Entries(Arc<PageChunk>),
    /// Nothing; `at` is where the stream ends.
    Nothing {
        /// The position asked for, or the end of a stream of which nothing is kept.
        at: EntryId,
    },
    /// The position can't be continued.
    Lost(LossReason),
}

/// A chunk that counts against the bound for all pages while anybody holds it.
pub struct PageChunk {
    chunk: Arc<Chunk>,
    bytes: Gauge,
    size: usize,
    _permit: OwnedSemaphorePermit,
}

impl PageChunk {
    pub(super) fn new(chunk: Chunk, bytes: Gauge, permit: OwnedSemaphorePermit) -> Self {
        let size = chunk.size();
        bytes.add(amount(size));
        Self {
            chunk: Arc::new(chunk),
            bytes,
            size,
            _permit: permit,
        }
    }

    /// Bytes that it takes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Its entries after a position, all of them.
    pub fn slice(&self, position: EntryId) -> Option<Slice> {
        Slice::after(&self.chunk, position)
    }
}

impl Drop for PageChunk {
    fn drop(&mut self) {
        self.bytes.sub(amount(self.size));
    }
}
