//! The proof that nothing between a position and what was read after it is missing.
//!
//! Every read is inclusive: it asks from the position itself on. An answer that begins with
//! the entry at the position proves itself. Only where it does not, `XINFO STREAM` decides.
//! Everything here is arithmetic on what was read.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use crate::protocol::LossReason;
use crate::store::{Answer, StreamInfo};
use crate::stream::{Entry, EntryId};

/// A position, with what its holder knows about it.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// The id of the last entry dealt with.
    pub position: EntryId,
    /// Of the entry at the position, if it was ever seen.
    pub digest: Option<Digest>,
    /// `entries-added` of the stream when its last entry was the one at the position.
    pub added: Option<u64>,
    /// The key was seen missing on this connection: then `0-0` is a position, even where Redis
    /// does not count added entries (6.2).
    pub was_missing: bool,
}

impl Known {
    /// Of a position of which nothing else is known.
    pub fn at(position: EntryId) -> Self {
        Self {
            position,
            digest: None,
            added: None,
            was_missing: false,
        }
    }
}

/// What an answer means for a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is missing; these are the entries after the position.
    Continuous(Vec<Entry>),
    /// Something is missing.
    Lost(LossReason),
    /// The two halves of the answer are of different moments: to be asked again.
    Torn,
    /// The answer does not begin at the position: `XINFO STREAM` must be asked too.
    InfoNeeded,
}

/// A fingerprint of an entry: an id that was used again for other content is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// Of this entry; comparable within this process.
    pub fn of(entry: &Entry) -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(KEYS.hash_one(&entry.fields))
    }
}

/// Judges an answer to a read from `known.position` on with COUNT `count`.
pub fn judge(known: &Known, answer: Answer, count: usize) -> Verdict {
    let Answer { mut entries, info } = answer;
    let is_full = entries.len() >= count;
    let begins_at_position = entries.first().is_some_and(|first| {
        first.id == known.position
            && known
                .digest
                .is_none_or(|digest| digest == Digest::of(first))
    });
    if begins_at_position {
        entries.remove(0);
        return Verdict::Continuous(entries);
    }
    match info {
        None => Verdict::InfoNeeded,
        Some(None) if known.position == EntryId::ZERO && entries.is_empty() => {
            Verdict::Continuous(entries)
        }
        Some(None) if entries.is_empty() => Verdict::Lost(LossReason::Deleted),
        Some(None) => Verdict::Torn,
        Some(Some(info)) => by_info(known, entries, is_full, &info),
    }
}

/// The order matters: each step rests on those before it.
fn by_info(known: &Known, entries: Vec<Entry>, is_full: bool, info: &StreamInfo) -> Verdict {
    let position = known.position;
    if position > info.last_generated {
        return Verdict::Lost(LossReason::RolledBack);
    }
    let is_other_entry = entries.first().is_some_and(|first| first.id == position);
    if is_other_entry {
        return Verdict::Lost(LossReason::RolledBack);
    }
    if position == info.last_generated {
        // An entry that came between the two halves would have raised last-generated-id.
        return Verdict::Continuous(entries);
    }
    let is_whole = !is_full
        && entries
            .last()
            .is_some_and(|last| last.id == info.last_generated);
    let received = entries.len() as u64;
    let counted = known.added.map(|added| added + received);
    if is_whole
        && counted.is_some()
        && counted == info.entries_added
        && may_have_left(position, info)
    {
        return Verdict::Continuous(entries);
    }
    let nothing_ever_left = match info.entries_added {
        Some(added) => added == info.length,
        None => known.was_missing,
    };
    if position == EntryId::ZERO && nothing_ever_left {
        return Verdict::Continuous(entries);
    }
    if !is_full && !is_whole && counted.is_some() {
        // Entries came between the two halves, or the newest was deleted by hand.
        return Verdict::Torn;
    }
    Verdict::Lost(loss(position, info))
}

/// Whether an entry that is gone can have been in this stream: trimmed, with all before it, or
/// deleted by hand. One that was lost in a failover was not, though the count may fit by chance.
fn may_have_left(position: EntryId, info: &StreamInfo) -> bool {
    let was_trimmed = info.first.is_none_or(|first| first > position);
    let was_deleted = info.max_deleted.is_some_and(|deleted| deleted >= position);
    was_trimmed || was_deleted
}

