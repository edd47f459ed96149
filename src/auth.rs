//! Who may listen: token sources, keys, claims, CEL authorisation.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::HeaderMap;
use tokio::time::Instant;

use crate::config::template::Values;
use crate::config::{Config, Route};
use crate::metrics::Metrics;
use crate::protocol::outcome::Refusal;
use crate::stream::StreamKeys;

/// What a request brings that can say who sent it.
pub struct Request<'a> {
    pub headers: &'a HeaderMap,
    /// Path parameters (`job_id`) and the query variables that the route's templates use
    /// (`query.x`), decoded and checked against the route's patterns.
    pub params: &'a BTreeMap<String, String>,
    /// All query variables, decoded. The first of several with one name counts.
    pub query: &'a BTreeMap<String, String>,
}

/// What a verified request may do.
#[derive(Debug)]
pub struct Grant {
    /// Absent on a public route, or where the token has no such claim.
    pub subject: Option<String>,
    /// What templates are rendered with: parameters and verified claims.
    pub values: Values,
    /// The resolved keys, in the order of the route.
    pub streams: StreamKeys,
    /// When the socket closes: `exp` plus leeway. Absent where nothing expires.
    pub expires_at: Option<Instant>,
}

/// Why a request is refused. (Variants are the auth module's to define.)
#[derive(Debug, thiserror::Error)]
#[error("refused")]
pub struct Rejection;

impl Rejection {
    pub fn refusal(&self) -> Refusal {
        todo!()
    }
}

/// Decides who may listen, by the config.
pub struct Authority {
    _config: Arc<Config>,
}

impl Authority {
    pub fn new(config: Arc<Config>, _metrics: &Metrics) -> Self {
        Self { _config: config }
    }

    /// Verifies the token (unless the route is public), authorises, and resolves the streams.
    pub fn admit(&self, _route: &Route, _request: &Request<'_>) -> Result<Grant, Rejection> {
        todo!()
    }

    /// The subprotocol that carries a token in this offer, if a token source says so.
    pub fn token_subprotocol<'a>(&self, _offered: &[&'a str]) -> Option<&'a str> {
        todo!()
    }
}
