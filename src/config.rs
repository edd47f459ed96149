//! `relay.toml` as it is meant: durations, sizes, compiled templates and patterns.
//!
//! `config/written.rs` holds the file as it is written; `Config::load` turns one into the
//! other, and whatever passes needs no further check. Every error names file, line, key and
//! what is expected.

pub mod template;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use hyper::Method;
use hyper::header::HeaderName;
use regex::Regex;

use crate::secret::Secret;
use template::Template;

/// The whole of `relay.toml`.
#[derive(Debug)]
pub struct Config {
    pub server: Server,
    pub redis: Redis,
    pub auth: Auth,
    pub routes: Vec<Route>,
    pub keepalive: Keepalive,
    pub drain: Drain,
    pub client: Client,
    pub log: Log,
}

#[derive(Debug, Clone)]
pub struct Server {
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    pub max_connections: usize,
    pub handshake_timeout: Duration,
    pub max_head: usize,
    pub send_buffer: usize,
    pub allowed_origins: Vec<OriginPattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    /// `scheme://host[:port]`, in lower case; or `null`.
    Exact(String),
    /// `https://*.example.com`: any host below, at any depth, but not `example.com` itself.
    Below { scheme: String, suffix: String },
}

#[derive(Debug, Clone)]
pub struct Redis {
    pub url: Secret,
    pub username: String,
    pub password: Secret,
    pub client_name: String,
    pub pool_size: usize,
    pub wake: Wake,
    pub sweep: Duration,
    pub poll: Duration,
    pub command_timeout: Duration,
    pub ring_entries: usize,
    pub ring_bytes: usize,
    pub ring_total: usize,
    pub backlog_total: usize,
    pub hold: Duration,
    pub linger: Duration,
    pub grace: Duration,
}

/// How changes of streams are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The first that Redis allows.
    Auto,
    /// Invalidation pushes of `CLIENT TRACKING`.
    Tracking,
    /// Reading on time alone.
    Poll,
}

#[derive(Debug)]
pub struct Auth {
    pub reject: Reject,
    /// Absent with `mode = "none"`: every route is public.
    pub jwt: Option<Jwt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    Close,
    Http,
    Abort,
}

#[derive(Debug)]
pub struct Jwt {
    pub token_from: Vec<TokenSource>,
    /// Accepted values; empty: not checked.
    pub issuer: Vec<String>,
    pub audience: Vec<String>,
    pub require: BTreeMap<String, serde_json::Value>,
    pub subject_claim: String,
    pub leeway: Duration,
    pub expiry: Expiry,
    pub keys: Vec<VerificationKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    Close,
    Ignore,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// `authorization: Bearer …`
    Header,
    /// A subprotocol that begins with this prefix; the rest is the token.
    Subprotocol {
        prefix: String,
    },
    Cookie {
        name: String,
    },
    Query {
        name: String,
    },
}

/// One `[[auth.key]]`: its material, and the only algorithms that it may verify.
pub struct VerificationKey {
    pub algorithms: Vec<jsonwebtoken::Algorithm>,
    pub decoding: jsonwebtoken::DecodingKey,
    /// The HMAC secret, with which `relay token` can sign; absent for public keys.
    pub secret: Option<Secret>,
}

impl std::fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerificationKey")
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub struct Route {
    pub name: String,
    /// As `matchit` takes it: `/ws/jobs/{job_id}`.
    pub path: String,
    pub streams: Vec<Template>,
    /// What the value of each path parameter (`job_id`) and query variable (`query.x`) must
    /// be as a whole; every variable that a template of this route uses is here.
    pub params: BTreeMap<String, Regex>,
    pub public: bool,
    pub authorize: Option<Authorize>,
    pub history: History,
    /// The query parameter that holds the cursor.
    pub resume_query: String,
    pub snapshot: Option<Snapshot>,
    pub message: Message,
    pub slow: Slow,
}

/// A compiled CEL expression that says who may read a route.
pub struct Authorize {
    pub source: String,
    pub program: cel::Program,
}

impl std::fmt::Debug for Authorize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Authorize").field(&self.source).finish()
    }
}

/// What a client without a cursor gets before live entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum History {
    None,
    All,
    Last(NonZeroU64),
    Since(Duration),
}

#[derive(Debug)]
pub struct Snapshot {
    /// Values are percent-encoded when it is rendered.
    pub url: Template,
    pub method: Method,
    pub headers: Vec<(HeaderName, Template)>,
    pub forward: Vec<HeaderName>,
    pub timeout: Duration,
    pub retries: u32,
    pub max_bytes: usize,
    pub max_in_flight: usize,
    pub queue: Duration,
    pub share: Share,
    pub cursor_header: HeaderName,
    pub on_error: OnError,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    None,
    /// Clients that need the same snapshot share one callback; its body serves later ones for `ttl`.
    Url {
        ttl: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    Close,
    Stream,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Message {
    pub format: Format,
    /// Whether frames other than snapshots and events reach the client.
    pub control: bool,
    /// How a snapshot is wrapped; only with verbatim and merge. Empty: the body as it is.
    pub snapshot_template: String,
}

/// How an entry becomes the text of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Format {
    pub kind: FormatKind,
    /// A larger payload is not sent.
    pub max_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FormatKind {
    /// The field's value as `data` of an event frame; without a field all of them as an object.
    Envelope {
        field: Option<String>,
    },
    Verbatim {
        field: String,
    },
    Merge {
        field: String,
        id_key: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slow {
    pub write_timeout: Duration,
    /// Entries; `None`: no limit.
    pub max_lag: Option<u64>,
    pub then: WhenLagging,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenLagging {
    Close,
    Resync,
}

#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    pub ping: Duration,
    pub timeout: Duration,
    /// `None`: never.
    pub max_age: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
pub struct Drain {
    pub delay: Duration,
    pub window: Duration,
    pub grace: Duration,
    pub mode: DrainMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainMode {
    Close,
    Abort,
}

#[derive(Debug, Clone, Copy)]
pub struct Client {
    pub max_message: usize,
    pub max_messages_per_second: u32,
}

#[derive(Debug, Clone)]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}
