//! The relay's shared view of one stream: a ring of its newest entries, and how far it has read.
//!
//! A session asks [`Feed::after`] with its own position; the feed never decides for it. When
//! the feed itself has lost continuity it takes a new epoch and an empty ring: every session
//! then finds itself behind, and asks Redis with its own position.

mod mark;
mod question;
mod state;
mod watch;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::chunk::Chunk;
use super::continuity::Known;
use crate::store::{StreamInfo, Unreadable};
use crate::stream::{EntryId, StreamKey};
use crate::wake::Bell;
use state::{Ahead, State};

pub use mark::Mark;
pub use question::{After, Basis, Epoch, Position, Reach, Slices};
pub use watch::Watch;

/// What an entry is taken to be before one was seen: large, so that a first read stays small.
const UNKNOWN_SIZE: usize = 16 * 1024;

/// Bounds of a ring, of which it keeps at least the last pull.
#[derive(Debug, Clone, Copy)]
pub struct RingBounds {
    /// Newest entries kept.
    pub entries: usize,
    /// Bytes kept.
    pub bytes: usize,
}

/// One stream, as all its sessions see it.
pub struct Feed {
    /// Its key.
    pub key: StreamKey,
    bounds: RingBounds,
    state: Mutex<State>,
    bell: Arc<Bell>,
    /// Redis has not answered for longer than a command may take.
    degraded: AtomicBool,
    /// Whether the reader has been asked to read, and by whom.
    mark: AtomicU8,
    watchers: AtomicUsize,
    is_retired: AtomicBool,
}

/// What the reader needs to know to read on.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// The feed's side of the proof.
    pub known: Known,
    /// About how many bytes an entry takes.
    pub mean_size: usize,
    /// The last proof needed `XINFO STREAM`: the next one probably will, so it is asked at once.
    pub with_info: bool,
}

impl Feed {
    /// A feed that has read up to what Redis says of the stream; `0-0` if there is no such key.
    pub fn new(
        key: StreamKey,
        info: Option<&StreamInfo>,
        connection: u64,
        bounds: RingBounds,
    ) -> Self {
        let tail = info.map_or(EntryId::ZERO, |info| info.last_generated);
        let state = State {
            epoch: 0,
            ring: VecDeque::new(),
            ring_entries: 0,
            ring_bytes: 0,
            last_pull: 0,
            base: tail,
            tail,
            tail_digest: None,
            added: info.map_or(Some(0), |info| info.entries_added),
            missing_on: info.is_none().then_some(connection),
            published: 0,
            published_at: None,
            mean_size: None,
            reads_sent: 0,
            read_answered: 0,
            as_of: now_ms(),
            proven_by_info: info.is_none(),
            ahead: None,
            unreadable: None,
            asked_at: Instant::now(),
            was_asked: false,
            idle_since: None,
        };
        Self {
            key,
            bounds,
            state: Mutex::new(state),
            bell: Arc::default(),
            degraded: AtomicBool::new(false),
            mark: AtomicU8::new(0),
            watchers: AtomicUsize::new(0),
            is_retired: AtomicBool::new(false),
        }
    }

    /// What is after a position: up to a batch.
    pub fn after(&self, position: Position) -> After {
        self.after_within(position, Reach::BATCH)
    }

    /// What is after a position, up to the chunk that comes to this reach.
    pub fn after_within(&self, position: Position, reach: Reach) -> After {
        let mut state = self.lock();
        state.was_asked = true;
        if let Some(reason) = &state.unreadable {
            return After::Unreadable(reason.clone());
        }
        let (epoch, published) = (state.epoch, state.published);
        let proven = position.basis == Basis::Proven(epoch);
        if proven && position.id >= state.tail {
            // Ahead of the tail is normal: a backlog page or another relay was faster.
            return After::CaughtUp { epoch, published };
        }
        // Also a proven position must be found: one that was ahead of the tail may have come
        // from a server that was failed over, and the ring has passed it by then.
        if !state.holds(position.id) {
            return After::Behind { epoch, published };
        }
        if position.id == state.tail {
            return After::CaughtUp { epoch, published };
        }
        let slices = state.slices_after(position.id, reach);
        After::Entries {
            is_all: slices
                .last()
                .is_some_and(|slice| slice.last() == state.tail),
            slices,
            epoch,
            published,
        }
    }

    /// Whether the ring proves that this id is a position in the stream.
    pub fn holds(&self, id: EntryId) -> bool {
        self.lock().holds(id)
    }

    /// The oldest position from which the ring holds the newest `count` entries up to `until`,
    /// if it does.
    pub fn position_before_newest(&self, until: EntryId, count: u64) -> Option<EntryId> {
        let state = self.lock();
        if !state.holds(until) {
            return None;
        }
        let ids = state
            .ring
            .iter()
            .rev()
            .flat_map(|chunk| chunk.entries().iter().rev());
        let mut up_to = ids.map(|entry| entry.id).filter(|id| *id <= until);
        up_to.nth(usize::try_from(count).ok()?)
    }

    /// The id up to which the stream was read. Never newer than the stream, maybe older.
    pub fn tail(&self) -> EntryId {
        self.lock().tail
    }

