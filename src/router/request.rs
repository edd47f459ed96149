//! What a handshake asks for, read once.

use std::collections::BTreeMap;

use hyper::header::{SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL};
use hyper::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;

use crate::config::Route;
use crate::protocol::outcome::{Outcome, Refusal};

const NO_SUCH_RESOURCE: Refusal = Refusal::new(Outcome::NotFound, "no_such_resource");

/// The parts of a request that the router looks at more than once.
pub(super) struct Asked {
    /// Path parameters as they stand in the path, still percent-encoded.
    encoded: BTreeMap<String, String>,
    /// Query variables, decoded. The first of several with one name counts.
    pub(super) query: BTreeMap<String, String>,
    /// Subprotocols in the order in which they are offered.
    pub(super) offered: Vec<String>,
    last_event_id: Option<String>,
}

impl Asked {
    pub(super) fn new(uri: &Uri, headers: &HeaderMap, encoded: BTreeMap<String, String>) -> Self {
        let mut query = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            query
                .entry(name.into_owned())
                .or_insert_with(|| value.into_owned());
        }
        let last_event_id = headers.get("last-event-id");
        Self {
            encoded,
            query,
            offered: offered(headers),
            last_event_id: last_event_id
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
        }
    }

    /// Path parameters and the query variables that the route uses, decoded, each as its route
    /// wants it. A value that its pattern refuses names no resource.
    pub(super) fn params(&self, route: &Route) -> Result<BTreeMap<String, String>, Refusal> {
        let mut params = BTreeMap::new();
        for (name, pattern) in &route.params {
            let value = match name.strip_prefix("query.") {
                Some(variable) => self.query.get(variable).cloned(),
                None => self
                    .encoded
                    .get(name)
                    .map(|value| decode(value))
                    .transpose()?,
            };
            // A query variable may be absent; the template that needs it says so.
            let Some(value) = value else { continue };
            if !pattern.is_match(&value) {
                return Err(NO_SUCH_RESOURCE);
            }
            params.insert(name.clone(), value);
        }
        Ok(params)
    }

    /// The client's cursor; an empty one is none. A `Last-Event-ID` wins over the query.
    pub(super) fn cursor(&self, route: &Route) -> Option<&str> {
        let query = self.query.get(&route.resume_query);
        let cursor = self.last_event_id.as_ref().or(query)?;
        (!cursor.is_empty()).then_some(cursor)
    }
}

fn decode(value: &str) -> Result<String, Refusal> {
    let decoded = percent_decode_str(value).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| NO_SUCH_RESOURCE)
}

fn offered(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let offers = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    offers
        .map(str::trim)
        .filter(|offer| !offer.is_empty())
        .map(str::to_owned)
        .collect()
}

/// RFC 6455 section 4.2.1: the base64 of sixteen bytes.
pub(super) fn has_valid_key(headers: &HeaderMap) -> bool {
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return false;
    };
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    matches!(key.as_bytes(), [body @ .., b'=', b'='] if body.len() == 22 && body.iter().all(is_base64))
}
