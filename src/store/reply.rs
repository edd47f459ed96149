//! Replies of Redis as values of ours, in either protocol version.

use bytes::Bytes;
use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

use super::{StoreError, Unreadable};
use crate::stream::{Entry, EntryId};

/// What `XINFO STREAM` says, as far as continuity needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamInfo {
    /// The id of the last entry ever added, whether it is still there or not.
    pub last_generated: EntryId,
    /// How many entries were ever added; Redis 6.2 does not know.
    pub entries_added: Option<u64>,
    /// How many there are.
    pub length: u64,
    /// The oldest one that is there.
    pub first: Option<EntryId>,
    /// The greatest id that was deleted by hand, `0-0` if none was; Redis 6.2 does not know.
    pub max_deleted: Option<EntryId>,
}

/// Entries of an `XRANGE` or `XREVRANGE`.
pub(super) fn entries(reply: RedisResult<Value>) -> Result<Vec<Entry>, StoreError> {
    let Value::Array(items) = plain(reply)? else {
        return Err(unexpected("entries"));
    };
    items
        .into_iter()
        .map(entry)
        .collect::<Option<_>>()
        .ok_or_else(|| unexpected("entries"))
}

fn entry(item: Value) -> Option<Entry> {
    let Value::Array(parts) = item else {
        return None;
    };
    let [id, fields] = <[Value; 2]>::try_from(parts).ok()?;
    let Value::Array(fields) = fields else {
        return None;
    };
    let mut fields = fields.into_iter().map(bytes);
    let mut pairs = Vec::with_capacity(fields.len() / 2);
    while let Some(name) = fields.next() {
        pairs.push((name?, fields.next()??));
    }
    Some(Entry {
        id: EntryId::from_redis(&bytes(id)?)?,
        fields: pairs,
    })
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        Value::SimpleString(text) => Some(text.into()),
        _ => None,
    }
}

