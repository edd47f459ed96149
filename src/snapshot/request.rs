//! What is sent to the API: URL and headers of one client's callback.

use std::fmt;
use std::sync::Arc;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Uri};
use tracing::warn;

use crate::config;
use crate::config::template::{Template, Unusable, Values};
use crate::stream::StreamKeys;

/// Headers that belong to one connection or one message (RFC 9110, 7.6.1) and would say
/// something false about the callback, whoever asks for them.
const OF_ONE_MESSAGE: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "expect",
    // The body goes to clients as it is: it must not be compressed for this hop.
    "accept-encoding",
];

/// `sec-websocket-key` and its kin: they are the handshake's own, and the protocol may carry a token.
const OF_THE_HANDSHAKE: &str = "sec-websocket-";

/// Headers that name one request, not the one who asks: no state depends on them, so they
/// don't keep clients from sharing. A shared callback has those of the client who came first.
const OF_ONE_REQUEST: &[&str] = &["traceparent", "tracestate", "x-request-id"];

const USER_AGENT: &str = concat!("relay/", env!("CARGO_PKG_VERSION"));

/// One client's callback, ready to be sent, again for each resync.
#[derive(Clone)]
pub struct Callback {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) keys: StreamKeys,
}

impl fmt::Debug for Callback {
    /// URL and headers may hold what must not be seen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callback")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

/// What makes two callbacks of one route the same: URL, headers and stream keys. The method
/// is the route's.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Identity {
    uri: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    keys: Vec<String>,
}

impl Callback {
    pub(super) fn identity(&self) -> Arc<Identity> {
        let of_the_asker = |name: &HeaderName| !OF_ONE_REQUEST.contains(&name.as_str());
        let headers = self
            .headers
            .iter()
            .filter(|(name, _)| of_the_asker(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let keys = self.keys.as_slice().iter().map(ToString::to_string);
        Arc::new(Identity {
            uri: self.uri.clone(),
            headers,
            keys: keys.collect(),
        })
    }
}

/// How a route's callbacks are made.
pub(super) struct Recipe {
    url: Template,
    headers: Vec<(HeaderName, Template)>,
    forward: Vec<HeaderName>,
}

impl Recipe {
    pub(super) fn new(route: &str, snapshot: &config::Snapshot) -> Self {
        let mut forward = snapshot.forward.clone();
        // A host is for the config to set, never for a client.
        forward.retain(|name| name != header::HOST && may_be_sent(route, name));
        let mut headers = snapshot.headers.clone();
        headers.retain(|(name, _)| may_be_sent(route, name));
        Self {
            url: snapshot.url.clone(),
            headers,
            forward,
        }
    }

    pub(super) fn prepare(
        &self,
        values: &Values,
        client: &HeaderMap,
        keys: &StreamKeys,
    ) -> Result<Callback, Unusable> {
        Ok(Callback {
            uri: self.uri(values)?,
            headers: self.headers(values, client)?,
            keys: keys.clone(),
        })
    }

    fn uri(&self, values: &Values) -> Result<Uri, Unusable> {
        let url = self.url.render_url(values)?;
        // A checked template fails here only by what a value does to a host name or to the length.
        let unusable = |_| Unusable::Param("snapshot.url".to_owned());
        url.parse().map_err(unusable)
    }

    fn headers(&self, values: &Values, client: &HeaderMap) -> Result<HeaderMap, Unusable> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        // Not even the client's `connection` header takes one of these away: it would let a
        // client choose which of its headers the API sees.
        for name in &self.forward {
            let mut of_client = client.get_all(name).iter();
            if let Some(first) = of_client.next() {
                headers.insert(name, on_its_own(first));
            }
            for next in of_client {
                headers.append(name, on_its_own(next));
            }
        }
        // Last, so that no client can bring a header that the config sets.
        for (name, template) in &self.headers {
            headers.insert(name, template.render_header(values)?);
        }
        Ok(headers)
    }
}

/// The same value in memory of its own. hyper's values are parts of the whole head of the request,
/// which would stay in memory for as long as one of them: 8 KiB for a session.
pub fn on_its_own(value: &HeaderValue) -> HeaderValue {
    let copy = HeaderValue::from_bytes(value.as_bytes());
    let mut copy = copy.expect("it is the value of a header already");
    copy.set_sensitive(value.is_sensitive());
    copy
}

fn may_be_sent(route: &str, name: &HeaderName) -> bool {
    let name = name.as_str();
    let may = !OF_ONE_MESSAGE.contains(&name) && !name.starts_with(OF_THE_HANDSHAKE);
    if !may {
        warn!(
            route,
            header = name,
            "snapshot callbacks never have this header: it is left out"
        );
    }
    may
}
