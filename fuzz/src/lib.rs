//! What the fuzzer is let loose on: every reader of what others have written, by the way that it
//! comes in. Each target takes any bytes, and panics where a promise is broken.
//!
//! `tests/fuzz.rs` plays them over the kept corpus in the ordinary tests.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use hyper::{HeaderMap, Request, Uri};
use relay::auth::{self, Authority, Grant, Rejection};
use relay::config::{Config, FormatKind, JsonPointer, Route};
use relay::metrics::Metrics;
use relay::protocol::conflation::Conflation;
use relay::protocol::encoder::Encoder;
use relay::protocol::{ClientMessage, snapshot_framed};
use relay::router::explain::explain;
use relay::store::live::address;
use relay::stream::{Cursor, Entry, EntryId, StreamKey, StreamKeys};
use serde_json::value::RawValue;

/// A target, and the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: [Target; 10] = [
    ("claims", claims),
    ("client_message", client_message),
    ("config", config),
    ("cursor", cursor),
    ("entry", entry),
    ("headers", headers),
    ("redis_url", redis_url),
    ("request", request),
    ("snapshot", snapshot),
    ("token", token),
];

const SECRET: &str = "an-hmac-secret-for-fuzzing-of-48-bytes-in-all...";

/// Later than any clock can say, in seconds: that is never.
const END_OF_CLOCKS: f64 = 9e18;

const CONFIG: &str = r#"
[server]
allowed_origins = ["https://app.example"]

[auth]
token_from = ["header", "subprotocol:bearer.", "cookie:session", "query:token", "first_message"]

[[auth.key]]
algorithms = ["HS256"]
secret = "an-hmac-secret-for-fuzzing-of-48-bytes-in-all..."

[[route]]
name = "job"
path = "/ws/jobs/{job_id}/{part}.json"
streams = ["job:{job_id}:{part}:{query.lang}", "user:{claims.sub}"]
authorize = "!has(claims.jobs) || path.job_id in claims.jobs"
[route.snapshot]
url = "http://127.0.0.1:8000/jobs/{job_id}/{query.lang}?user={claims.sub}"
headers = { x-part = "{part}" }

[[route]]
name = "user"
path = "/ws/me"
streams = ["user:{claims.sub}:{claims.org.id}"]
[route.message]
field = "data"
format = "merge"

[[route]]
name = "line"
path = "/ws/lines/{any}"
params = { any = "(?s).*" }
streams = ["lines:{any}"]
[route.message]
field = "data"
format = "verbatim"
snapshot_template = '{"r":"{reason}","c":"{cursor}","b":{body}}'
[route.snapshot]
url = "http://127.0.0.1:8000/{any}"
"#;

struct Relay {
    config: Config,
    authority: Authority,
}

fn relay() -> &'static Relay {
    static RELAY: OnceLock<Relay> = OnceLock::new();
    RELAY.get_or_init(|| {
        let config = Config::parse(CONFIG, "relay.toml", &|_| None).expect("the config is valid");
        let authority = Authority::new(&config, &Metrics::new());
        Relay { config, authority }
    })
}

fn route(name: &str) -> &'static Route {
    let routes = relay().config.routes.iter();
    let mut named = routes.filter(|route| route.name == name);
    named.next().expect("the config has the route")
}

/// What somebody comes to who sends these headers to `/ws/me`.
fn admit(headers: &HeaderMap) -> Result<Grant, Rejection> {
    let (params, query) = (BTreeMap::new(), BTreeMap::new());
    let request = auth::Request {
        headers,
        params: &params,
        query: &query,
        message: None,
    };
    let admitted = relay().authority.admit(route("user"), &request);
    admitted.now_or_never().expect("nobody is asked for a key")
}

