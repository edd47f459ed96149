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

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    const CONFIG: &str = "
[auth]
mode = 'none'
[[route]]
name = 'a'
path = '/a/{id}'
streams = ['a:{id}:{query.part}']
[[route]]
name = 'any'
path = '/any/{id}'
params = { id = '(?s).*' }
streams = ['any:{id}']
";

    fn routes() -> Vec<Route> {
        Config::parse(CONFIG, "relay.toml", &|_| None)
            .unwrap()
            .routes
    }

    fn asked(uri: &str, headers: &HeaderMap, id: &str) -> Option<Asked> {
        let encoded = BTreeMap::from([("id".to_owned(), id.to_owned())]);
        Some(Asked::new(&uri.parse().ok()?, headers, encoded))
    }

    fn percent(text: &[u8]) -> String {
        text.iter().map(|byte| format!("%{byte:02x}")).collect()
    }

    #[test]
    fn a_value_is_decoded_once() {
        let routes = routes();
        let params = |id: &str| {
            asked("/", &HeaderMap::new(), id)
                .unwrap()
                .params(&routes[1])
        };
        for (encoded, decoded) in [
            ("a%2Fb", "a/b"),
            ("%2541", "%41"),
            ("%", "%"),
            ("%zz", "%zz"),
            ("a+b", "a+b"),
            ("%C3%A9", "\u{e9}"),
        ] {
            assert_eq!(params(encoded).unwrap()["id"], decoded, "{encoded}");
        }
        for not_text in ["%ff", "%c3", "%ed%a0%80", "%c0%af"] {
            assert!(params(not_text).is_err(), "{not_text}");
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_what_is_read(id: Vec<u8>) {
            let read = asked("/", &HeaderMap::new(), &percent(&id)).unwrap().params(&routes()[1]);
            match String::from_utf8(id) {
                Ok(id) => prop_assert_eq!(&read.unwrap()["id"], &id),
                Err(_) => prop_assert!(read.is_err()),
            }
        }

        #[test]
        fn nothing_passes_but_what_the_pattern_takes(
            id in "[a-z%./0-9]{0,12}|.{0,12}",
            part in "[a-z./]{0,8}|.{0,8}",
        ) {
            let query = form_urlencoded::Serializer::new(String::new()).append_pair("part", &part).finish();
            let asked = asked(&format!("/?{query}&part=second"), &HeaderMap::new(), &id).unwrap();
            if let Ok(params) = asked.params(&routes()[0]) {
                let is_harmless = |c: char| c.is_ascii_alphanumeric() || "._~@-".contains(c);
                for value in params.values() {
                    prop_assert!((1..=128).contains(&value.len()) && value.chars().all(is_harmless));
                }
                prop_assert_eq!(&params["query.part"], &part);
            }
        }

        #[test]
        fn any_request_is_read(
            query in "[ -~]{0,60}",
            lines in prop::collection::vec("[ -~\u{80}-\u{ff}]{0,40}|relay\\.v1,?|bearer\\.[a-z.]{0,9}", 0..4),
        ) {
            let mut headers = HeaderMap::new();
            for line in &lines {
                let bytes: Vec<_> = line.chars().map(|c| u8::try_from(c).unwrap()).collect();
                headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_bytes(&bytes).unwrap());
                headers.append(SEC_WEBSOCKET_KEY, HeaderValue::from_bytes(&bytes).unwrap());
            }
            prop_assert!(!has_valid_key(&headers) || lines.len() == 1);
            if let Some(asked) = asked(&format!("/?{query}"), &headers, "x") {
                for offer in &asked.offered {
                    prop_assert!(!offer.is_empty() && !offer.contains(',') && offer.trim() == offer);
                }
            }
        }
    }
}
