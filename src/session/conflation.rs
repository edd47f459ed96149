//! A client that lags is sent the newest entry of each key only, of what has been read.

use std::collections::HashSet;

use super::{Batch, Output, Session};
use crate::config::WhenLagging;
use crate::hub::chunk::{BATCH_BYTES, FormatId, Slice};
use crate::hub::feed::{After, Epoch, Reach};
use crate::protocol::ControlFrame;
use crate::stream::{Cursor, EntryId};

/// How far a session that conflates looks ahead in the ring. What is sent of it is a batch like
/// any other.
const LOOK_AHEAD: Reach = Reach {
    bytes: 1024 * 1024,
    chunks: 4096,
};

impl Session {
    /// Whether only the newest entry of each key is sent.
    pub(super) fn is_conflating(&self, index: usize) -> bool {
        let slow = self.route.slow();
        let lag = self.streams[index].lag();
        self.live
            && matches!(slow.then, WhenLagging::Conflate(_))
            && slow.max_lag.is_some_and(|most| lag > most)
    }

    /// Of what the ring has.
    pub(super) fn send_newest_of_ring(&mut self, index: usize) {
        let stream = &self.streams[index];
        let feed = &stream.watch.feed;
        let after = feed.after_within(stream.position, LOOK_AHEAD);
        // Anything else is found out by asking again.
        if let After::Entries { slices, epoch, .. } = after {
            self.send_newest(index, &slices, epoch);
        }
    }

    /// Of these entries: up to a batch of them goes into the outbox, in their order, each with its
    /// own cursor.
    pub(super) fn send_newest(&mut self, index: usize, slices: &[Slice], epoch: Epoch) {
        let format = self.route.format();
        let is_newest = newest_of_each_key(slices, format);
        let encoder = self.route.encoder();
        let mut ids: Vec<EntryId> = self.streams.iter().map(|s| s.position.id).collect();
        let (mut messages, mut count) = (Vec::new(), 0);
        let (mut passed, mut folded) = (0, 0);
        let pieces = slices.iter().flat_map(|slice| slice.pieces(format));
        for ((id, piece), is_newest) in pieces.zip(is_newest) {
            if is_newest && messages.len() >= BATCH_BYTES {
                break;
            }
            passed += 1;
            ids[index] = id;
            if !is_newest {
                folded += 1;
            } else if !piece.is_empty() {
                count += 1;
                match encoder.needs_cursor() {
                    true => {
                        let cursor = Cursor::display(ids.iter().copied(), &self.keys);
                        encoder.push_with_cursor(&mut messages, &cursor, piece);
                    }
                    false => messages.extend_from_slice(piece),
                }
            }
        }
        self.note_latency(slices);
        self.streams[index].pass(ids[index], epoch, passed);
        if folded > 0 {
            self.route.meters().note_conflated(folded);
            let keys = self.keys.clone();
            self.tell(&ControlFrame::Conflated {
                stream: keys.as_slice()[index].as_str(),
                folded,
            });
        }
        if count > 0 {
            let batch = Batch::new(vec![messages.into()], count);
            self.outbox.push_back(Output::Messages(batch));
        }
    }
}

/// For each entry whether no later one has its key. Entries without a key are always kept.
fn newest_of_each_key(slices: &[Slice], format: FormatId) -> Vec<bool> {
    let mut seen = HashSet::new();
    let keys = slices.iter().flat_map(|slice| slice.keys(format));
    let keys: Vec<_> = keys.collect();
    let mut is_newest: Vec<bool> = keys
        .into_iter()
        .rev()
        .map(|key| key.as_ref().is_none_or(|key| seen.insert(key)))
        .collect();
    is_newest.reverse();
    is_newest
}
