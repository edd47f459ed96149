//! A session's own cursor, and messages put together for it where the format needs that.

use smallvec::smallvec;

use super::{Batch, Session};
use crate::hub::chunk::BATCH_BYTES;
use crate::protocol::encoder::Encoder;
use crate::stream::{Cursor, EntryId, StreamKeys};

/// Messages of one stream, one after the other.
pub(super) struct Gathering<'a> {
    encoder: &'a Encoder,
    keys: &'a StreamKeys,
    /// Where the session stands in each of its streams, with what is gathered.
    ids: Vec<EntryId>,
    index: usize,
    messages: Vec<u8>,
    count: usize,
}

impl Session {
    /// The cursor after everything sent so far.
    pub(super) fn cursor(&self) -> String {
        Cursor::display(self.ids(), &self.keys).to_string()
    }

    /// Where it stands in each of its streams.
    fn ids(&self) -> impl Iterator<Item = EntryId> + Clone {
        self.streams.iter().map(|stream| stream.position.id)
    }

    pub(super) fn gather(&self, index: usize) -> Gathering<'_> {
        Gathering {
            encoder: self.route.encoder(),
            keys: &self.keys,
            ids: self.ids().collect(),
            index,
            messages: Vec::new(),
            count: 0,
        }
    }
}

impl Gathering<'_> {
    /// Adds the entry with this id. One that has no message is an empty piece.
    pub(super) fn push(&mut self, id: EntryId, piece: &[u8]) {
        self.ids[self.index] = id;
        if piece.is_empty() {
            return;
        }
        self.count += 1;
        match self.encoder.needs_cursor() {
            true => {
                let cursor = Cursor::display(self.ids.iter().copied(), self.keys);
                self.encoder
                    .push_with_cursor(&mut self.messages, &cursor, piece);
            }
            false => self.messages.extend_from_slice(piece),
        }
    }

    /// Whether it is as much as a client is given at a time.
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() >= BATCH_BYTES
    }

    pub(super) fn into_batch(self) -> Batch {
        Batch::new(smallvec![self.messages.into()], self.count)
    }
}
