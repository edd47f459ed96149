//! A feed against the simplest thing that could be one: a list of what was published.

use proptest::prelude::*;

use super::*;
use crate::hub::chunk::Formats;
use crate::hub::chunk::Slice;
use crate::metrics::Metrics;
use crate::stream::Entry;

/// What the reader does.
#[derive(Debug, Clone)]
enum Step {
    /// A pull brings this many entries, of this size.
    Pull { count: usize, size: usize },
    /// A pull finds nothing.
    Nothing,
    /// Continuity is lost; the stream is this far on.
    Lose { by: u64 },
    /// The ring gives its memory back.
    Shrink,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_usize..6, 0_usize..600).prop_map(|(count, size)| Step::Pull { count, size }),
        1 => Just(Step::Nothing),
        1 => (0_u64..20).prop_map(|by| Step::Lose { by }),
        1 => Just(Step::Shrink),
    ]
}

/// Every pull since continuity was last lost, and where that was.
struct Published {
    start: EntryId,
    pulls: Vec<Vec<EntryId>>,
    /// From before these on the feed must know what follows: the last pull.
    must_know: EntryId,
    epoch: Epoch,
    published: u64,
}

impl Published {
    fn ids(&self) -> impl Iterator<Item = EntryId> {
        self.pulls.iter().flatten().copied()
    }

    fn tail(&self) -> EntryId {
        self.ids().last().unwrap_or(self.start)
    }

    fn is_position(&self, id: EntryId) -> bool {
        id == self.start || self.ids().any(|known| known == id)
    }

    /// Whether this is the right answer.
    fn check(&self, feed: &Feed, id: EntryId, basis: Basis) {
        let is_proven = basis == Basis::Proven(self.epoch);
        let (epoch, published) = match feed.after(Position { id, basis }) {
            After::Entries {
                slices,
                is_all,
                epoch,
                published,
            } => {
                assert_eq!(is_all, slices.last().map(Slice::last) == Some(feed.tail()));
                let entries = slices.iter().flat_map(|slice| slice.entries());
                let given: Vec<EntryId> = entries.map(|entry| entry.id).collect();
                let all: Vec<EntryId> = self.ids().filter(|known| *known > id).collect();
                // Maybe not all at once, but from the first on, and none left out.
                assert!(self.is_position(id), "{id} was never one");
                assert!(
                    !given.is_empty() && all.starts_with(&given),
                    "{given:?} of {all:?}"
                );
                assert_eq!(slices.last().map(Slice::last), given.last().copied());
                (epoch, published)
            }
            After::CaughtUp { epoch, published } => {
                assert!(id == self.tail() || is_proven && id > self.tail(), "{id}");
                (epoch, published)
            }
            After::Behind { epoch, published } => {
                let is_ahead = is_proven && id > self.tail();
                let is_known = self.is_position(id) && id >= self.must_know;
                assert!(!is_ahead && !is_known, "{id}");
                (epoch, published)
            }
            After::Unreadable(reason) => panic!("{reason}"),
        };
        assert_eq!((epoch, published), (self.epoch, self.published));
    }
}

proptest! {
    #[test]
    fn the_ring_answers_as_a_list_would(
        steps in prop::collection::vec(step(), 1..30),
        entries in 1_usize..12,
        bytes in prop_oneof![Just(1_usize), Just(4096), Just(1 << 20)],
        begins_at in 0_u64..3,
    ) {
        let formats = Formats::new(&[], &Metrics::new());
        let info = |last: u64| StreamInfo {
            last_generated: EntryId::new(last, 0),
            entries_added: Some(last),
            length: 0,
            first: None,
            max_deleted: None,
        };
        let bounds = RingBounds { entries, bytes };
        let key = StreamKey::from("s");
        let feed = Feed::new(key.clone(), Some(&info(begins_at)), 1, bounds);
        let start = EntryId::new(begins_at, 0);
        let mut model = Published {
            start,
            pulls: Vec::new(),
            must_know: start,
            epoch: 0,
            published: 0,
        };
        let mut ring_bytes = 0;
        for step in steps {
            let tail = model.tail();
            ring_bytes += match step {
                Step::Pull { count, size } => {
                    let ids = (1..=count as u64).map(|n| EntryId::new(tail.ms + n * 2, n));
                    let ids: Vec<EntryId> = ids.collect();
                    let entries = ids.iter().map(|id| Entry {
                        id: *id,
                        fields: vec![("data".into(), vec![b'x'; size].into())],
                    });
                    let chunk = Chunk::new(&key, entries.collect(), &formats);
                    model.published += ids.len() as u64;
                    model.pulls.push(ids);
                    model.must_know = tail;
                    feed.publish(chunk.into_iter().collect(), None, true, 1)
                }
                Step::Nothing => feed.publish(Vec::new(), None, true, 1),
                Step::Lose { by } => {
                    model.start = EntryId::new(tail.ms.saturating_sub(10) + by, 0);
                    model.pulls.clear();
                    model.must_know = model.start;
                    model.epoch += 1;
                    feed.restart(Some(&info(model.start.ms)), 1)
                }
                Step::Shrink => {
                    model.must_know = tail;
                    feed.shrink()
                }
            };
            prop_assert_eq!(feed.tail(), model.tail());
            prop_assert_eq!(usize::try_from(ring_bytes).unwrap(), feed.ring_bytes());
            let last_pull = model.pulls.last().map_or(0, Vec::len);
            prop_assert!(feed.lock().ring_entries <= entries.max(last_pull));
            for ms in 0..=model.tail().ms + 2 {
                for seq in 0..6 {
                    for basis in [
                        Basis::Unproven,
                        Basis::Start,
                        Basis::Proven(model.epoch),
                        Basis::Proven(model.epoch.wrapping_sub(1)),
                    ] {
                        model.check(&feed, EntryId::new(ms, seq), basis);
                    }
                }
            }
        }
    }

    /// The highest of all marks counts until it is cleared, and only the first joins a queue.
    #[test]
    fn marks_rise_until_they_are_cleared(marks in prop::collection::vec(0_u8..3, 0..20)) {
        let bounds = RingBounds { entries: 1, bytes: 1 };
        let feed = Feed::new(StreamKey::from("s"), None, 1, bounds);
        let mut model = Mark::Clean;
        for mark in marks {
            let mark = [Mark::Clean, Mark::Asked, Mark::Changed][usize::from(mark)];
            if mark == Mark::Clean {
                prop_assert_eq!(feed.clear_mark(), model);
                model = Mark::Clean;
            } else {
                prop_assert_eq!(feed.mark(mark), model == Mark::Clean);
                model = model.max(mark);
            }
        }
    }
}
