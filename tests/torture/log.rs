//! The publishers' log: what was added, under which id, and what may have left Redis since.
//!
//! Each stream has one publisher, which also trims and deletes it. So what leaves a stream is
//! always its beginning, and two numbers say all: up to which entry it may be gone, and up to
//! which it went with the whole stream. Both are noted before the command is sent.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use relay::stream::EntryId;
use tokio::sync::watch;

pub(crate) struct Log {
    pub(crate) seed: u64,
    streams: Vec<Mutex<Stream>>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Stream {
    /// Of the entries whose id is known, the first being number 1.
    ids: Vec<EntryId>,
    /// The last that was sent to Redis: maybe it was added, maybe not.
    sent: u64,
    /// What clients were told of entries whose answer has not come.
    claimed: BTreeMap<u64, EntryId>,
    removed: u64,
    deleted: u64,
}

/// A stream, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The last entry that was sent.
    pub(crate) sent: u64,
    /// The last entry whose id is known, and its id; `0-0` if there is none.
    pub(crate) written: u64,
    pub(crate) last_id: EntryId,
    /// All up to this entry may be gone.
    pub(crate) removed: u64,
    /// All up to this entry may be gone with the whole stream.
    pub(crate) deleted: u64,
}

/// Which entry an id belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Entry(u64),
    /// It may be one of those whose answer has not come.
    NotYet,
    Nobody,
}

impl Log {
    pub(crate) fn new(seed: u64, streams: usize) -> Self {
        Self {
            seed,
            streams: (0..streams).map(|_| Mutex::default()).collect(),
            changed: watch::channel(()).0,
        }
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Entries up to this one are about to be added.
    pub(crate) fn sending(&self, stream: usize, last: u64) {
        let mut stream = self.stream(stream);
        stream.sent = stream.sent.max(last);
    }

    /// The next entries have been added, under these ids.
    pub(crate) fn written(&self, stream: usize, ids: &[EntryId]) -> Result<(), String> {
        let index = stream;
        let mut stream = self.stream(index);
        for id in ids {
            let n = stream.ids.len() as u64 + 1;
            if stream.ids.last().is_some_and(|last| last >= id) {
                return Err(format!(
                    "stream {index}: the id {id} of entry {n} does not grow"
                ));
            }
            if let Some(claimed) = stream.claimed.remove(&n)
                && claimed != *id
            {
                return Err(format!(
                    "stream {index}: entry {n} is {id}, a client got {claimed}"
                ));
            }
            stream.ids.push(*id);
        }
        drop(stream);
        self.changed.send_replace(());
        Ok(())
    }

    /// What was sent and has no id was not added.
    pub(crate) fn not_written(&self, stream: usize) -> Result<(), String> {
        let index = stream;
        let mut stream = self.stream(index);
        stream.sent = stream.ids.len() as u64;
        if let Some((n, id)) = stream.claimed.first_key_value() {
            return Err(format!(
                "stream {index}: a client got entry {n} as {id}, and it was never added"
            ));
        }
        drop(stream);
        self.changed.send_replace(());
        Ok(())
    }

    /// The entries up to this one are about to be trimmed.
    pub(crate) fn removing(&self, stream: usize, last: u64) {
        let mut stream = self.stream(stream);
        stream.removed = stream.removed.max(last);
    }

    /// The whole stream is about to be deleted.
    pub(crate) fn deleting(&self, stream: usize) {
        let mut stream = self.stream(stream);
        stream.removed = stream.sent;
        stream.deleted = stream.sent;
    }

    /// A client got this entry, with this id if it was told one.
    pub(crate) fn claim(&self, stream: usize, n: u64, id: Option<EntryId>) -> Result<(), String> {
        let mut stream = self.stream(stream);
        if n == 0 || n > stream.sent {
            return Err(format!(
                "entry {n} was never sent, {} was the last",
                stream.sent
            ));
        }
        let Some(id) = id else {
            return Ok(());
        };
        let index = usize::try_from(n - 1).expect("a count of entries");
        let known = match stream.ids.get(index) {
            Some(known) => *known,
            None => *stream.claimed.entry(n).or_insert(id),
        };
        match known == id {
            true => Ok(()),
            false => Err(format!("entry {n} is {known}, and came as {id}")),
        }
    }

    pub(crate) fn owner(&self, stream: usize, id: EntryId) -> Owner {
        let stream = self.stream(stream);
        if let Ok(index) = stream.ids.binary_search(&id) {
            return Owner::Entry(index as u64 + 1);
        }
        if let Some((n, _)) = stream.claimed.iter().find(|(_, claimed)| **claimed == id) {
            return Owner::Entry(*n);
        }
        let is_later = stream.ids.last().is_none_or(|last| id > *last);
        match is_later && stream.sent > stream.ids.len() as u64 {
            true => Owner::NotYet,
            false => Owner::Nobody,
        }
    }

    /// Waits until it is known whose id this is.
    pub(crate) async fn settled(&self, stream: usize, id: EntryId) {
        let mut changed = self.changed.subscribe();
        while self.owner(stream, id) == Owner::NotYet {
            // The sender is ours: it can't be gone.
            changed.changed().await.ok();
        }
    }

    pub(crate) fn facts(&self, stream: usize) -> Facts {
        let stream = self.stream(stream);
        Facts {
            sent: stream.sent,
            written: stream.ids.len() as u64,
            last_id: stream.ids.last().copied().unwrap_or(EntryId::ZERO),
            removed: stream.removed,
            deleted: stream.deleted,
        }
    }

    fn stream(&self, stream: usize) -> MutexGuard<'_, Stream> {
        let stream = self.streams[stream].lock();
        stream.unwrap_or_else(PoisonError::into_inner)
    }
}
