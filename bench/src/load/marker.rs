//! What each payload carries so that its entry is known again, whatever the server wraps it in.

use std::io::Write;
use std::ops::Range;
use std::sync::LazyLock;
use std::time::Instant;

use memchr::memmem;

const START: &[u8] = b"bench!";
const STREAM: Range<usize> = 6..14;
const NUMBER: Range<usize> = 15..27;
const AT: Range<usize> = 28..48;
/// Of all of it.
const LENGTH: usize = 48;
/// The JSON around the marker and the padding.
const AROUND: usize = br#"{"m":"","p":""}"#.len();

/// One entry.
pub(crate) struct Marker {
    pub(crate) stream: usize,
    /// Counts the entries of the stream.
    pub(crate) number: u64,
    /// When it was added, by [`now_ns`].
    pub(crate) at_ns: u64,
}

impl Marker {
    /// A JSON object of this many bytes; larger if the marker does not fit.
    pub(crate) fn push_payload(&self, out: &mut Vec<u8>, size: usize) {
        let (stream, number, at_ns) = (self.stream, self.number, self.at_ns);
        // A Vec takes whatever is written.
        let _ = write!(
            out,
            r#"{{"m":"bench!{stream:08}.{number:012}.{at_ns:020}","p":""#
        );
        let padding = size.saturating_sub(LENGTH + AROUND);
        out.resize(out.len() + padding, b'x');
        out.extend_from_slice(br#""}"#);
    }

    /// The first in a message.
    pub(crate) fn find(message: &[u8]) -> Option<Self> {
        let start = memmem::find(message, START)?;
        let marker = message.get(start..start + LENGTH)?;
        Some(Self {
            stream: usize::try_from(digits(&marker[STREAM])).ok()?,
            number: digits(&marker[NUMBER]),
            at_ns: digits(&marker[AT]),
        })
    }
}

/// Nanoseconds since this process first asked.
pub(crate) fn now_ns() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn digits(text: &[u8]) -> u64 {
    text.iter().fold(0, |number, digit| {
        number * 10 + u64::from(digit.wrapping_sub(b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_its_size_and_its_marker() {
        let marker = Marker {
            stream: 7,
            number: 42,
            at_ns: 123_456_789,
        };
        let mut payload = Vec::new();
        marker.push_payload(&mut payload, 200);
        assert_eq!(payload.len(), 200);
        let found = Marker::find(&payload).expect("it is there");
        assert_eq!(
            (found.stream, found.number, found.at_ns),
            (7, 42, 123_456_789)
        );
    }
}
