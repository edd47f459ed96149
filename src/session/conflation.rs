//! A client that lags is sent the newest entry of each key only, of what has been read.

use std::collections::HashSet;

use super::{Output, Session};
use crate::config::WhenLagging;
use crate::hub::chunk::{FormatId, Slice};
use crate::hub::feed::{After, Epoch, Reach};
use crate::protocol::ControlFrame;

/// How far a session that conflates looks ahead in the ring. What is sent of it is a batch like
/// any other.
const LOOK_AHEAD: Reach = Reach {
    bytes: 1024 * 1024,
    chunks: 4096,
};

impl Session {
    /// Whether only the newest entry of each key is sent.
    pub(super) fn is_conflating(&self, index: usize) -> bool {
        let then = &self.route.slow().then;
        matches!(then, WhenLagging::Conflate(_)) && self.is_past_max_lag(index)
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
        let mut gathering = self.gather(index);
        let mut last = self.streams[index].position.id;
        let (mut passed, mut folded) = (0, 0);
        let pieces = slices.iter().flat_map(|slice| slice.pieces(format));
        for ((id, piece), is_newest) in pieces.zip(is_newest) {
            if is_newest && gathering.is_full() {
                break;
            }
            (last, passed) = (id, passed + 1);
            match is_newest {
                true => gathering.push(id, piece),
                false => folded += 1,
            }
        }
        let batch = gathering.into_batch();
        self.note_latency(slices);
        self.streams[index].pass(last, epoch, passed);
        if folded > 0 {
            self.route.meters().note_conflated(folded);
            let keys = self.keys.clone();
            self.tell(&ControlFrame::Conflated {
                stream: keys.as_slice()[index].as_str(),
                folded,
            });
        }
        if batch.count > 0 {
            self.outbox.push(Output::Messages(batch));
        }
    }
}

/// For each entry whether no later one has its key. Entries without a key are always kept.
fn newest_of_each_key(slices: &[Slice], format: FormatId) -> Vec<bool> {
    let mut seen = HashSet::new();
    let newest_first = slices.iter().rev();
    let newest_first = newest_first.flat_map(|slice| slice.keys(format).iter().rev());
    let mut is_newest: Vec<bool> = newest_first
        .map(|key| key.as_ref().is_none_or(|key| seen.insert(key)))
        .collect();
    is_newest.reverse();
    is_newest
}
