//! Entries that were read together, with their encodings.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::config::Route;
use crate::metrics::{Counter, ENTRIES_OMITTED, Metrics};
use crate::protocol::conflation::ConflationKey;
use crate::protocol::encoder::{Encoded, Encoder, Omitted};
use crate::stream::{Entry, EntryId, StreamKey};

/// All formats that the routes use. Each chunk has a place for each.
#[derive(Clone)]
pub struct Formats {
    encoders: Arc<[Encoder]>,
    omitted: Arc<[(Omitted, Counter)]>,
}

/// One of the [`Formats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormatId(usize);

impl Formats {
    /// The distinct formats of these routes.
    pub fn new(routes: &[Route], metrics: &Metrics) -> Self {
        let mut encoders: Vec<Encoder> = Vec::new();
        for route in routes {
            let encoder = Encoder::of(route);
            if !encoders.contains(&encoder) {
                encoders.push(encoder);
            }
        }
        let counter = |reason: Omitted| {
            (
                reason,
                metrics.counter(&ENTRIES_OMITTED, &[reason.as_str()]),
            )
        };
        Self {
            encoders: encoders.into(),
            omitted: Omitted::ALL.map(counter).into(),
        }
    }

    /// The place of a route's format; `None` if it was not among the routes at start.
    pub fn find(&self, route: &Route) -> Option<FormatId> {
        let wanted = Encoder::of(route);
        self.encoders
            .iter()
            .position(|encoder| *encoder == wanted)
            .map(FormatId)
    }

    /// The encoder of a format.
    pub fn encoder(&self, format: FormatId) -> &Encoder {
        &self.encoders[format.0]
    }

    fn count_omitted(&self, reason: Omitted) {
        for (_, counter) in self.omitted.iter().filter(|(known, _)| *known == reason) {
            counter.inc();
        }
    }
}

/// At least one entry, ascending, as one read brought them.
pub struct Chunk {
    key: StreamKey,
    entries: Box<[Entry]>,
    size: usize,
    /// Filled when the first session needs a format.
    encoded: Box<[OnceLock<Encoded>]>,
    /// Filled when the first session that lags needs them.
    keys: Box<[OnceLock<Keys>]>,
    formats: Formats,
}

/// What each entry may be folded by.
type Keys = Box<[Option<ConflationKey>]>;

impl Chunk {
    /// `None` without entries.
    pub fn new(key: &StreamKey, entries: Vec<Entry>, formats: &Formats) -> Option<Self> {
        if entries.is_empty() {
            return None;
        }
        Some(Self {
            key: key.clone(),
            size: entries
                .iter()
                .map(|entry| entry.size() + ENTRY_OVERHEAD)
                .sum(),
            entries: entries.into(),
            encoded: formats.encoders.iter().map(|_| OnceLock::new()).collect(),
            keys: formats.encoders.iter().map(|_| OnceLock::new()).collect(),
            formats: formats.clone(),
        })
    }

    /// One read in chunks of a batch each: a client that stalls holds what it was sent, and that
    /// must not be a whole read.
    pub fn split(key: &StreamKey, entries: Vec<Entry>, formats: &Formats) -> Vec<Self> {
        let mut chunks = Vec::new();
        let mut gathered = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            bytes += entry.size() + ENTRY_OVERHEAD;
            gathered.push(entry);
            if bytes >= BATCH_BYTES {
                chunks.extend(Self::new(key, std::mem::take(&mut gathered), formats));
                bytes = 0;
            }
        }
        chunks.extend(Self::new(key, gathered, formats));
        chunks
    }

    /// The entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The id of the last entry.
    pub fn last(&self) -> EntryId {
        self.entries[self.entries.len() - 1].id
    }

    /// About the memory that it takes, with one encoding: payloads are in it twice then.
    pub fn size(&self) -> usize {
        self.size * 2
    }

    /// Where the entries after a position begin.
    pub fn index_after(&self, position: EntryId) -> usize {
        self.entries.partition_point(|entry| entry.id <= position)
    }

    /// Whether there is an entry with this id.
    pub fn contains(&self, id: EntryId) -> bool {
        self.entries
            .binary_search_by_key(&id, |entry| entry.id)
            .is_ok()
    }

    fn encoded(&self, format: FormatId) -> &Encoded {
        self.encoded[format.0].get_or_init(|| {
            let encoder = self.formats.encoder(format);
            encoder.encode(&self.key, &self.entries, |reason| {
                self.formats.count_omitted(reason)
            })
        })
    }

    fn keys(&self, format: FormatId) -> &[Option<ConflationKey>] {
        self.keys[format.0].get_or_init(|| {
            let conflation = self.formats.encoder(format).conflation();
            let key = |entry| conflation.and_then(|conflation| conflation.key(entry));
            self.entries.iter().map(key).collect()
        })
    }
}

/// A session is given about this much at a time.
pub const BATCH_BYTES: usize = 64 * 1024;

/// What an entry costs beside its bytes: its vector, its ids, its places in encodings.
const ENTRY_OVERHEAD: usize = 96;

/// The entries of a chunk from one on: a cheap clone of shared bytes.
#[derive(Clone)]
pub struct Slice {
    chunk: Arc<Chunk>,
    start: usize,
}

impl Slice {
    /// The entries of `chunk` after `position`; `None` if there are none.
    pub fn after(chunk: &Arc<Chunk>, position: EntryId) -> Option<Self> {
        let start = chunk.index_after(position);
        (start < chunk.entries.len()).then(|| Self {
            chunk: chunk.clone(),
            start,
        })
    }

    /// The entries.
    pub fn entries(&self) -> &[Entry] {
        &self.chunk.entries[self.start..]
    }

    /// The id of the last entry.
    pub fn last(&self) -> EntryId {
        self.chunk.last()
    }

    /// All messages, framed, end to end; for formats whose messages are the same for everybody.
    pub fn messages(&self, format: FormatId) -> Bytes {
        self.chunk.encoded(format).from(self.start)
    }

    /// How many messages there are: an entry without a message is not one.
    pub fn message_count(&self, format: FormatId) -> usize {
        self.chunk.encoded(format).messages_from(self.start)
    }

    /// For formats whose messages need the session's cursor: each id with its piece.
    pub fn pieces(&self, format: FormatId) -> impl Iterator<Item = (EntryId, &[u8])> {
        let encoded = self.chunk.encoded(format);
        let indices = self.start..self.chunk.entries.len();
        indices.map(move |index| (self.chunk.entries[index].id, encoded.piece(index)))
    }

    /// What each entry may be folded by, in a format that conflates.
    pub fn keys(&self, format: FormatId) -> &[Option<ConflationKey>] {
        &self.chunk.keys(format)[self.start..]
    }

    /// Bytes of the payloads, about.
    pub fn size(&self) -> usize {
        let entries = self.chunk.entries.len();
        self.chunk.size * (entries - self.start) / entries
    }
}
