//! What a feed holds under its lock: the ring, and how far the stream was read.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::time::Instant;

use super::super::chunk::{Chunk, Slice};
use super::super::continuity::Digest;
use super::{Epoch, Reach, RingBounds, Slices, now_ms};
use crate::store::Unreadable;
use crate::stream::EntryId;

pub(super) struct State {
    pub(super) epoch: Epoch,
    pub(super) ring: VecDeque<Arc<Chunk>>,
    pub(super) ring_entries: usize,
    pub(super) ring_bytes: usize,
    /// How many of the ring's chunks came with the last pull that brought any.
    pub(super) last_pull: usize,
    /// The id before the ring's first entry: positions from here on are served from the ring.
    pub(super) base: EntryId,
    /// The id up to which the stream was read.
    pub(super) tail: EntryId,
    pub(super) tail_digest: Option<Digest>,
    /// `entries-added` of the stream at the tail.
    pub(super) added: Option<u64>,
    /// The connection on which the key was seen missing.
    pub(super) missing_on: Option<u64>,
    /// Entries published in the life of this feed.
    pub(super) published: u64,
    pub(super) published_at: Option<Instant>,
    /// About the bytes of an entry, once there was one.
    pub(super) mean_size: Option<usize>,
    /// Reads of the reader: how many were sent, and the number of the last that was answered.
    pub(super) reads_sent: u64,
    pub(super) read_answered: u64,
    /// Milliseconds since the Unix epoch when Redis last confirmed the tail.
    pub(super) as_of: u64,
    pub(super) proven_by_info: bool,
    pub(super) ahead: Option<Ahead>,
    pub(super) unreadable: Option<Unreadable>,
    pub(super) asked_at: Instant,
    /// Since then.
    pub(super) was_asked: bool,
    pub(super) idle_since: Option<Instant>,
}

/// How far a session has read in the backlog, where that is further than the tail. What the feed
/// has never seen it can't miss: when its own reads end before this, sessions have to ask.
pub(super) struct Ahead {
    pub(super) id: EntryId,
    /// Reads that were sent before: what they find is older.
    pub(super) reads_sent: u64,
    /// Sessions have asked, and found nothing missing.
    pub(super) was_doubted: bool,
}

impl State {
    /// The ring begins right after `base` and is whole up to `tail`, so these three are all
    /// positions of which it knows what follows.
    pub(super) fn holds(&self, id: EntryId) -> bool {
        if id == self.base || id == self.tail {
            return true;
        }
        if id < self.base || id > self.tail {
            return false;
        }
        let index = self.ring.partition_point(|chunk| chunk.last() < id);
        self.ring.get(index).is_some_and(|chunk| chunk.contains(id))
    }

    pub(super) fn slices_after(&self, position: EntryId, reach: Reach) -> Slices {
        let start = self.ring.partition_point(|chunk| chunk.last() <= position);
        let mut slices = Slices::new();
        let mut bytes = 0;
        for slice in self
            .ring
            .range(start..)
            .filter_map(|chunk| Slice::after(chunk, position))
        {
            bytes += slice.size();
            slices.push(slice);
            if bytes >= reach.bytes || slices.len() >= reach.chunks {
                break;
            }
        }
        slices
    }

    /// Takes what one pull has brought.
    pub(super) fn push_all(&mut self, chunks: Vec<Chunk>) {
        self.last_pull = chunks.len();
        for chunk in chunks {
            self.push(Arc::new(chunk));
        }
    }

    fn push(&mut self, chunk: Arc<Chunk>) {
        let entries = chunk.entries();
        self.tail = chunk.last();
        self.tail_digest = entries.last().map(Digest::of);
        self.added = self.added.map(|added| added + entries.len() as u64);
        self.published += entries.len() as u64;
        self.published_at = Some(Instant::now());
        self.learn_size(&chunk);
        self.ring_entries += entries.len();
        self.ring_bytes += chunk.size();
        self.ring.push_back(chunk);
    }

    pub(super) fn learn_size(&mut self, chunk: &Chunk) {
        let size = chunk.size() / chunk.entries().len();
        self.mean_size = Some(self.mean_size.map_or(size, |mean| (mean * 3 + size) / 4));
    }

    /// The last pull always stays: a thousand sessions on one hot stream must not fall to Redis
    /// together.
    pub(super) fn evict(&mut self, bounds: RingBounds) {
        while self.ring.len() > self.last_pull
            && (self.ring_entries > bounds.entries || self.ring_bytes > bounds.bytes)
        {
            let Some(oldest) = self.ring.pop_front() else {
                return;
            };
            self.ring_entries -= oldest.entries().len();
            self.ring_bytes -= oldest.size();
            self.base = oldest.last();
        }
    }

    pub(super) fn empty_ring(&mut self) {
        // A deque keeps its capacity when it is cleared.
        self.ring = VecDeque::new();
        self.ring_entries = 0;
        self.ring_bytes = 0;
        self.base = self.tail;
    }

    /// After a read to the end of the stream: whether that end is before what a session has seen,
    /// though nothing should have gone since. Entries that were deleted by hand are not found
    /// either, so it is said again only where there is more to it.
    pub(super) fn doubts_who_is_ahead(&mut self, has_news: bool, is_missing: bool) -> bool {
        let tail = self.tail;
        let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.id > tail) else {
            self.ahead = None;
            return false;
        };
        if self.read_answered <= ahead.reads_sent {
            return false;
        }
        let is_in_doubt = !ahead.was_doubted || has_news || is_missing;
        ahead.was_doubted = true;
        if is_missing {
            self.ahead = None;
        }
        is_in_doubt
    }

    /// Redis has confirmed the tail, by the read that was sent last: there is one at a time.
    pub(super) fn confirm(&mut self) {
        self.read_answered = self.reads_sent;
        if std::mem::take(&mut self.was_asked) {
            self.asked_at = Instant::now();
        }
        self.as_of = now_ms();
    }
}