/// What to say when a torn answer stays torn: the worst that it can mean.
pub fn loss(position: EntryId, info: &StreamInfo) -> LossReason {
    match info.first {
        Some(first) if first <= position => LossReason::RolledBack,
        Some(_) | None => LossReason::Trimmed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seq: u64) -> EntryId {
        EntryId::new(1, seq)
    }

    fn entries(seqs: &[u64]) -> Vec<Entry> {
        let entry = |seq: &u64| Entry {
            id: id(*seq),
            fields: vec![("n".into(), seq.to_string().into())],
        };
        seqs.iter().map(entry).collect()
    }

    fn info(last: u64, added: u64, kept: &[u64]) -> StreamInfo {
        StreamInfo {
            last_generated: id(last),
            entries_added: Some(added),
            length: kept.len() as u64,
            first: kept.first().map(|seq| id(*seq)),
            max_deleted: Some(EntryId::ZERO),
        }
    }

    fn answer(seqs: &[u64], info: Option<StreamInfo>) -> Answer {
        Answer {
            entries: entries(seqs),
            info: Some(info),
        }
    }

    #[test]
    fn an_answer_that_begins_at_the_position_proves_itself() {
        let answer = Answer {
            entries: entries(&[3, 4, 5]),
            info: None,
        };
        assert_eq!(
            judge(&Known::at(id(3)), answer, 10),
            Verdict::Continuous(entries(&[4, 5]))
        );
    }

    #[test]
    fn the_same_id_with_other_content_is_another_stream() {
        let mut known = Known::at(id(3));
        known.digest = Some(Digest::of(&entries(&[9])[0]));
        let answer = |info| Answer {
            entries: entries(&[3, 4]),
            info,
        };
        assert_eq!(judge(&known, answer(None), 10), Verdict::InfoNeeded);
        let verdict = judge(&known, answer(Some(Some(info(4, 4, &[3, 4])))), 10);
        assert_eq!(verdict, Verdict::Lost(LossReason::RolledBack));
    }

    /// Each case: what it is, the position, what was received, what Redis says of the stream.
    type Case = (&'static str, Known, &'static [u64], Option<StreamInfo>);

    fn counted(position: EntryId, added: u64) -> Known {
        Known {
            added: Some(added),
            ..Known::at(position)
        }
    }

    #[test]
    fn what_the_ladder_proves() {
        let cases: [Case; 6] = [
            (
                "the one at the position deleted by hand, one later",
                counted(id(5), 5),
                &[6],
                Some(StreamInfo {
                    max_deleted: Some(id(5)),
                    ..info(6, 6, &[3, 4, 6])
                }),
            ),
            (
                "missing, never anything",
                Known::at(EntryId::ZERO),
                &[],
                None,
            ),
            (
                "the last one, deleted by hand",
                Known::at(id(5)),
                &[],
                Some(info(5, 5, &[4])),
            ),
            (
                "MAXLEN 1, one later",
                counted(id(5), 5),
                &[6],
                Some(info(6, 6, &[6])),
            ),
            (
                "a new stream",
                Known::at(EntryId::ZERO),
                &[1, 2],
                Some(info(2, 2, &[1, 2])),
            ),
            (
                "a stream made empty, with a group",
                Known::at(EntryId::ZERO),
                &[],
                Some(StreamInfo {
                    last_generated: EntryId::ZERO,
                    ..info(0, 0, &[])
                }),
            ),
        ];
        for (name, known, received, info) in cases {
            let verdict = judge(&known, answer(received, info), 10);
            assert_eq!(verdict, Verdict::Continuous(entries(received)), "{name}");
        }
    }

    #[test]
    fn what_the_ladder_tells() {
        use LossReason::{Deleted, RolledBack, Trimmed};
        let cases: [(Case, LossReason); 8] = [
            (
                (
                    "a failover to as many lower ids as were lost",
                    counted(id(7), 5),
                    &[9],
                    Some(info(9, 6, &[1, 2, 3, 4, 6, 9])),
                ),
                RolledBack,
            ),
            (("deleted", Known::at(id(5)), &[], None), Deleted),
            (
                ("ahead", Known::at(id(9)), &[], Some(info(5, 5, &[4, 5]))),
                RolledBack,
            ),
            (
                (
                    "MAXLEN 1, two later",
                    counted(id(5), 5),
                    &[7],
                    Some(info(7, 7, &[7])),
                ),
                Trimmed,
            ),
            (
                (
                    "new, but trimmed already",
                    Known::at(EntryId::ZERO),
                    &[2],
                    Some(info(2, 2, &[2])),
                ),
                Trimmed,
            ),
            (
                ("emptied", Known::at(id(3)), &[], Some(info(5, 5, &[]))),
                Trimmed,
            ),
            (
                (
                    "trimmed",
                    Known::at(id(3)),
                    &[7, 8],
                    Some(info(8, 8, &[7, 8])),
                ),
                Trimmed,
            ),
            (
                (
                    "a failover that ran on",
                    Known::at(id(3)),
                    &[4],
                    Some(info(4, 3, &[1, 2, 4])),
                ),
                RolledBack,
            ),
        ];
        for ((name, known, received, info), reason) in cases {
            assert_eq!(
                judge(&known, answer(received, info), 10),
                Verdict::Lost(reason),
                "{name}"
            );
        }
    }

    #[test]
    fn halves_of_different_moments_are_asked_again() {
        let cases: [Case; 2] = [
            ("deleted in between", Known::at(id(5)), &[6], None),
            (
                "one came in between",
                counted(id(5), 5),
                &[6],
                Some(info(7, 7, &[7])),
            ),
        ];
        for (name, known, received, info) in cases {
            assert_eq!(
                judge(&known, answer(received, info), 10),
                Verdict::Torn,
                "{name}"
            );
        }
    }

    #[test]
    fn an_old_server_does_not_count_but_a_missing_key_was_seen() {
        let uncounted = StreamInfo {
            entries_added: None,
            ..info(2, 2, &[1, 2])
        };
        let seen = Known {
            was_missing: true,
            ..Known::at(EntryId::ZERO)
        };
        let verdict = judge(&seen, answer(&[1, 2], Some(uncounted)), 10);
        assert_eq!(verdict, Verdict::Continuous(entries(&[1, 2])));
        let verdict = judge(
            &Known::at(EntryId::ZERO),
            answer(&[1, 2], Some(uncounted)),
            10,
        );
        assert_eq!(verdict, Verdict::Lost(LossReason::Trimmed));
    }
}
