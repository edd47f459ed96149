//! `relay.toml` as it is meant: durations, sizes, compiled templates and patterns.
//!
//! `config/written.rs` holds the file as it is written; `Config::load` turns one into the
//! other, and whatever passes needs no further check. Every error names file, line, key and
//! what is expected.

mod auth;
mod authorize;
mod error;
mod interpolate;
mod jwks;
mod key;
mod lifetime;
mod message;
mod redis;
mod route;
mod server;
mod slow;
mod snapshot;
mod source;
pub mod template;
mod tls;
mod value;
mod written;

use std::path::Path;

use source::Source;

use crate::telemetry::Log;
pub use auth::{Auth, Expiry, Jwt, Reject, TokenSource, media_type};
pub use authorize::Authorize;
pub use error::ConfigError;
pub use jwks::Jwks;
pub use key::{FixedKey, KeyOrigin, VerificationKey, fits};
pub use lifetime::{Drain, DrainMode, Keepalive};
pub use message::{Format, FormatKind, Message};
pub use redis::{Redis, Wake};
pub use route::{History, Route};
pub use server::{Client, OriginPattern, Server};
pub use slow::{JsonPointer, Slow, WhenLagging};
pub use snapshot::{OnError, Share, Snapshot};
pub use tls::Tls;

/// The whole of `relay.toml`.
#[derive(Debug)]
pub struct Config {
    /// How clients reach the relay.
    pub server: Server,
    /// Where the streams are, and how they are read.
    pub redis: Redis,
    /// Who may connect.
    pub auth: Auth,
    /// At least one; names are unique, and no two paths match the same request.
    pub routes: Vec<Route>,
    /// When a silent or old connection ends.
    pub keepalive: Keepalive,
    /// How the relay ends.
    pub drain: Drain,
    /// What a client may send.
    pub client: Client,
    /// What is logged, and how.
    pub log: Log,
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::unreadable(&file, &error))?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the only place that reads the environment"
        )]
        // A value that is no Unicode can't be used, and counts as not set.
        let environment = |name: &str| std::env::var(name).ok();
        Self::parse(&text, &file, &environment)
    }

    /// Checks the text of a config. Errors call it `file`; `${NAME}` is asked of `environment`,
    /// and `${file:}` is read from disk.
    pub fn parse(
        text: &str,
        file: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let (source, written) = Source::read(text, file, environment)?;
        let server = written.server.check(&source)?;
        let auth = auth::check(written.auth, &server, &source)?;
        written.server.check_with(&auth, &source)?;
        Ok(Self {
            redis: written.redis.check(&source)?,
            routes: route::check_all(written.route, auth.jwt.as_ref(), &source)?,
            keepalive: written.keepalive.check(&source)?,
            drain: written.drain.check(&source)?,
            client: written.client.check(&source)?,
            log: written.log.check(&source)?,
            server,
            auth,
        })
    }
}
