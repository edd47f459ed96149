//! What one client has seen, and whether it may be so.

use std::collections::BTreeSet;

use relay::stream::EntryId;

use crate::history::{Added, Fate, History};

/// A client's side of the story. It knows the truth, and nothing of how the relay works.
#[derive(Debug)]
pub(crate) struct Witness {
    place: Place,
    /// It has brought its position, and has not been told of a loss since.
    has_brought_it: bool,
    /// Since it connected, or since the last resync.
    seen: BTreeSet<EntryId>,
    live: bool,
    in_a_row: u32,
    /// When all had come to rest, it had everything that there was, and has read on since.
    in_step: bool,
    excuse: Excuse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// After this entry.
    At(EntryId),
    /// It was told that entries are missing, and goes on at the oldest kept after this id.
    Anew(EntryId),
}

/// Whether something has happened since the client was last at rest that a resync may tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Excuse {
    /// Nothing is missing, and it can be known.
    None,
    /// The entry at its position is gone, and more came after it.
    Gone,
    /// Its stream is not the one that it was.
    Another,
}

/// As many entries fit into one read whatever their size.
const FEW: usize = 8;
/// The fourth resync in a row without `live` ends the session.
const MOST_IN_A_ROW: u32 = 3;

impl Witness {
    /// A client that has just connected with this cursor, or at this position.
    pub(crate) fn at(position: EntryId, has_brought_it: bool) -> Self {
        Self {
            place: Place::At(position),
            has_brought_it,
            seen: BTreeSet::new(),
            live: false,
            in_a_row: 0,
            in_step: false,
            excuse: Excuse::None,
        }
    }

    /// What the client keeps to come back with.
    pub(crate) fn cursor(&self) -> EntryId {
        match self.place {
            Place::At(id) | Place::Anew(id) => id,
        }
    }

    /// An entry has come.
    pub(crate) fn event(&mut self, history: &History, id: EntryId, tag: u64) -> Result<(), String> {
        let Some(entry) = history.get(id) else {
            return Err(format!("{id} was never added"));
        };
        if entry.tag != tag {
            return Err(format!("{id} came with the payload of another entry"));
        }
        if !self.seen.insert(id) {
            return Err(format!("{id} came twice"));
        }
        match self.place {
            Place::Anew(floor) if id <= floor => return Err(format!("{id} after {floor}")),
            Place::Anew(floor) => {
                let mut skipped = history.between(floor, Some(id), entry.life);
                let is_skipped = |other: &&Added| other.fate == Fate::Kept && other.tag < tag;
                if let Some(skipped) = skipped.find(is_skipped) {
                    return Err(format!("{} was skipped before {id}", skipped.id));
                }
            }
            Place::At(at) => self.follows(history, at, id)?,
        }
        self.place = Place::At(id);
        self.note(history);
        Ok(())
    }

    fn follows(&self, history: &History, at: EntryId, id: EntryId) -> Result<(), String> {
        if id <= at {
            return Err(format!("{id} came after {at}"));
        }
        let (Some(entry), before) = (history.get(id), history.get(at)) else {
            return Ok(());
        };
        if let Some(before) = before {
            if history.looks_whole_after(at) {
                return Ok(());
            }
            if before.fate == Fate::Phantom && entry.fate != Fate::Phantom {
                return Err(format!(
                    "{at} was lost in a failover, and {id} came in silence"
                ));
            }
            if before.life != entry.life {
                return Err(format!(
                    "the stream of {at} has ended, and {id} came in silence"
                ));
            }
        }
        // A phantom may still come after the failover: what is new since then does not follow it.
        let mut between = history
            .between(at, Some(id), entry.life)
            .filter(|other| other.tag < entry.tag);
        match between.find(|other| !matches!(other.fate, Fate::Deleted | Fate::Phantom)) {
            Some(lost) => Err(format!("{} is missing between {at} and {id}", lost.id)),
            None => Ok(()),
        }
    }

