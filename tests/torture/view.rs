//! What one client has seen, held against the publishers' log.
//!
//! Each frame either follows from what was seen before, or is a violation. Nothing here waits
//! and nothing reads a socket: what is shown to it is judged.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;

use relay::stream::EntryId;

use super::frame::{Frame, State, ids};
use super::log::{Facts, Log, Owner};
use super::payload::Payload;
use super::routes::{Route, key};

const RECENT: usize = 12;
const RECENT_CHARS: usize = 200;

pub(crate) struct View {
    log: Arc<Log>,
    route: &'static Route,
    seen: Vec<Seen>,
    /// That of the last frame which had one.
    cursor: Option<String>,
    now: Connection,
    recent: VecDeque<String>,
}

/// One stream of the route.
struct Seen {
    stream: usize,
    place: Place,
    /// Its part of the cursor, once that is known.
    position: Option<EntryId>,
    told: Told,
}

/// Whether a loss was told, and no entry has come since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    No,
    /// And no cursor has come since: whoever leaves now is told again.
    Said,
    /// The cursor is one of after the loss.
    Kept,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// All up to this entry was seen, or is accounted for by a snapshot.
    After(u64),
    /// Nothing was seen: what comes first is this entry, or an earlier one.
    AtMost(u64),
    /// Where a stream begins that was not there.
    Beginning,
    /// Before the oldest entry kept.
    Oldest,
}

#[derive(Default)]
struct Connection {
    /// The reason of the snapshot that must come before any entry.
    awaits: Option<String>,
    live: bool,
    degraded: bool,
}

/// Why a frame is not taken.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It names an entry whose id is not known yet: show it again when that has settled.
    NotYet(usize, EntryId),
    Violation(String),
}

/// What a frame was, for those who count.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Entry,
    Resync(String),
    /// Whether each cut is the one that the API has declared.
    Snapshot {
        is_exact: bool,
    },
    Other,
}

type Judged<T = ()> = Result<T, String>;

impl View {
    pub(crate) fn new(log: Arc<Log>, route: &'static Route, streams: &[usize]) -> Self {
        let seen = |stream: &usize| Seen {
            stream: *stream,
            place: Place::Oldest,
            position: None,
            told: Told::No,
        };
        Self {
            log,
            route,
            seen: streams.iter().map(seen).collect(),
            cursor: None,
            now: Connection::default(),
            recent: VecDeque::new(),
        }
    }

    /// What to come back with.
    pub(crate) fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// From now on it is a new client.
    pub(crate) fn forget(&mut self) {
        self.cursor = None;
    }

    /// A connection is open, with the cursor if there is one.
    pub(crate) fn connected(&mut self) {
        self.now = Connection::default();
        for seen in &mut self.seen {
            if seen.told == Told::Said || self.cursor.is_none() {
                seen.told = Told::No;
            }
        }
        if let Some(cursor) = &self.cursor {
            // What a resync said of the position is not what the client has kept.
            let ids = ids(cursor).into_iter().flatten();
            for (seen, id) in self.seen.iter_mut().zip(ids) {
                seen.position = Some(id);
            }
            return;
        }
        if self.route.has_snapshot {
            self.now.awaits = Some("connect".to_owned());
        }
        for seen in &mut self.seen {
            seen.position = None;
            // The tail noted at the attach may be old, but never newer than what was sent by now.
            seen.place = match self.route.has_history {
                true => Place::Oldest,
                false => Place::AtMost(self.log.facts(seen.stream).sent + 1),
            };
        }
    }

    /// Whether everything up to these entries was seen.
    pub(crate) fn has_reached(&self, last: &[u64]) -> bool {
        let reached = |seen: &Seen| seen.place == Place::After(last[seen.stream]);
        self.seen.iter().all(reached)
    }

    /// Judges a frame. After `NotYet` nothing has changed.
    pub(crate) fn take(&mut self, text: &str) -> Result<Taken, Trouble> {
        let frame = Frame::parse(text).map_err(Trouble::Violation)?;
        self.settled(&frame)?;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent
            .push_back(text.chars().take(RECENT_CHARS).collect());
        let taken = self.judge(frame).map_err(Trouble::Violation)?;
        if self.route.has_cursor
            && let Some(cursor) = Frame::cursor_text(text)
        {
            if self.cursor.as_deref() != Some(cursor) {
                self.cursor = Some(cursor.to_owned());
            }
            for seen in &mut self.seen {
                if seen.told == Told::Said {
                    seen.told = Told::Kept;
                }
            }
        }
        Ok(taken)
    }

