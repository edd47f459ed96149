//! Entries as messages: encoded and framed once for all clients that need the same bytes.
//!
//! With one stream on a route a whole message is the same for everybody. With several, the
//! cursor differs from session to session: then the message without its head is shared, and
//! [`Encoder::push_with_cursor`] puts the two together.

use std::fmt::{Display, Write as _};

use bytes::Bytes;
use hyper_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use serde_json::value::RawValue;

use super::conflation::Conflation;
use super::members::Members;
use super::push_header;
use crate::config::{Format, FormatKind, Route, WhenLagging};
use crate::stream::{Entry, StreamKey};

/// Turns entries into messages of one format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoder {
    format: Format,
    cursor: CursorPlace,
    conflation: Option<Conflation>,
}

/// Where the cursor of a message comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CursorPlace {
    /// From the entry alone, or there is none in the message: whole messages are shared.
    Shared,
    /// From the session's other streams too: only what follows the cursor is shared.
    PerSession,
}

/// Encoded entries, end to end. An entry that has no message is an empty piece.
#[derive(Debug)]
pub struct Encoded {
    bytes: Bytes,
    ends: Box<[usize]>,
}

impl Encoded {
    /// The messages from this entry on.
    pub fn from(&self, index: usize) -> Bytes {
        self.bytes.slice(self.start(index)..)
    }

    /// What there is of one entry.
    pub fn piece(&self, index: usize) -> &[u8] {
        &self.bytes[self.start(index)..self.ends[index]]
    }

    /// How many messages there are from this entry on.
    pub fn messages_from(&self, index: usize) -> usize {
        let starts = std::iter::once(self.start(index)).chain(self.ends[index..].iter().copied());
        starts
            .zip(&self.ends[index..])
            .filter(|(start, end)| start < end)
            .count()
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before])
    }
}

/// Why the payload of an entry can't be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Omitted {
    /// The entry does not have the field.
    NoField,
    /// It is larger than `max_bytes`.
    TooLarge,
    /// It is not UTF-8.
    NotText,
    /// It is not a JSON object, which `merge` needs.
    NotAnObject,
}

impl Omitted {
    /// Every reason.
    pub const ALL: [Self; 4] = [
        Self::NoField,
        Self::TooLarge,
        Self::NotText,
        Self::NotAnObject,
    ];

    /// As on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoField => "no_field",
            Self::TooLarge => "too_large",
            Self::NotText => "not_text",
            Self::NotAnObject => "not_an_object",
        }
    }
}

impl Encoder {
    /// The encoder that a route needs.
    pub fn of(route: &Route) -> Self {
        let format = &route.message.format;
        Self {
            conflation: match &route.slow.then {
                WhenLagging::Conflate(at) => Some(Conflation::new(format, at)),
                WhenLagging::Close | WhenLagging::Resync => None,
            },
            ..Self::new(format, route.streams.len())
        }
    }

    /// An encoder for a route with this many streams.
    pub fn new(format: &Format, streams: usize) -> Self {
        let has_cursor = !matches!(format.kind, FormatKind::Verbatim { .. });
        let cursor = if has_cursor && streams > 1 {
            CursorPlace::PerSession
        } else {
            CursorPlace::Shared
        };
        Self {
            format: format.clone(),
            cursor,
            conflation: None,
        }
    }

    /// Whether messages need [`push_with_cursor`](Self::push_with_cursor) to become whole.
    pub fn needs_cursor(&self) -> bool {
        self.cursor == CursorPlace::PerSession
    }

    /// What tells entries apart where only the newest of a key is sent; `None` where all are.
    pub fn conflation(&self) -> Option<&Conflation> {
        self.conflation.as_ref()
    }