/// `XINFO STREAM`; `None` if there is no such key.
pub(super) fn stream_info(reply: RedisResult<Value>) -> Result<Option<StreamInfo>, StoreError> {
    let value = match reply.and_then(Value::extract_error) {
        Ok(value) => value,
        Err(error)
            if error
                .detail()
                .is_some_and(|detail| detail.contains("no such key")) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(classify(&error)),
    };
    let pairs = value
        .into_map_iter()
        .map_err(|_| unexpected("stream information"))?;
    let (mut last_generated, mut entries_added, mut length) = (None, None, None);
    let (mut first, mut max_deleted) = (None, None);
    for (name, value) in pairs {
        match bytes(name).as_deref() {
            Some(b"last-generated-id") => {
                last_generated = bytes(value).and_then(|id| EntryId::from_redis(&id))
            }
            Some(b"entries-added") => entries_added = number(&value),
            Some(b"length") => length = number(&value),
            Some(b"max-deleted-entry-id") => {
                max_deleted = bytes(value).and_then(|id| EntryId::from_redis(&id))
            }
            Some(b"first-entry") => first = entry(value).map(|entry| entry.id),
            _ => {}
        }
    }
    let (Some(last_generated), Some(length)) = (last_generated, length) else {
        return Err(unexpected("stream information"));
    };
    Ok(Some(StreamInfo {
        last_generated,
        entries_added,
        length,
        first,
        max_deleted,
    }))
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// Keys for which an `XREAD` had entries.
pub(super) fn keys_with_news(reply: RedisResult<Value>) -> Result<Vec<Bytes>, StoreError> {
    let keys = match plain(reply)? {
        Value::Nil => Some(Vec::new()),
        Value::Map(pairs) => pairs.into_iter().map(|(key, _)| bytes(key)).collect(),
        Value::Array(items) => items.into_iter().map(first_of_pair).collect(),
        _ => None,
    };
    keys.ok_or_else(|| unexpected("streams"))
}

fn first_of_pair(item: Value) -> Option<Bytes> {
    let Value::Array(pair) = item else {
        return None;
    };
    bytes(pair.into_iter().next()?)
}

/// The field `role` of a `HELLO`.
pub(super) fn role(reply: RedisResult<Value>) -> Result<Option<Bytes>, StoreError> {
    let pairs = plain(reply)?
        .into_map_iter()
        .map_err(|_| unexpected("a greeting"))?;
    Ok(pairs.into_iter().find_map(|(name, value)| {
        (bytes(name).as_deref() == Some(b"role"))
            .then(|| bytes(value))
            .flatten()
    }))
}

/// A reply that is no error.
pub(super) fn plain(reply: RedisResult<Value>) -> Result<Value, StoreError> {
    reply
        .and_then(Value::extract_error)
        .map_err(|error| classify(&error))
}

fn unexpected(what: &str) -> StoreError {
    StoreError::Unavailable(format!("redis sent something else than {what}"))
}

/// Says whether an error is about one key, or about Redis as a whole.
pub(super) fn classify(error: &RedisError) -> StoreError {
    const OF_THE_SERVER: [&str; 4] = ["BUSY", "NOAUTH", "MISCONF", "UNBLOCKED"];
    let code = error.code().unwrap_or_default();
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::NoPerm) => {
            StoreError::Unreadable(Unreadable::NoPermission)
        }
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain,
        ) => StoreError::Unavailable(code.to_owned()),
        ErrorKind::Server(_) | ErrorKind::Extension if OF_THE_SERVER.contains(&code) => {
            StoreError::Unavailable(code.to_owned())
        }
        ErrorKind::Server(_) | ErrorKind::Extension if code == "WRONGTYPE" => {
            StoreError::Unreadable(Unreadable::WrongType)
        }
        ErrorKind::Server(_) | ErrorKind::Extension => {
            StoreError::Unreadable(Unreadable::Refused(code.to_owned()))
        }
        // ErrorKind is non-exhaustive; what is left is about the connection.
        _ => StoreError::Unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    /// Whatever a server could send, often nearly what is expected.
    fn any_reply() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            Just(Value::Okay),
            any::<i64>().prop_map(Value::Int),
            any::<bool>().prop_map(Value::Boolean),
            any::<f64>().prop_map(Value::Double),
            any::<Vec<u8>>().prop_map(Value::BulkString),
            "[0-9]{1,3}-[0-9]|last-generated-id|length|entries-added|first-entry|role"
                .prop_map(|text| bulk(&text)),
            ".{0,9}".prop_map(Value::SimpleString),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let values = prop::collection::vec(inner.clone(), 0..6);
            let pairs = prop::collection::vec((inner.clone(), inner), 0..6);
            prop_oneof![
                values.clone().prop_map(Value::Array),
                values.prop_map(Value::Set),
                pairs.prop_map(Value::Map),
            ]
        })
    }

    fn entry_of(id: &str, fields: &[&str]) -> Value {
        let fields = fields.iter().map(|text| bulk(text)).collect();
        Value::Array(vec![bulk(id), Value::Array(fields)])
    }

    #[test]
    fn an_entry_is_whole_or_none() {
        let read = |entry| entries(Ok(Value::Array(vec![entry])));
        let good = read(entry_of("7-1", &["a", "1", "a", "2"])).unwrap();
        assert_eq!((good.len(), good[0].fields.len()), (1, 2));
        assert!(read(entry_of("7-1", &[])).unwrap()[0].fields.is_empty());
        for bad in [
            entry_of("7-1", &["a"]),
            entry_of("7", &["a", "1"]),
            entry_of("07-1", &["a", "1"]),
            entry_of("99999999999999999999-1", &["a", "1"]),
            Value::Array(vec![bulk("7-1")]),
            Value::Array(vec![bulk("7-1"), Value::Nil]),
            Value::Nil,
        ] {
            assert!(read(bad.clone()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_reply_breaks_them(reply in any_reply()) {
            let _errors_are_fine = (
                entries(Ok(reply.clone())).is_ok(),
                keys_with_news(Ok(reply.clone())).is_ok(),
                role(Ok(reply.clone())).is_ok(),
            );
            if let Ok(Some(info)) = stream_info(Ok(reply)) {
                prop_assert!(info.entries_added.is_none_or(|added| i64::try_from(added).is_ok()));
                prop_assert!(i64::try_from(info.length).is_ok());
            }
        }

        #[test]
        fn entries_are_what_was_sent(
            id: (u64, u64),
            fields in prop::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..5),
        ) {
            let flat = fields.iter().flat_map(|(name, value)| [name, value]);
            let flat = flat.map(|bytes| Value::BulkString(bytes.clone())).collect();
            let id = EntryId::new(id.0, id.1);
            let sent = Value::Array(vec![bulk(&id.to_string()), Value::Array(flat)]);
            let read = entries(Ok(Value::Array(vec![sent]))).unwrap();
            prop_assert_eq!(read[0].id, id);
            let seen: Vec<_> = read[0].fields.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(seen, fields);
        }
    }
}