    /// What is seen, for a person who has to find out what went wrong.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("route {}, cursor {:?}\n", self.route.name, self.cursor);
        for seen in &self.seen {
            let facts = self.log.facts(seen.stream);
            let (stream, place, position) = (seen.stream, seen.place, seen.position);
            let told = seen.told;
            writeln!(
                text,
                "  stream {stream}: {place:?}, position {position:?}, told: {told:?}; log: {facts:?}"
            )
            .expect("a string takes everything");
        }
        for frame in &self.recent {
            writeln!(text, "  < {frame}").expect("a string takes everything");
        }
        text
    }

    /// Every id in the frame's cursor that is not one's own already must belong to an entry.
    fn settled(&self, frame: &Frame<'_>) -> Result<(), Trouble> {
        let (ids, own) = match frame {
            Frame::Snapshot { cursor, .. } | Frame::Live { cursor } => (Some(cursor), None),
            Frame::Resync { lost, .. } => (Some(lost), None),
            Frame::Event { cursor, id, .. } => (cursor.as_ref(), *id),
            Frame::Status(_) | Frame::Goaway => (None, None),
        };
        for (seen, id) in self.seen.iter().zip(ids.into_iter().flatten()) {
            let is_known = seen.position == Some(*id) || own == Some(*id);
            if !is_known && self.log.owner(seen.stream, *id) == Owner::NotYet {
                return Err(Trouble::NotYet(seen.stream, *id));
            }
        }
        Ok(())
    }

    fn judge(&mut self, frame: Frame<'_>) -> Judged<Taken> {
        match frame {
            Frame::Event {
                stream,
                id,
                cursor,
                payload,
            } => {
                self.event(stream, id, &payload)?;
                if let Some(cursor) = cursor {
                    self.stands_at(&cursor)?;
                }
                Ok(Taken::Entry)
            }
            Frame::Live { cursor } => {
                self.awaits_nothing("live")?;
                if std::mem::replace(&mut self.now.live, true) {
                    return Err("live twice".to_owned());
                }
                self.stands_at(&cursor)?;
                Ok(Taken::Other)
            }
            Frame::Resync { reason, lost } => {
                self.resync(reason, &lost)?;
                Ok(Taken::Resync(reason.to_owned()))
            }
            Frame::Snapshot {
                reason,
                cursor,
                state,
            } => self.snapshot(reason, &cursor, &state),
            Frame::Status(state) => {
                let degraded = match state {
                    "degraded" => true,
                    "ok" => false,
                    _ => return Err(format!("the status {state}")),
                };
                if std::mem::replace(&mut self.now.degraded, degraded) == degraded {
                    return Err(format!("the status {state} twice, or of no outage"));
                }
                Ok(Taken::Other)
            }
            Frame::Goaway => Ok(Taken::Other),
        }
    }

    fn awaits_nothing(&self, what: &str) -> Judged {
        match &self.now.awaits {
            None => Ok(()),
            Some(reason) => Err(format!("{what} before the snapshot for {reason:?}")),
        }
    }

    fn event(&mut self, name: Option<&str>, id: Option<EntryId>, payload: &Payload<'_>) -> Judged {
        self.awaits_nothing("an entry")?;
        if !payload.is_whole(self.log.seed) {
            return Err(format!("the checksum is wrong: {payload:?}"));
        }
        let Some(seen) = self.seen.iter_mut().find(|seen| seen.stream == payload.of) else {
            return Err(format!("an entry of another stream: {}", payload.of));
        };
        if name.is_some_and(|name| name != key(payload.of)) {
            return Err(format!(
                "an entry of {} under the name {name:?}",
                payload.of
            ));
        }
        self.log.claim(payload.of, payload.n, id)?;
        seen.follows(payload.n, self.log.facts(payload.of))?;
        seen.arrive(payload.n, id);
        Ok(())
    }

    fn resync(&mut self, reason: &str, lost: &[EntryId]) -> Judged {
        self.awaits_nothing("a resync")?;
        self.stands_at(lost)?;
        let mut is_justified = false;
        for seen in &mut self.seen {
            let facts = self.log.facts(seen.stream);
            let gone = match reason {
                "trimmed" => facts.removed,
                "deleted" | "rolled_back" => facts.deleted,
                _ => return Err(format!("a resync for the reason {reason}")),
            };
            // What can't be told apart: whether anything followed the entry that is gone.
            let may_be = match seen.place {
                Place::After(n) => gone >= n,
                Place::AtMost(_) | Place::Beginning | Place::Oldest => true,
            };
            if may_be && seen.told == Told::No {
                seen.told = Told::Said;
            }
            is_justified |= may_be;
        }
        if !is_justified {
            return Err(format!("a resync ({reason}) although nothing is gone"));
        }
        self.now.live = false;
        if self.route.has_snapshot {
            self.now.awaits = Some(reason.to_owned());
        }
        Ok(())
    }

    /// The state must include all that comes not after the cut.
    fn snapshot(&mut self, reason: &str, cut: &[EntryId], state: &State) -> Judged<Taken> {
        if self.now.awaits.take().as_deref() != Some(reason) {
            return Err(format!("a snapshot for {reason:?} that nobody waits for"));
        }
        self.has_all_parts(cut)?;
        for ((seen, id), through) in self.seen.iter_mut().zip(cut).zip(&state.through) {
            let place = match self.log.owner(seen.stream, *id) {
                _ if *id == EntryId::ZERO => Place::Beginning,
                Owner::Entry(n) if n <= *through => Place::After(n),
                owner => {
                    let stream = seen.stream;
                    return Err(format!(
                        "the cut {id} of stream {stream} is {owner:?}, and the state ends at {through}"
                    ));
                }
            };
            (seen.place, seen.position, seen.told) = (place, Some(*id), Told::No);
        }
        let mut declared = state.declared.iter().zip(cut);
        let is_exact = declared.all(|(declared, cut)| {
            let declared = declared.as_deref().and_then(EntryId::parse);
            declared == Some(*cut)
        });
        Ok(Taken::Snapshot { is_exact })
    }

    fn has_all_parts(&self, cursor: &[EntryId]) -> Judged {
        match cursor.len() == self.seen.len() {
            true => Ok(()),
            false => Err(format!("a cursor for {} streams", cursor.len())),
        }
    }

    /// A cursor says what was seen, and nothing else.
    fn stands_at(&mut self, cursor: &[EntryId]) -> Judged {
        self.has_all_parts(cursor)?;
        for (seen, id) in self.seen.iter_mut().zip(cursor) {
            if seen.position != Some(*id) {
                seen.move_to(*id, &self.log)?;
            }
        }
        Ok(())
    }
}