    /// The epoch as of now.
    pub fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    /// Whether Redis does not answer.
    pub fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Acquire)
    }

    /// When Redis last confirmed the tail, in milliseconds since the Unix epoch.
    pub fn as_of(&self) -> u64 {
        self.lock().as_of
    }

    /// Bytes in the ring.
    pub fn ring_bytes(&self) -> usize {
        self.lock().ring_bytes
    }

    /// About how many bytes an entry takes.
    pub fn mean_size(&self) -> usize {
        self.lock().mean_size.unwrap_or(UNKNOWN_SIZE)
    }

    /// A session has proven a position in the backlog. Whether the feed was not as far: then it
    /// should be read soon.
    pub fn note_proven(&self, id: EntryId) -> bool {
        let mut state = self.lock();
        let is_ahead = id > state.tail;
        if is_ahead && state.ahead.as_ref().is_none_or(|ahead| ahead.id < id) {
            state.ahead = Some(Ahead {
                id,
                reads_sent: state.reads_sent,
                was_doubted: false,
            });
        }
        is_ahead
    }

    /// Takes the size of entries from a page: a feed without live entries knows no other.
    pub(super) fn learn_size(&self, chunk: &Chunk) {
        self.lock().learn_size(chunk);
    }

    /// When a session last asked, as far as it is known: to the read before.
    pub fn asked_at(&self) -> Instant {
        let state = self.lock();
        match state.was_asked {
            true => Instant::now(),
            false => state.asked_at,
        }
    }

    /// The number of the last read that was sent; with [`was_read_since`](Self::was_read_since)
    /// it tells whether the tail is newer than some event.
    pub fn reads_sent(&self) -> u64 {
        self.lock().reads_sent
    }

    /// Whether a read that was sent after that one has been answered, or none will be: the
    /// stream can't be read.
    pub fn was_read_since(&self, reads_sent: u64) -> bool {
        let state = self.lock();
        state.read_answered > reads_sent || state.unreadable.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the reader does to a feed.
impl Feed {
    /// Notes that a read is about to be sent, and says what it has to prove.
    pub(super) fn begin_read(&self, connection: u64) -> Reading {
        let mut state = self.lock();
        state.reads_sent += 1;
        Reading {
            known: Known {
                position: state.tail,
                digest: state.tail_digest,
                added: state.added,
                was_missing: state.missing_on == Some(connection),
            },
            mean_size: state.mean_size.unwrap_or(UNKNOWN_SIZE),
            with_info: state.proven_by_info,
        }
    }

    /// Takes entries that follow the tail, and wakes whoever waits. `info` is what Redis said of
    /// the stream, if that was the proof; `is_end` that there were no more entries. Returns by how
    /// much the ring has grown.
    pub(super) fn publish(
        &self,
        chunks: Vec<Chunk>,
        info: Option<Option<StreamInfo>>,
        is_end: bool,
        connection: u64,
    ) -> isize {
        let mut state = self.lock();
        state.confirm();
        let before = state.ring_bytes;
        let has_news = !chunks.is_empty();
        if has_news {
            state.push_all(chunks);
            state.evict(self.bounds);
        }
        state.proven_by_info = info.is_some();
        match info {
            Some(Some(info)) if info.last_generated == state.tail => {
                state.added = info.entries_added
            }
            Some(None) => state.missing_on = Some(connection),
            Some(Some(_)) | None => {}
        }
        let is_missing = matches!(info, Some(None));
        let is_in_doubt = is_end && state.doubts_who_is_ahead(has_news, is_missing);
        if is_in_doubt {
            // The ring stays: whoever is in it is as sure as before.
            state.epoch += 1;
        }
        let grown = difference(before, state.ring_bytes);
        drop(state);
        let was_degraded = self.degraded.swap(false, Ordering::AcqRel);
        if has_news || is_in_doubt || was_degraded {
            self.bell.ring();
        }
        grown
    }

    /// Continuity is lost: goes on from where the stream is now, in a new epoch.
    pub(super) fn restart(&self, info: Option<&StreamInfo>, connection: u64) -> isize {
        let mut state = self.lock();
        state.confirm();
        let before = state.ring_bytes;
        state.epoch += 1;
        state.tail = info.map_or(EntryId::ZERO, |info| info.last_generated);
        state.tail_digest = None;
        state.added = info.map_or(Some(0), |info| info.entries_added);
        state.missing_on = info.is_none().then_some(connection);
        state.ahead = None;
        state.empty_ring();
        let grown = difference(before, state.ring_bytes);
        drop(state);
        self.bell.ring();
        grown
    }

    /// The key can't be read: whoever watches it is told.
    pub(super) fn read_failed(&self, reason: Unreadable) {
        self.lock().unreadable = Some(reason);
        self.bell.ring();
    }

    /// Redis does not answer.
    pub(super) fn degrade(&self) {
        if !self.degraded.swap(true, Ordering::AcqRel) {
            self.bell.ring();
        }
    }

    /// When the last entries were published.
    pub(super) fn published_at(&self) -> Option<Instant> {
        self.lock().published_at
    }

    /// Nobody watches it any more, or nobody may: it is not read again. As with
    /// [`shrink`](Self::shrink).
    pub(super) fn retire(&self) -> isize {
        self.is_retired.store(true, Ordering::Release);
        self.shrink()
    }

    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }

    /// Gives the ring's memory back. Returns by how much the ring has grown: not at all.
    pub(super) fn shrink(&self) -> isize {
        let mut state = self.lock();
        let before = state.ring_bytes;
        state.empty_ring();
        difference(before, 0)
    }
}

fn difference(before: usize, after: usize) -> isize {
    after.cast_signed() - before.cast_signed()
}

/// Milliseconds since the Unix epoch: the clock that entry ids follow.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Before 1970 there were no streams.
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests;
