//! Which entries replace earlier ones: those whose payload has the same value at some place.

use serde_json::value::RawValue;

use super::members::Members;
use crate::config::{Format, FormatKind, JsonPointer};
use crate::stream::Entry;

/// Finds the key of an entry. Of entries with the same key only the newest is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflation {
    /// The payload's field; `None`: all fields are the payload.
    field: Option<String>,
    at: JsonPointer,
}

/// An entry's key. Only equality has a meaning.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConflationKey(Box<str>);

impl Conflation {
    /// The key at this place of a payload of this format.
    pub fn new(format: &Format, at: &JsonPointer) -> Self {
        let field = match &format.kind {
            FormatKind::Envelope { field } => field.clone(),
            FormatKind::Verbatim { field } | FormatKind::Merge { field, .. } => Some(field.clone()),
        };
        Self {
            field,
            at: at.clone(),
        }
    }

    /// `None` if there is nothing at that place, or `null`: then the entry replaces no other.
    pub fn key(&self, entry: &Entry) -> Option<ConflationKey> {
        let Some(field) = &self.field else {
            // The fields are the members of the payload, and their values are strings.
            let [name] = self.at.tokens.as_slice() else {
                return None;
            };
            let value = std::str::from_utf8(entry.field(name)?).ok()?;
            return Some(ConflationKey::of_string(value));
        };
        let payload = std::str::from_utf8(entry.field(field)?).ok()?;
        let root: &RawValue = serde_json::from_str(payload).ok()?;
        let found = self
            .at
            .tokens
            .iter()
            .try_fold(root, |value, token| child(value, token))?;
        ConflationKey::of_value(found)
    }
}

impl ConflationKey {
    fn of_string(value: &str) -> Self {
        Self(format!("\"{value}").into())
    }

    /// Numbers count as they are written: ids may have more digits than a float has.
    fn of_value(value: &RawValue) -> Option<Self> {
        match value.get() {
            "null" => None,
            text if text.starts_with('"') => {
                let value: String = serde_json::from_str(text).ok()?;
                Some(Self::of_string(&value))
            }
            text => Some(Self(text.into())),
        }
    }
}

/// The member or element of that name. Of members with one name the last counts.
fn child<'a>(value: &'a RawValue, token: &str) -> Option<&'a RawValue> {
    if let Ok(Members(members)) = serde_json::from_str(value.get()) {
        let named = members.into_iter().rev().find(|(name, _)| name == token);
        return named.map(|(_, value)| value);
    }
    // RFC 6901 section 4: an index has no leading zero.
    let is_index = token == "0" || !token.starts_with(['0', '+']);
    let index: usize = token.parse().ok().filter(|_| is_index)?;
    let elements: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
    elements.get(index).copied()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::stream::EntryId;

    fn key(field: Option<&str>, pointer: &str, payload: &str) -> Option<String> {
        let format = Format {
            kind: FormatKind::Envelope {
                field: field.map(str::to_owned),
            },
            max_bytes: 1024,
        };
        let entry = Entry {
            id: EntryId::new(1, 0),
            fields: vec![(
                Bytes::from_static(b"data"),
                Bytes::copy_from_slice(payload.as_bytes()),
            )],
        };
        let pointer = JsonPointer::parse(pointer).unwrap();
        let key = Conflation::new(&format, &pointer).key(&entry)?;
        Some(key.0.into())
    }

    #[test]
    fn the_value_at_the_pointer_is_the_key() {
        let data = |pointer, payload| key(Some("data"), pointer, payload);
        assert_eq!(data("/id", r#"{"id":"a"}"#).unwrap(), "\"a");
        assert_eq!(data("/id", r#"{"id" : "\u0061" }"#).unwrap(), "\"a");
        assert_eq!(data("/id", r#"{"id":1,"id":2}"#).unwrap(), "2");
        let digits = "123456789012345678901234567890";
        let payload = format!(r#"{{"id":{digits}}}"#);
        assert_eq!(data("/id", &payload).unwrap(), digits);
        assert_eq!(
            data("/a/1/b~1c", r#"{"a":[0,{"b/c":true}]}"#).unwrap(),
            "true"
        );
        assert_eq!(data("/0", r#"{"0":"x"}"#).unwrap(), "\"x");
    }

    #[test]
    fn without_a_value_there_is_no_key() {
        let data = |pointer, payload| key(Some("data"), pointer, payload);
        assert_eq!(data("/id", r#"{"id":null}"#), None);
        for payload in [r#"{"x":1}"#, "[1]", "7", "half {", ""] {
            assert_eq!(data("/id", payload), None, "{payload}");
        }
        assert_eq!(data("/01", "[1,2]"), None);
        assert_eq!(data("/-", "[1,2]"), None);
        assert_eq!(key(Some("other"), "/id", r#"{"id":1}"#), None);
    }

    #[test]
    fn all_fields_are_members_whose_values_are_strings() {
        assert_eq!(key(None, "/data", "1").unwrap(), "\"1");
        assert_eq!(key(None, "/other", "1"), None);
        assert_eq!(key(None, "/data/x", r#"{"x":1}"#), None);
    }
}