    /// The client was told that entries are missing.
    pub(crate) fn resync(
        &mut self,
        history: &History,
        reason: &str,
        lost: &str,
    ) -> Result<(), String> {
        let at = self.cursor();
        if lost != at.to_string() {
            return Err(format!("{lost} is said to be lost at {at}"));
        }
        let (floor, least) = match (reason, self.place) {
            ("trimmed", Place::At(_)) => (at, Excuse::Gone),
            ("deleted" | "rolled_back", _) => (EntryId::ZERO, Excuse::Another),
            (other, place) => return Err(format!("a resync for the reason {other}, {place:?}")),
        };
        if self.excuse < least {
            return Err(format!(
                "{reason} at {at}, with the excuse {:?}",
                self.excuse
            ));
        }
        self.place = Place::Anew(floor);
        self.has_brought_it = false;
        self.seen.clear();
        self.live = false;
        self.in_step = false;
        self.in_a_row += 1;
        self.excuse = Excuse::None;
        self.note(history);
        Ok(())
    }

    /// The client was told that it has everything that was there.
    pub(crate) fn live(&mut self, history: &History, cursor: EntryId) -> Result<(), String> {
        match self.place {
            Place::At(at) if at != cursor => return Err(format!("live at {cursor}, not {at}")),
            Place::At(_) => {}
            Place::Anew(floor) => {
                let mut kept = history.kept().map(|entry| entry.id);
                if let Some(skipped) = kept.find(|id| *id > floor && *id <= cursor) {
                    return Err(format!("live at {cursor}, and {skipped} was skipped"));
                }
                self.place = Place::At(cursor);
                self.note(history);
            }
        }
        self.live = true;
        self.in_a_row = 0;
        Ok(())
    }

    /// The session has ended because continuity could not be restored.
    pub(crate) fn closed(&self, reason: &str) -> Result<(), String> {
        let given_up = reason == "continuity_lost" && self.in_a_row >= MOST_IN_A_ROW;
        match given_up {
            true => Ok(()),
            false => Err(format!("closed: {reason}, {} in a row", self.in_a_row)),
        }
    }

    /// What a client that reads must still be sent or told.
    pub(crate) fn lacks(&self, history: &History) -> Option<String> {
        let at = match self.place {
            Place::Anew(floor) => return Some(format!("a new start after {floor}")),
            Place::At(at) => at,
        };
        if let Some(before) = history.get(at) {
            if before.fate == Fate::Phantom {
                return Some(format!("word that {at} was lost in a failover"));
            }
            if !history.exists() || before.life != history.life() {
                return Some(format!("word that the stream of {at} has ended"));
            }
        }
        let mut after = history.between(at, None, history.life());
        let missing = after.find(|entry| matches!(entry.fate, Fate::Kept | Fate::Trimmed));
        if let Some(entry) = missing.filter(|_| history.exists()) {
            return Some(format!("{} ({:?}) after {at}", entry.id, entry.fate));
        }
        (!self.live).then(|| format!("live at {at}"))
    }

    /// All has come to rest; `tail` is how far the relay has read.
    pub(crate) fn rest(&mut self, history: &History, tail: EntryId) {
        self.in_step = self.place == Place::At(tail);
        self.excuse = Excuse::None;
        self.note(history);
    }

    /// It may have been read for without its reading on.
    pub(crate) fn fall_out_of_step(&mut self, history: &History) {
        self.in_step = false;
        self.note(history);
    }

    /// Something has happened: may the client be told of it?
    pub(crate) fn note(&mut self, history: &History) {
        self.excuse = self.excuse.max(self.excuse_at(history, self.cursor()));
    }

    fn excuse_at(&self, history: &History, at: EntryId) -> Excuse {
        let life = history.life();
        if at == EntryId::ZERO {
            // Who brings this as a cursor has missed what earlier lives of the key had. It need
            // not be told, but an answer of a moment ago may still tell it.
            let mut missed = history
                .all()
                .filter(|entry| entry.life == life || self.has_brought_it);
            let whole = missed.all(|entry| matches!(entry.fate, Fate::Kept | Fate::Phantom));
            return if whole { Excuse::None } else { Excuse::Gone };
        }
        let Some(before) = history.get(at) else {
            return Excuse::Another;
        };
        let is_another = !history.exists() || before.life != life || before.fate == Fate::Phantom;
        if is_another {
            return Excuse::Another;
        }
        if before.fate == Fate::Kept || history.last() == Some(at) {
            return Excuse::None;
        }
        // Who is in step has the relay's own word for it, also where the entry itself is gone.
        let after: Vec<_> = history.between(at, None, life).collect();
        let whole = after.iter().all(|entry| entry.fate == Fate::Kept);
        if self.in_step && whole && after.len() <= FEW && !history.has_unread_holes() {
            return Excuse::None;
        }
        match before.fate {
            Fate::Deleted => Excuse::Another,
            _ => Excuse::Gone,
        }
    }
}