impl Seen {
    /// Whether the entry may be the next one.
    fn follows(&self, n: u64, facts: Facts) -> Judged {
        let before = n - 1;
        let is_next = match self.place {
            Place::After(last) => before == last,
            Place::AtMost(most) => n <= most,
            Place::Beginning => before <= facts.deleted,
            Place::Oldest => before <= facts.removed,
        };
        let is_later = match self.place {
            Place::After(last) => before > last,
            Place::AtMost(_) | Place::Beginning | Place::Oldest => true,
        };
        if is_next || is_later && self.is_told() && before <= facts.removed {
            return Ok(());
        }
        let (stream, place, told) = (self.stream, self.place, self.is_told());
        let what = match (is_later, told) {
            (false, _) => "twice or out of order",
            (true, false) => "after a hole that was not told",
            (true, true) => "after a hole that was told, but some of it was still there",
        };
        Err(format!(
            "stream {stream}: entry {n} came {what}; place {place:?}, log {facts:?}"
        ))
    }

    fn is_told(&self) -> bool {
        self.told != Told::No
    }

    fn arrive(&mut self, n: u64, id: Option<EntryId>) {
        (self.place, self.position, self.told) = (Place::After(n), id, Told::No);
    }

    /// A cursor stands elsewhere than the last one.
    fn move_to(&mut self, id: EntryId, log: &Log) -> Judged {
        let facts = log.facts(self.stream);
        let is_first = self.position.is_none();
        if id == EntryId::ZERO {
            match self.place {
                Place::AtMost(_) if is_first => self.place = Place::Beginning,
                Place::Oldest | Place::Beginning => {}
                // After a loss it begins anew.
                Place::After(_) | Place::AtMost(_) if self.is_told() => {}
                place => return Err(self.astray(id, &format!("{place:?}"))),
            }
            self.position = Some(id);
            return Ok(());
        }
        let Owner::Entry(n) = log.owner(self.stream, id) else {
            return Err(self.astray(id, "nobody's"));
        };
        let is_there = match self.place {
            Place::After(last) => {
                is_first && n == last || self.is_told() && n > last && n <= facts.removed
            }
            Place::AtMost(most) => is_first && n < most || self.is_told() && n <= facts.removed,
            Place::Beginning => self.is_told() && n <= facts.removed,
            Place::Oldest => n <= facts.removed,
        };
        if !is_there {
            return Err(self.astray(id, &format!("entry {n}, {facts:?}")));
        }
        if !is_first {
            self.told = Told::No;
        }
        (self.place, self.position) = (Place::After(n), Some(id));
        Ok(())
    }

    fn astray(&self, id: EntryId, what: &str) -> String {
        format!(
            "stream {}: a cursor at {id} ({what}); seen is {:?} at {:?}, told: {:?}",
            self.stream, self.place, self.position, self.told
        )
    }
}