fn bearing(token: &[u8]) -> Option<HeaderMap> {
    let value = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok()?;
    Some(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

/// A token with these claims, be they any at all, that the key of the config has signed.
fn signed(claims: &[u8]) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The header of a token, its parts, its signature: nobody without the key has a good one.
pub fn token(data: &[u8]) {
    if let Some(headers) = bearing(data) {
        assert!(admit(&headers).is_err(), "a token that nobody has signed");
    }
}

/// The claims of a token that is signed: an issuer may be careless, or hostile to its neighbours.
pub fn claims(data: &[u8]) {
    let headers = bearing(signed(data).as_bytes()).expect("a token is a header");
    let Ok(grant) = admit(&headers) else { return };
    let exp = grant.values.claims["exp"].as_f64().unwrap_or_default();
    let has_end = grant.expires_at.is_some() || exp >= END_OF_CLOCKS;
    assert!(has_end, "a token without an end");
    for key in grant.streams.as_slice() {
        let name = key.as_str();
        let is_bad = |c: char| c.is_control() || c.is_whitespace() || "*?[]{}".contains(c);
        assert!(!name.contains(is_bad), "{name:?}");
    }
}

/// Cookies, subprotocols and other headers, one a line: `name: value`.
pub fn headers(data: &[u8]) {
    let headers = lines(data);
    assert!(admit(&headers).is_err(), "headers without a token");
    let offered = headers.get_all("sec-websocket-protocol").iter();
    let offered: Vec<_> = offered.filter_map(|offer| offer.to_str().ok()).collect();
    if let Some(selected) = relay().authority.token_subprotocol(&offered) {
        assert!(offered.contains(&selected), "{selected:?} was not offered");
    }
}

fn lines(data: &[u8]) -> HeaderMap {
    let lines = data.split(|byte| *byte == b'\n').take(100);
    lines
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
            Some((name, value))
        })
        .fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        })
}

