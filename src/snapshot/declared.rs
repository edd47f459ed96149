//! What the API says about the last entry that its state includes.

use hyper::header::HeaderValue;

use crate::stream::StreamKeys;

/// The ids in the API's cursor headers, unchecked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Declared {
    /// For each stream of the route, in its order.
    pub(super) ids: Vec<Option<String>>,
    /// Headers that named no stream of the route.
    pub(super) unknown: u64,
}

/// Reads one header per stream, `<key>=<id>`; with one stream the id alone will do. Of several
/// headers for one stream the first counts.
pub(super) fn read(values: &[HeaderValue], keys: &StreamKeys) -> Declared {
    let mut declared = Declared {
        ids: vec![None; keys.len()],
        unknown: 0,
    };
    for value in values {
        // Keys may be any UTF-8. What is none names no stream, and is no id either.
        let text = String::from_utf8_lossy(value.as_bytes());
        declared.add(&text, keys);
    }
    declared
}

impl Declared {
    fn add(&mut self, text: &str, keys: &StreamKeys) {
        // Keys may contain an equals sign, ids never do.
        let (name, id) = match text.rsplit_once('=') {
            Some((name, id)) => (Some(name), id),
            None => (None, text),
        };
        let only_one = keys.len() == 1;
        let mut known = false;
        for (key, slot) in keys.as_slice().iter().zip(&mut self.ids) {
            if name.map_or(only_one, |name| name == key.as_str()) {
                known = true;
                slot.get_or_insert_with(|| id.to_owned());
            }
        }
        if !known {
            self.unknown += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::StreamKey;

    fn declared(keys: &[&str], values: &[&str]) -> (Vec<Option<String>>, u64) {
        let keys = keys.iter().map(|key| StreamKey::from(*key)).collect();
        let values: Vec<HeaderValue> = values
            .iter()
            .map(|value| HeaderValue::from_bytes(value.as_bytes()).unwrap())
            .collect();
        let declared = read(&values, &StreamKeys::new(keys));
        (declared.ids, declared.unknown)
    }

    fn id(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn one_stream_takes_the_value_as_it_is_or_named() {
        assert_eq!(declared(&["a"], &[]), (vec![None], 0));
        assert_eq!(declared(&["a"], &["5-0"]), (vec![id("5-0")], 0));
        assert_eq!(declared(&["a"], &["a=5-0"]), (vec![id("5-0")], 0));
        assert_eq!(declared(&["a=b"], &["a=b=5-0"]), (vec![id("5-0")], 0));
        assert_eq!(declared(&["a"], &["nonsense"]), (vec![id("nonsense")], 0));
        assert_eq!(declared(&["a"], &["b=5-0"]), (vec![None], 1));
        assert_eq!(declared(&["a"], &["1-0", "2-0"]), (vec![id("1-0")], 0));
    }

    #[test]
    fn several_streams_are_named_one_by_one() {
        let keys = ["a", "ключ", "c"];
        let (ids, unknown) = declared(&keys, &["ключ=2-0", "a=1-0"]);
        assert_eq!((ids, unknown), (vec![id("1-0"), id("2-0"), None], 0));
        let (ids, unknown) = declared(&keys, &["7-0", "d=1-0", "c=3-0"]);
        assert_eq!((ids, unknown), (vec![None, None, id("3-0")], 2));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_and_each_header_counts_once(
            headers in prop::collection::vec("[ -~\u{80}-\u{ff}]{0,30}|[ab=]{0,3}=[0-9]{1,3}-[0-9]", 0..6),
            names in prop::collection::vec("[ab=]{1,3}", 1..4),
        ) {
            let values: Vec<_> = headers
                .iter()
                .map(|text| text.chars().map(|c| u8::try_from(c).unwrap()).collect::<Vec<_>>())
                .map(|bytes| HeaderValue::from_bytes(&bytes).unwrap())
                .collect();
            let keys = names.iter().map(|name| StreamKey::from(name.as_str())).collect();
            let declared = read(&values, &StreamKeys::new(keys));
            prop_assert_eq!(declared.ids.len(), names.len());
            let known = headers.len() - usize::try_from(declared.unknown).unwrap();
            let distinct: std::collections::BTreeSet<_> = names.iter().collect();
            let found = names.iter().zip(&declared.ids).filter(|(_, id)| id.is_some());
            let found: std::collections::BTreeSet<_> = found.map(|(name, _)| name).collect();
            prop_assert!(found.len() <= known && found.len() <= distinct.len());
            for id in declared.ids.iter().flatten() {
                prop_assert!(names.len() == 1 || !id.contains('='), "{}", id);
            }
        }
    }
}