    /// Encodes entries of one stream. `omitted` hears of each payload that can't be sent.
    pub fn encode(
        &self,
        key: &StreamKey,
        entries: &[Entry],
        mut omitted: impl FnMut(Omitted),
    ) -> Encoded {
        let mut bytes = Vec::with_capacity(entries.iter().map(|entry| entry.size() + 128).sum());
        let mut text = String::new();
        let mut ends = Vec::with_capacity(entries.len());
        for entry in entries {
            text.clear();
            let pushed = self.push_entry(&mut text, key, entry);
            if let Err(reason) = pushed {
                omitted(reason);
                text.clear();
                self.push_omitted(&mut text, key, entry, reason);
            }
            // An empty payload is a message too.
            let is_message = pushed.is_ok() || !text.is_empty();
            if self.cursor == CursorPlace::Shared && is_message {
                push_header(&mut bytes, OpCode::Data(Data::Text), text.len());
            }
            bytes.extend_from_slice(text.as_bytes());
            ends.push(bytes.len());
        }
        Encoded {
            bytes: bytes.into(),
            ends: ends.into(),
        }
    }

    /// Puts a session's cursor before a shared piece, and frames the two as one message.
    pub fn push_with_cursor(&self, out: &mut Vec<u8>, cursor: &dyn Display, piece: &[u8]) {
        let mut head = String::with_capacity(96);
        self.push_head(&mut head, cursor);
        push_header(out, OpCode::Data(Data::Text), head.len() + piece.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(piece);
    }

    /// The message up to and with its cursor.
    fn push_head(&self, text: &mut String, cursor: &dyn Display) {
        match &self.format.kind {
            FormatKind::Envelope { .. } => push(
                text,
                format_args!(r#"{{"type":"event","cursor":"{cursor}""#),
            ),
            FormatKind::Merge { id_key, .. } => {
                text.push('{');
                push_json_string(text, id_key);
                push(text, format_args!(r#":"{cursor}""#));
            }
            FormatKind::Verbatim { .. } => {}
        }
    }

    fn push_entry(&self, text: &mut String, key: &StreamKey, entry: &Entry) -> Result<(), Omitted> {
        if self.cursor == CursorPlace::Shared {
            self.push_head(text, &entry.id);
        }
        match &self.format.kind {
            FormatKind::Envelope { field } => {
                push_envelope(text, key, entry);
                text.push_str(r#","data":"#);
                match field {
                    Some(field) => push_value(text, self.payload(entry, field)?),
                    None => self.push_all_fields(text, entry)?,
                }
                text.push('}');
            }
            FormatKind::Verbatim { field } => text.push_str(self.payload(entry, field)?),
            FormatKind::Merge { field, id_key } => {
                push_members(text, self.payload(entry, field)?, id_key)?;
                text.push('}');
            }
        }
        Ok(())
    }

    /// In envelope format the client learns what it does not get; elsewhere there is no place to say it.
    fn push_omitted(&self, text: &mut String, key: &StreamKey, entry: &Entry, reason: Omitted) {
        if !matches!(self.format.kind, FormatKind::Envelope { .. }) {
            return;
        }
        if self.cursor == CursorPlace::Shared {
            self.push_head(text, &entry.id);
        }
        push_envelope(text, key, entry);
        push(
            text,
            format_args!(r#","data":null,"omitted":"{}"}}"#, reason.as_str()),
        );
    }

    fn payload<'a>(&self, entry: &'a Entry, field: &str) -> Result<&'a str, Omitted> {
        let value = entry.field(field).ok_or(Omitted::NoField)?;
        if value.len() > self.format.max_bytes {
            return Err(Omitted::TooLarge);
        }
        std::str::from_utf8(value).map_err(|_| Omitted::NotText)
    }

    /// All fields as one object. Values stay strings, as Redis has them: a guess at numbers
    /// would turn the id `123e4` into another one.
    fn push_all_fields(&self, text: &mut String, entry: &Entry) -> Result<(), Omitted> {
        if entry.size() > self.format.max_bytes {
            return Err(Omitted::TooLarge);
        }
        text.push('{');
        for (index, (name, value)) in entry.fields.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            push_json_string(
                text,
                std::str::from_utf8(name).map_err(|_| Omitted::NotText)?,
            );
            text.push(':');
            push_json_string(
                text,
                std::str::from_utf8(value).map_err(|_| Omitted::NotText)?,
            );
        }
        text.push('}');
        Ok(())
    }
}

fn push_envelope(text: &mut String, key: &StreamKey, entry: &Entry) {
    text.push_str(r#","stream":"#);
    push_json_string(text, key.as_str());
    push(text, format_args!(r#","id":"{}""#, entry.id));
}

/// JSON as it is, anything else as a JSON string.
fn push_value(text: &mut String, payload: &str) {
    match serde_json::from_str::<&RawValue>(payload) {
        Ok(json) => text.push_str(json.get()),
        Err(_) => push_json_string(text, payload),
    }
}

/// The members of a JSON object, each after a comma, without the one that the cursor replaces.
fn push_members(text: &mut String, payload: &str, id_key: &str) -> Result<(), Omitted> {
    let Members(members) = serde_json::from_str(payload).map_err(|_| Omitted::NotAnObject)?;
    for (name, value) in members.iter().filter(|(name, _)| name != id_key) {
        text.push(',');
        push_json_string(text, name);
        text.push(':');
        text.push_str(value.get());
    }
    Ok(())
}

fn push_json_string(text: &mut String, value: &str) {
    text.push_str(&serde_json::to_string(value).expect("a string is JSON"));
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments)
        .expect("writing to a String does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::EntryId;
    use hyper_tungstenite::tungstenite::protocol::frame::FrameHeader;
    use proptest::prelude::*;

    fn entry(fields: &[(&str, &[u8])]) -> Entry {
        Entry {
            id: EntryId::new(7, 1),
            fields: fields
                .iter()
                .map(|(name, value)| {
                    (
                        Bytes::copy_from_slice(name.as_bytes()),
                        Bytes::copy_from_slice(value),
                    )
                })
                .collect(),
        }
    }

    fn encoder(kind: FormatKind, streams: usize) -> Encoder {
        Encoder::new(
            &Format {
                kind,
                max_bytes: 64,
            },
            streams,
        )
    }

    /// The one message of an entry without its two-byte head, and what was omitted.
    fn message(kind: FormatKind, fields: &[(&str, &[u8])]) -> (String, Vec<Omitted>) {
        let mut omitted = Vec::new();
        let key = StreamKey::from("job:\"1\"");
        let encoded =
            encoder(kind, 1).encode(&key, &[entry(fields)], |reason| omitted.push(reason));
        let piece = encoded.piece(0);
        let head = if piece.len() > 127 { 4 } else { 2 };
        let text = piece.get(head..).unwrap_or_default().to_vec();
        (String::from_utf8(text).unwrap(), omitted)
    }

    fn envelope() -> FormatKind {
        FormatKind::Envelope {
            field: Some("data".into()),
        }
    }

    fn merge() -> FormatKind {
        FormatKind::Merge {
            field: "data".into(),
            id_key: "id".into(),
        }
    }

    #[test]
    fn json_stays_json_and_the_rest_becomes_a_string() {
        let head = r#"{"type":"event","cursor":"7-1","stream":"job:\"1\"","id":"7-1","data":"#;
        for (payload, data) in [
            (
                r#"{"b":1.0,"a":12345678901234567890123}"#,
                r#"{"b":1.0,"a":12345678901234567890123}"#,
            ),
            (" [1] ", "[1]"),
            ("01", r#""01""#),
            ("half {", r#""half {""#),
            ("", r#""""#),
        ] {
            let (text, omitted) = message(envelope(), &[("data", payload.as_bytes())]);
            assert_eq!(text, format!("{head}{data}}}"));
            assert!(omitted.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_sent_is_said_in_an_envelope_and_skipped_elsewhere() {
        let large = [b'1'; 65];
        for (fields, reason) in [
            (vec![("other", b"1".as_slice())], Omitted::NoField),
            (vec![("data", large.as_slice())], Omitted::TooLarge),
            (vec![("data", b"\xff".as_slice())], Omitted::NotText),
        ] {
            let (text, omitted) = message(envelope(), &fields);
            assert!(
                text.ends_with(&format!(r#""data":null,"omitted":"{}"}}"#, reason.as_str())),
                "{text}"
            );
            assert_eq!(omitted, [reason]);
            assert_eq!(message(merge(), &fields), (String::new(), vec![reason]));
            let verbatim = FormatKind::Verbatim {
                field: "data".into(),
            };
            assert_eq!(message(verbatim, &fields), (String::new(), vec![reason]));
        }
        assert_eq!(
            message(merge(), &[("data", b"[1]")]),
            (String::new(), vec![Omitted::NotAnObject])
        );
    }

    #[test]
    fn merge_replaces_the_id_and_keeps_the_rest_as_written() {
        let (text, _) = message(
            merge(),
            &[("data", br#"{"z":1.50, "id":"mine", "a\n":{"id":2}}"#)],
        );
        assert_eq!(text, r#"{"id":"7-1","z":1.50,"a\n":{"id":2}}"#);
        assert_eq!(message(merge(), &[("data", b"{}")]).0, r#"{"id":"7-1"}"#);
    }

    #[test]
    fn without_a_field_all_of_them_are_strings() {
        let (text, _) = message(
            FormatKind::Envelope { field: None },
            &[("a", b"1"), ("b", b"x\"y")],
        );
        assert!(text.ends_with(r#""data":{"a":"1","b":"x\"y"}}"#), "{text}");
    }

    #[test]
    fn a_cursor_of_several_streams_goes_before_the_shared_piece() {
        let encoder = encoder(envelope(), 2);
        let encoded = encoder.encode(&StreamKey::from("s"), &[entry(&[("data", b"1")])], |_| {});
        let mut out = Vec::new();
        encoder.push_with_cursor(&mut out, &"abcdef~7-1,0-0", encoded.piece(0));
        let text = String::from_utf8(out[2..].to_vec()).unwrap();
        assert_eq!(
            text,
            r#"{"type":"event","cursor":"abcdef~7-1,0-0","stream":"s","id":"7-1","data":1}"#
        );
        assert_eq!(usize::from(out[1]), text.len());
    }

    #[test]
    fn an_empty_payload_is_an_empty_message() {
        let verbatim = encoder(
            FormatKind::Verbatim {
                field: "data".into(),
            },
            1,
        );
        let entries = [entry(&[("data", b"")])];
        let encoded = verbatim.encode(&StreamKey::from("s"), &entries, |_| {});
        assert_eq!(encoded.from(0)[..], *b"\x81\0");
        assert_eq!(encoded.messages_from(0), 1);
    }

    #[test]
    fn pieces_are_found_by_their_entry() {
        let verbatim = encoder(
            FormatKind::Verbatim {
                field: "data".into(),
            },
            3,
        );
        let entries = [
            entry(&[("data", b"one")]),
            entry(&[]),
            entry(&[("data", b"two")]),
        ];
        let encoded = verbatim.encode(&StreamKey::from("s"), &entries, |_| {});
        assert_eq!(encoded.from(1)[..], *b"\x81\x03two");
        assert_eq!(
            (
                encoded.messages_from(0),
                encoded.messages_from(1),
                encoded.messages_from(2)
            ),
            (2, 1, 1)
        );
    }

    /// The texts of unfragmented, unmasked messages, end to end.
    fn messages(mut bytes: &[u8]) -> Vec<String> {
        let mut messages = Vec::new();
        while let Some((header, size)) =
            FrameHeader::parse(&mut std::io::Cursor::new(bytes)).unwrap()
        {
            assert_eq!(header.opcode, OpCode::Data(Data::Text));
            assert!(header.is_final && header.mask.is_none());
            let mut whole = Vec::new();
            let size = usize::try_from(size).unwrap();
            push_header(&mut whole, header.opcode, size);
            let text = &bytes[whole.len()..whole.len() + size];
            messages.push(String::from_utf8(text.to_vec()).unwrap());
            bytes = &bytes[whole.len() + size..];
        }
        assert!(bytes.is_empty());
        messages
    }

    /// A payload as it may be: text, JSON of any kind, an object, no text at all.
    fn payload() -> impl Strategy<Value = Vec<u8>> {
        let object = "[a-z\"\\\\é\u{1}]{0,4}".prop_map(|name| {
            let name = serde_json::to_string(&name).unwrap();
            format!(r#"{{ {name}: [1.50, null], "id":"mine" }} "#)
        });
        prop_oneof![
            "\\PC{0,300}".prop_map(String::into_bytes),
            object.prop_map(String::into_bytes),
            Just(b" [1, 2.0]".to_vec()),
            prop::collection::vec(any::<u8>(), 0..8),
        ]
    }

    proptest! {
        /// Each entry is one message of valid JSON that carries its id, whatever is in it; and a
        /// slice from any entry on is the end of the whole.
        #[test]
        fn what_is_encoded_reads_back(
            payloads in prop::collection::vec(payload(), 1..6),
            from: prop::sample::Index,
            streams in 1_usize..3,
            merged: bool,
        ) {
            let kind = if merged { merge() } else { envelope() };
            let encoder = encoder(kind, streams);
            let entries: Vec<Entry> = (1..)
                .zip(&payloads)
                .map(|(ms, payload)| Entry {
                    id: EntryId::new(ms, u64::MAX),
                    ..entry(&[("data", payload)])
                })
                .collect();
            let mut omitted = 0;
            let encoded = encoder.encode(&StreamKey::from("a\"b"), &entries, |_| omitted += 1);
            let from = from.index(entries.len());
            let mut sent = Vec::new();
            let mut count = 0;
            for (index, entry) in entries.iter().enumerate().skip(from) {
                let piece = encoded.piece(index);
                if !piece.is_empty() {
                    count += 1;
                    match encoder.needs_cursor() {
                        true => encoder.push_with_cursor(&mut sent, &entry.id, piece),
                        false => sent.extend_from_slice(piece),
                    }
                }
            }
            if !encoder.needs_cursor() {
                prop_assert_eq!(&encoded.from(from)[..], &sent[..]);
            }
            prop_assert_eq!(encoded.messages_from(from), count);
            let messages = messages(&sent);
            prop_assert_eq!(messages.len(), count);
            if merged {
                prop_assert_eq!(encoded.messages_from(0), entries.len() - omitted);
            } else {
                prop_assert_eq!(messages.len(), entries.len() - from);
            }
            let mut last = EntryId::ZERO;
            for message in &messages {
                let read: serde_json::Value = serde_json::from_str(message).unwrap();
                let name = if merged { "id" } else { "cursor" };
                let id = read[name].as_str().and_then(EntryId::parse).unwrap();
                prop_assert!(id > last, "{}", message);
                last = id;
                let payload = &payloads[usize::try_from(id.ms).unwrap() - 1];
                let json = serde_json::from_slice::<serde_json::Value>(payload).ok();
                if merged {
                    let mut whole = json.unwrap();
                    whole["id"] = id.to_string().into();
                    prop_assert_eq!(read, whole);
                } else {
                    prop_assert_eq!(&read["stream"], "a\"b");
                    let text = std::str::from_utf8(payload).ok();
                    let text = text.filter(|text| text.len() <= encoder.format.max_bytes);
                    let whole = text.map(|text| json.unwrap_or_else(|| text.into()));
                    prop_assert_eq!(&read["data"], &whole.clone().unwrap_or_default());
                    prop_assert_eq!(read["omitted"].is_string(), whole.is_none());
                }
            }
        }
    }
}