/// A request's target in the first line, its headers in the others; the token is good.
pub fn request(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let target = parts.next().unwrap_or_default();
    let Ok(uri) = Uri::from_maybe_shared(Bytes::copy_from_slice(target)) else {
        return;
    };
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    *request.headers_mut() = lines(parts.next().unwrap_or_default());
    let (parts, ()) = request.into_parts();
    let token = signed(br#"{"sub":"alice","exp":9999999999,"org":{"id":7}}"#);
    let relay = relay();
    let explained = explain(&relay.config, &relay.authority, &parts, Some(&token));
    let explained = explained.now_or_never();
    let explained = explained.expect("nobody is asked for a key");
    for finding in &explained.findings {
        assert!(!finding.said.contains(&token), "the token is shown");
        if finding.what == "snapshot" && finding.is_good {
            let url = finding.said.strip_prefix("GET http://127.0.0.1:8000/");
            let url = url.unwrap_or_else(|| panic!("{} is asked", finding.said));
            let path = url.split('?').next().unwrap_or_default();
            assert!(
                !path.split('/').any(|part| matches!(part, "." | "..")),
                "{url}"
            );
            assert!(url.bytes().all(|byte| byte.is_ascii_graphic()), "{url}");
        }
    }
}

/// A text message of a client.
pub fn client_message(data: &[u8]) {
    let message = ClientMessage::parse(&String::from_utf8_lossy(data));
    if let ClientMessage::Auth(token) = &message {
        let shown = format!("{message:?}");
        assert!(token.expose().len() < 20 || !shown.contains(token.expose()));
    }
}

/// A cursor, for one stream and for several: what is read is what would be written.
pub fn cursor(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for names in [&["a"][..], &["a", "b", "c"]] {
        let keys = StreamKeys::new(names.iter().map(|name| StreamKey::from(*name)).collect());
        if let Some(Cursor(ids)) = Cursor::parse(&text, &keys) {
            assert_eq!(Cursor::display(ids.into_iter(), &keys).to_string(), text);
        }
    }
}

/// A whole relay.toml: it is taken, or one line says what is wrong and where.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // These are files without end.
    if text.contains("/dev/") || text.contains("/proc/") {
        return;
    }
    if let Err(error) = Config::parse(&text, "relay.toml", &|_| None) {
        let error = error.to_string();
        assert!(error.starts_with("relay.toml:"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

/// The url of Redis: it is taken or refused, and its password is in neither answer.
pub fn redis_url(data: &[u8]) {
    const PASSWORD: &str = "a-password-that-is-shown-nowhere";
    let url = String::from_utf8_lossy(data).replace("PASSWORD", PASSWORD);
    // The name of a file is no secret.
    if url.contains("${file:") {
        return;
    }
    let url = serde_json::to_string(&url).expect("a text is JSON");
    let text = format!("{CONFIG}\n[redis]\nurl = {url}\n");
    let shown = match Config::parse(&text, "relay.toml", &|_| None) {
        Ok(config) => format!("{:?} {config:?}", address(&config.redis).is_ok()),
        Err(error) => error.to_string(),
    };
    assert!(!shown.contains(PASSWORD), "{shown}");
}

/// A stream's entry, its fields parted by zeros, in every format: what is sent is JSON.
pub fn entry(data: &[u8]) {
    let parts: Vec<_> = data
        .split(|byte| *byte == 0)
        .map(Bytes::copy_from_slice)
        .collect();
    let mut fields: Vec<_> = parts
        .chunks(2)
        .skip(1)
        .filter_map(|pair| Some((pair.first()?.clone(), pair.get(1)?.clone())))
        .collect();
    let data = parts.first().cloned().unwrap_or_default();
    fields.insert(0, (Bytes::from_static(b"data"), data));
    let entry = Entry {
        id: EntryId::new(7, 1),
        fields,
    };
    let key = StreamKey::from("job:\"1\"");
    for route in &relay().config.routes {
        let format = &route.message.format;
        let pointers = ["/id", "/0/a", "/data", ""].into_iter();
        for pointer in pointers.filter_map(JsonPointer::parse) {
            let conflation = Conflation::new(format, &pointer);
            assert_eq!(conflation.key(&entry), conflation.key(&entry.clone()));
        }
        let encoder = Encoder::new(format, 1);
        let mut omitted = 0;
        let entries = std::slice::from_ref(&entry);
        let encoded = encoder.encode(&key, entries, |_| omitted += 1);
        let is_sent = encoded.messages_from(0) == 1;
        match format.kind {
            FormatKind::Envelope { .. } => assert!(is_sent, "an entry without a frame"),
            FormatKind::Verbatim { .. } | FormatKind::Merge { .. } => {
                assert_ne!(is_sent, omitted == 1, "neither sent nor told, or both");
            }
        }
        if is_sent && !matches!(format.kind, FormatKind::Verbatim { .. }) {
            assert!(is_json(&payload(encoded.piece(0))), "{encoded:?}");
        }
    }
}

/// The body of a snapshot, in every format.
pub fn snapshot(data: &[u8]) {
    let body = String::from_utf8_lossy(data);
    for route in &relay().config.routes {
        let is_envelope = matches!(route.message.format.kind, FormatKind::Envelope { .. });
        // The callback has checked that much.
        if is_envelope && !is_json(body.as_bytes()) {
            continue;
        }
        let framed = snapshot_framed(&route.message, "connect", &EntryId::ZERO, &body);
        let text = payload(&framed);
        assert!(std::str::from_utf8(&text).is_ok());
        assert!(!is_envelope || is_json(&text), "{body}");
    }
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(text).is_ok()
}

/// The payload of a whole, unmasked text frame.
fn payload(frame: &[u8]) -> Vec<u8> {
    assert_eq!(frame[0], 0x81, "a whole text frame");
    let (length, head) = match frame[1] {
        126 => (u64::from(u16::from_be_bytes([frame[2], frame[3]])), 4),
        127 => {
            let bytes = frame[2..10].try_into().expect("eight bytes");
            (u64::from_be_bytes(bytes), 10)
        }
        length => (u64::from(length), 2),
    };
    let payload = &frame[head..];
    assert_eq!(u64::try_from(payload.len()), Ok(length));
    payload.to_vec()
}
