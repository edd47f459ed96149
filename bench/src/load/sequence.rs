//! Whether one client got each entry of one stream, once and in order.

use std::collections::BTreeMap;

/// Of one client and one stream.
#[derive(Default)]
pub(crate) struct Sequence {
    next: u64,
    /// What was skipped: from each first number up to, without, its end.
    skipped: BTreeMap<u64, u64>,
}

/// What an entry is to its client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The next one, or one after a gap.
    New,
    /// It was skipped before.
    Late,
    Repeated,
}

impl Sequence {
    pub(crate) fn hear(&mut self, number: u64) -> Arrival {
        if number >= self.next {
            if number > self.next {
                self.skipped.insert(self.next, number);
            }
            self.next = number + 1;
            return Arrival::New;
        }
        let gap = self
            .skipped
            .range(..=number)
            .next_back()
            .map(|(a, b)| (*a, *b));
        let Some((start, end)) = gap.filter(|(_, end)| number < *end) else {
            return Arrival::Repeated;
        };
        self.skipped.remove(&start);
        if start < number {
            self.skipped.insert(start, number);
        }
        if number + 1 < end {
            self.skipped.insert(number + 1, end);
        }
        Arrival::Late
    }

    /// Entries that never came, though later ones did.
    pub(crate) fn gaps(&self) -> u64 {
        self.skipped.iter().map(|(start, end)| end - start).sum()
    }

    /// Entries at the end that never came.
    pub(crate) fn missing_of(&self, published: u64) -> u64 {
        published.saturating_sub(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(numbers: &[u64]) -> (Sequence, Vec<Arrival>) {
        let mut sequence = Sequence::default();
        let arrivals = numbers.iter().map(|number| sequence.hear(*number));
        let arrivals = arrivals.collect();
        (sequence, arrivals)
    }

    #[test]
    fn what_is_missing_at_the_end_is_no_gap() {
        let (sequence, _) = heard(&[0, 1, 2]);
        assert_eq!((sequence.gaps(), sequence.missing_of(5)), (0, 2));
    }

    #[test]
    fn what_comes_late_closes_its_gap() {
        let (sequence, arrivals) = heard(&[0, 5, 2, 2, 0]);
        let expected = [
            Arrival::New,
            Arrival::New,
            Arrival::Late,
            Arrival::Repeated,
            Arrival::Repeated,
        ];
        assert_eq!(arrivals, expected);
        assert_eq!((sequence.gaps(), sequence.missing_of(6)), (3, 0));
    }
}
