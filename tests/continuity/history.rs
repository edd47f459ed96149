//! The truth about one stream: every entry that was ever added, and what became of it.
//!
//! Ids are never used twice, not even in another life of the key or after a failover: what
//! Redis itself can't tell apart, nobody can.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use relay::stream::EntryId;

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is in the stream.
    Kept,
    /// Trimmed.
    Trimmed,
    /// Deleted by hand: a hole, which is no gap.
    Deleted,
    /// The whole key was deleted or has expired.
    Ended,
    /// It was on a primary that is no more, and never reached its replica.
    Phantom,
}

/// One entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Added {
    pub(crate) id: EntryId,
    /// The number in its payload.
    pub(crate) tag: u64,
    /// Counts from the creation of the key to its end.
    pub(crate) life: u32,
    /// The first of its life is 1.
    pub(crate) ordinal: u64,
    pub(crate) fate: Fate,
}

/// What a server holds of the key.
#[derive(Debug, Clone, Default)]
struct Held {
    fates: BTreeMap<EntryId, Fate>,
    life: u32,
    exists: bool,
    /// Entries ever added in this life.
    count: u64,
    /// The last id of this life, also where its entry is gone.
    last: Option<EntryId>,
    /// In this life entries were deleted by hand before they were read.
    has_unread_holes: bool,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    added: BTreeMap<EntryId, Added>,
    now: Held,
    /// What the replica holds, once it follows no more.
    replica: Option<Held>,
    /// Positions in another stream, from which this one once looked whole.
    look_alikes: BTreeSet<EntryId>,
    tags: u64,
    lives: u32,
    next_ms: u64,
}

impl History {
    /// The id that the next entry is to have: this many milliseconds after the last.
    pub(crate) fn next_id(&mut self, step_ms: u64) -> EntryId {
        self.next_ms = (self.next_ms + step_ms).max(1);
        EntryId::new(self.next_ms, self.tags + 1)
    }

    /// The number for the payload of the next entry.
    pub(crate) fn next_tag(&self) -> u64 {
        self.tags + 1
    }

    /// An entry was added.
    pub(crate) fn add(&mut self, id: EntryId) {
        if !self.now.exists {
            self.lives += 1;
            self.now = Held {
                life: self.lives,
                exists: true,
                fates: std::mem::take(&mut self.now.fates),
                ..Held::default()
            };
        }
        self.tags += 1;
        self.now.count += 1;
        let added = Added {
            id,
            tag: self.tags,
            life: self.now.life,
            ordinal: self.now.count,
            fate: Fate::Kept,
        };
        self.added.insert(id, added);
        self.now.fates.insert(id, Fate::Kept);
        self.now.last = Some(id);
    }

    /// Only this many are left: the oldest have gone.
    pub(crate) fn trim_to(&mut self, length: usize) {
        let kept: Vec<EntryId> = self.kept().map(|entry| entry.id).collect();
        for id in &kept[..kept.len().saturating_sub(length)] {
            self.set(*id, Fate::Trimmed);
        }
    }

    /// One was deleted by hand.
    pub(crate) fn delete(&mut self, id: EntryId, was_read: bool) {
        self.set(id, Fate::Deleted);
        self.now.has_unread_holes |= !was_read;
    }

    /// The key is gone. The ids of its next life begin low or go on.
    pub(crate) fn end(&mut self, begin_low: bool) {
        let kept: Vec<EntryId> = self.kept().map(|entry| entry.id).collect();
        for id in kept {
            self.set(id, Fate::Ended);
        }
        self.now.exists = false;
        self.now.last = None;
        if begin_low {
            self.next_ms = 0;
        }
    }

    /// The replica follows no more.
    pub(crate) fn part(&mut self) {
        self.replica.get_or_insert_with(|| self.now.clone());
    }

    /// The replica takes over. Its clock may be behind: ids go on from what it has.
    pub(crate) fn promote(&mut self) {
        self.part();
        self.now = self.replica.take().unwrap_or_default();
        for entry in self.added.values_mut() {
            let held = self.now.fates.get(&entry.id);
            entry.fate = held.copied().unwrap_or(Fate::Phantom);
        }
        self.next_ms = self.now.last.map_or(0, |last| last.ms);
    }

    /// A limit: of two streams that followed each other between two reads Redis tells only how
    /// many entries each ever had. Where by chance as many of the new one are gone as the old one
    /// had up to a position, and nothing before it is left, the one can't be told from the other.
    pub(crate) fn note_look_alikes(&mut self) {
        if !self.now.exists {
            return;
        }
        let life = self.now.life;
        let lowest = self.kept().next().map(|entry| entry.id);
        let of_this_life = self.added.values().filter(|entry| entry.life == life);
        let deleted = of_this_life.filter(|entry| entry.fate == Fate::Deleted);
        let deleted = deleted.map(|entry| entry.id).next_back();
        let mut kept_after = 0;
        for entry in self.added.values().rev() {
            let is_another = entry.life != life || entry.fate == Fate::Phantom;
            let is_counted = kept_after + entry.ordinal == self.now.count;
            let can_have_left = lowest.is_none_or(|lowest| lowest > entry.id)
                || deleted.is_some_and(|deleted| deleted >= entry.id);
            if is_another && is_counted && can_have_left {
                self.look_alikes.insert(entry.id);
            }
            kept_after += u64::from(entry.fate == Fate::Kept);
        }
    }

    /// Whether what follows this position may be taken for what followed it once.
    pub(crate) fn looks_whole_after(&self, id: EntryId) -> bool {
        self.look_alikes.contains(&id)
    }

    fn set(&mut self, id: EntryId, fate: Fate) {
        self.now.fates.insert(id, fate);
        if let Some(entry) = self.added.get_mut(&id) {
            entry.fate = fate;
        }
    }

    pub(crate) fn get(&self, id: EntryId) -> Option<&Added> {
        self.added.get(&id)
    }

    /// Every entry ever added, by id.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Added> {
        self.added.values()
    }

    /// What is in the stream.
    pub(crate) fn kept(&self) -> impl DoubleEndedIterator<Item = &Added> {
        self.added.values().filter(|entry| entry.fate == Fate::Kept)
    }

    /// Entries of one life between two ids, both left out.
    pub(crate) fn between(
        &self,
        after: EntryId,
        before: Option<EntryId>,
        life: u32,
    ) -> impl Iterator<Item = &Added> {
        let upper = before.map_or(Unbounded, Excluded);
        let range = match before {
            // A range that is upside down is none.
            Some(before) if before <= after => self.added.range((Included(after), Excluded(after))),
            _ => self.added.range((Excluded(after), upper)),
        };
        let entries = range.map(|(_, entry)| entry);
        entries.filter(move |entry| entry.life == life)
    }

    pub(crate) fn exists(&self) -> bool {
        self.now.exists
    }

    pub(crate) fn life(&self) -> u32 {
        self.now.life
    }

    pub(crate) fn last(&self) -> Option<EntryId> {
        self.now.last
    }

    pub(crate) fn has_unread_holes(&self) -> bool {
        self.now.has_unread_holes
    }
}
