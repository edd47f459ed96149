//! Streams, entries, ids and cursors: plain values without I/O.
//!
//! An id is what Redis calls it, `ms-seq`, and ids of one stream only grow. A
//! [`Cursor`] is what a client holds: the id of the last entry it has dealt with,
//! one for each stream of its route.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// The name of a Redis key that holds a stream. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey(Arc<str>);

impl StreamKey {
    /// The key's name as Redis knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name for a log line: a client's value in it can't begin another line.
    pub fn shown(&self) -> impl fmt::Display + '_ {
        self.0.escape_debug()
    }
}

impl From<&str> for StreamKey {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<String> for StreamKey {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The id of an entry: milliseconds since the Unix epoch, and a number within that millisecond.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct EntryId {
    /// Milliseconds since the Unix epoch.
    pub ms: u64,
    /// Counts the entries of one millisecond.
    pub seq: u64,
}

impl EntryId {
    /// `0-0`, which is before every entry: Redis refuses to add an entry with this id.
    pub const ZERO: Self = Self { ms: 0, seq: 0 };

    /// An id from its two halves.
    pub const fn new(ms: u64, seq: u64) -> Self {
        Self { ms, seq }
    }

    /// Reads `digits-digits`, each without sign or leading zero and within `u64`.
    /// Anything else is no id: what Redis would guess at (`5`, `05-1`, `$`) is refused.
    pub fn parse(text: &str) -> Option<Self> {
        let (ms, seq) = text.split_once('-')?;
        Some(Self::new(parse_number(ms)?, parse_number(seq)?))
    }

    /// The greatest id that is smaller than this one.
    pub fn predecessor(self) -> Self {
        match (self.ms, self.seq) {
            (0, 0) => Self::ZERO,
            (ms, 0) => Self::new(ms - 1, u64::MAX),
            (ms, seq) => Self::new(ms, seq - 1),
        }
    }

    /// Reads an id that Redis has sent.
    pub fn from_redis(bytes: &[u8]) -> Option<Self> {
        Self::parse(std::str::from_utf8(bytes).ok()?)
    }
}

/// A number as Redis prints it: digits only, no leading zero.
fn parse_number(text: &str) -> Option<u64> {
    let canonical = match text.as_bytes() {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    // `parse` fails only above u64::MAX here.
    canonical.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One entry of a stream, as Redis holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// Names and values in the order in which they were added. Names may repeat.
    pub fields: Vec<(Bytes, Bytes)>,
}

impl Entry {
    /// The value of the first field with this name.
    pub fn field(&self, name: &str) -> Option<&Bytes> {
        let matching = self.fields.iter().find(|(key, _)| key == name.as_bytes());
        matching.map(|(_, value)| value)
    }

    /// Bytes of all names and values.
    pub fn size(&self) -> usize {
        self.fields
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }
}

/// The resolved keys of a session, in the order of its route, with the short hash of them
/// that marks a cursor of several streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamKeys {
    keys: Arc<[StreamKey]>,
    hash: [u8; Self::HASH_CHARS],
}

impl StreamKeys {
    const HASH_CHARS: usize = 6;

    /// Keys in the order of the route.
    pub fn new(keys: Vec<StreamKey>) -> Self {
        let hash = short_hash(&keys);
        Self {
            keys: keys.into(),
            hash,
        }
    }

    /// The keys, in the order of the route.
    pub fn as_slice(&self) -> &[StreamKey] {
        &self.keys
    }

    /// How many streams there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no stream at all; a checked config has none of that kind.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn hash(&self) -> &str {
        std::str::from_utf8(&self.hash).unwrap_or_default()
    }
}

/// Six characters of a 64-bit FNV-1a hash. It has to tell lists of keys apart that one
/// deployment has used, not to resist an attacker: a forged cursor gains nothing, since the
/// keys come from the route.
fn short_hash(keys: &[StreamKey]) -> [u8; StreamKeys::HASH_CHARS] {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for key in keys {
        // A key can't hold NUL-separated parts of another list: the separator is no text.
        for byte in key.as_str().bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    std::array::from_fn(|i| {
        let five_bits = (hash >> (i * 5)) & 0x1f;
        usize::try_from(five_bits).map_or(b'0', |index| ALPHABET[index])
    })
}

/// What a client holds: for each stream of its route, the id of the last entry dealt with.
///
/// On the wire it is the id alone where the route has one stream, else `H~id,id,…` with H
/// being a hash of the keys, so that a cursor for another list of keys is no cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub Vec<EntryId>);

impl Cursor {
    /// Reads a cursor for these keys; `None` if it is malformed or made for other keys.
    pub fn parse(text: &str, keys: &StreamKeys) -> Option<Self> {
        if keys.len() == 1 {
            return Some(Self(vec![EntryId::parse(text)?]));
        }
        let ids = text.strip_prefix(keys.hash())?.strip_prefix('~')?;
        if ids.split(',').count() != keys.len() {
            return None;
        }
        ids.split(',')
            .map(EntryId::parse)
            .collect::<Option<_>>()
            .map(Self)
    }

    /// The cursor as it goes over the wire.
    pub fn display<'a>(
        ids: impl Iterator<Item = EntryId> + Clone + 'a,
        keys: &'a StreamKeys,
    ) -> impl fmt::Display + 'a {
        CursorText { ids, keys }
    }
}

struct CursorText<'a, I> {
    ids: I,
    keys: &'a StreamKeys,
}

