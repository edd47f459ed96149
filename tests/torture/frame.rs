//! What a relay sends, in the formats of the torture's routes.

use relay::stream::EntryId;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::payload::Payload;

#[derive(Debug)]
pub(crate) enum Frame<'a> {
    Snapshot {
        reason: &'a str,
        cursor: Vec<EntryId>,
        state: State,
    },
    Event {
        /// The stream's key and the entry's id, where the format tells them.
        stream: Option<&'a str>,
        id: Option<EntryId>,
        cursor: Option<Vec<EntryId>>,
        payload: Payload<'a>,
    },
    Live {
        cursor: Vec<EntryId>,
    },
    Resync {
        reason: &'a str,
        lost: Vec<EntryId>,
    },
    Status(&'a str),
    Goaway,
}

/// What the torture's API answers: for each stream of the route the last entry that the state
/// includes, and the id that was declared for it.
#[derive(Debug, Deserialize, serde::Serialize)]
pub(crate) struct State {
    pub(crate) through: Vec<u64>,
    pub(crate) declared: Vec<Option<String>>,
}

#[derive(Deserialize)]
struct Written<'a> {
    r#type: Option<&'a str>,
    cursor: Option<&'a str>,
    stream: Option<&'a str>,
    id: Option<&'a str>,
    data: Option<&'a RawValue>,
    reason: Option<&'a str>,
    lost: Option<&'a str>,
    state: Option<&'a str>,
}

impl<'a> Frame<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, String> {
        Self::read(text).ok_or_else(|| format!("a frame that can't be read: {text}"))
    }

    /// The cursor as it goes back to a relay.
    pub(crate) fn cursor_text(text: &'a str) -> Option<&'a str> {
        serde_json::from_str::<Written<'a>>(text).ok()?.cursor
    }

    fn read(text: &'a str) -> Option<Self> {
        let written: Written<'a> = serde_json::from_str(text).ok()?;
        let Some(kind) = written.r#type else {
            let cursor = match written.cursor {
                Some(cursor) => Some(ids(cursor)?),
                None => None,
            };
            return Some(Self::Event {
                stream: None,
                id: cursor.as_ref().map(|ids| ids[0]),
                cursor,
                payload: serde_json::from_str(text).ok()?,
            });
        };
        Some(match kind {
            "event" => Self::Event {
                stream: Some(written.stream?),
                id: Some(EntryId::parse(written.id?)?),
                cursor: Some(ids(written.cursor?)?),
                payload: serde_json::from_str(written.data?.get()).ok()?,
            },
            "snapshot" => Self::Snapshot {
                reason: written.reason?,
                cursor: ids(written.cursor?)?,
                state: serde_json::from_str(written.data?.get()).ok()?,
            },
            "live" => Self::Live {
                cursor: ids(written.cursor?)?,
            },
            "resync" => Self::Resync {
                reason: written.reason?,
                lost: ids(written.lost?)?,
            },
            "status" => Self::Status(written.state?),
            "goaway" => Self::Goaway,
            _ => return None,
        })
    }
}

/// A cursor is opaque to clients. This one looks into it: its ids must be what was seen.
pub(crate) fn ids(cursor: &str) -> Option<Vec<EntryId>> {
    let ids = cursor.split_once('~').map_or(cursor, |(_, ids)| ids);
    let ids: Option<Vec<EntryId>> = ids.split(',').map(EntryId::parse).collect();
    ids.filter(|ids| !ids.is_empty())
}
