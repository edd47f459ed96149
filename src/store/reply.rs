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