impl<I: Iterator<Item = EntryId> + Clone> fmt::Display for CursorText<'_, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.keys.len() > 1 {
            write!(f, "{}~", self.keys.hash())?;
        }
        for (index, id) in self.ids.clone().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{id}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(names: &[&str]) -> StreamKeys {
        StreamKeys::new(names.iter().copied().map(StreamKey::from).collect())
    }

    #[test]
    fn only_canonical_ids_are_ids() {
        let wrong = [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "+1-0",
            "1-+1",
            "01-0",
            "1-00",
            "1-0-0",
            "$",
            "abc-xyz",
            " 1-0",
            "1-0 ",
            "18446744073709551616-0",
            "0-18446744073709551616",
            "undefined",
            "٣-0",
        ];
        for text in wrong {
            assert_eq!(EntryId::parse(text), None, "{text:?}");
        }
        assert_eq!(EntryId::parse("0-0"), Some(EntryId::ZERO));
        assert_eq!(
            EntryId::parse("18446744073709551615-1"),
            Some(EntryId::new(u64::MAX, 1))
        );
    }

    #[test]
    fn a_cursor_for_another_list_of_keys_is_none() {
        let (ab, ba) = (keys(&["a", "b"]), keys(&["b", "a"]));
        let ids = [EntryId::new(1, 0), EntryId::new(2, 5)];
        let text = Cursor::display(ids.iter().copied(), &ab).to_string();
        assert_eq!(Cursor::parse(&text, &ab), Some(Cursor(ids.to_vec())));
        assert_eq!(Cursor::parse(&text, &ba), None);
        assert_eq!(Cursor::parse("1-0,2-5", &ab), None);
        assert_eq!(Cursor::parse(&format!("{text},3-0"), &ab), None);
        assert_ne!(keys(&["ab", "c"]).hash(), keys(&["a", "bc"]).hash());
    }

    #[test]
    fn a_key_stays_within_its_log_line() {
        let shown = |name: &str| StreamKey::from(name).shown().to_string();
        assert_eq!(shown("job:42:updates"), "job:42:updates");
        assert_eq!(shown("ключ"), "ключ");
        assert_eq!(
            shown("a\nWARN b\x1b[2J\u{202e}"),
            r"a\nWARN b\u{1b}[2J\u{202e}"
        );
    }

    proptest! {
        #[test]
        fn ids_survive_the_wire_and_keep_their_order(a: (u64, u64), b: (u64, u64)) {
            let (a, b) = (EntryId::new(a.0, a.1), EntryId::new(b.0, b.1));
            prop_assert_eq!(EntryId::parse(&a.to_string()), Some(a));
            prop_assert_eq!(a < b, (a.ms, a.seq) < (b.ms, b.seq));
            prop_assert!(a.predecessor() < a || a == EntryId::ZERO);
        }

        #[test]
        fn cursors_survive_the_wire(ids in prop::collection::vec((any::<u64>(), any::<u64>()), 1..16)) {
            let names: Vec<String> = (0..ids.len()).map(|i| format!("s{i}")).collect();
            let keys = keys(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let ids: Vec<EntryId> = ids.into_iter().map(|(ms, seq)| EntryId::new(ms, seq)).collect();
            let text = Cursor::display(ids.iter().copied(), &keys).to_string();
            prop_assert_eq!(Cursor::parse(&text, &keys), Some(Cursor(ids)));
        }

        #[test]
        fn no_text_breaks_the_parser(text in "\\PC{0,64}") {
            let _ = Cursor::parse(&text, &keys(&["a"]));
            let _ = Cursor::parse(&text, &keys(&["a", "b"]));
        }

        /// Whatever is read is what would be written: there is one text for each id, and all
        /// else is none. Never `0-0` for want of a better.
        #[test]
        fn only_what_is_written_is_read(text in "[+0-9 ~,.$-]{0,24}|0*[0-9]{1,21}-0*[0-9]{1,21}") {
            let one = keys(&["a"]);
            if let Some(id) = EntryId::parse(&text) {
                prop_assert_eq!(id.to_string(), text.as_str());
            }
            let id = EntryId::parse(&text);
            prop_assert_eq!(Cursor::parse(&text, &one), id.map(|id| Cursor(vec![id])));
        }

        #[test]
        fn a_damaged_cursor_is_none(
            ids in prop::collection::vec(any::<(u64, u64)>(), 2..5),
            at: prop::sample::Index,
            damage in "[^0-9]",
        ) {
            let names: Vec<String> = (0..ids.len()).map(|i| format!("s{i}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let ids: Vec<EntryId> = ids.into_iter().map(|(ms, seq)| EntryId::new(ms, seq)).collect();
            let text = Cursor::display(ids.iter().copied(), &keys(&names)).to_string();
            prop_assert_eq!(Cursor::parse(&text, &keys(&names[1..])), None, "of other keys");

            let at = at.index(text.len());
            let cut = &text[..at];
            // What is cut within the last number is another cursor, unless nothing of it is left.
            let last = text.rfind('-').unwrap_or_default() + 1;
            prop_assert!(at > last || Cursor::parse(cut, &keys(&names)).is_none(), "{}", cut);
            prop_assume!(!text[at..].starts_with(&damage));
            let damaged = format!("{cut}{damage}{}", &text[at + 1..]);
            prop_assert_eq!(Cursor::parse(&damaged, &keys(&names)), None, "{}", damaged);
        }

        #[test]
        fn nothing_is_between_an_id_and_its_predecessor(ms in edge(), seq in edge()) {
            let id = EntryId::new(ms, seq);
            let before = id.predecessor();
            let number = |id: EntryId| u128::from(id.ms) << 64 | u128::from(id.seq);
            prop_assert_eq!(number(before), number(id).saturating_sub(1));
        }
    }

    /// Numbers near the ends, and any.
    fn edge() -> impl Strategy<Value = u64> {
        prop_oneof![0_u64..3, u64::MAX - 2..=u64::MAX, any::<u64>()]
    }
}
