//! Who may listen: token sources, keys, claims, CEL authorisation.
//!
//! [`Authority::admit`] is the flow of a request: the token is found (`auth/token.rs`) and
//! verified (`auth/verify.rs`) by the keys of the config (`auth/keyring.rs`), the route's
//! `authorize` is asked (`auth/authorize.rs`), and the streams are resolved. What comes out is a
//! [`Grant`], or a [`Rejection`] that knows what the client is told. No token, claim or query
//! string reaches a log line or a metric from here.

mod authorize;
mod explain;
mod jwks;
mod key;
mod key_file;
mod keyring;
pub mod mint;
mod rejection;
mod rules;
#[cfg(test)]
mod tests;
mod token;
mod verify;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use hyper::HeaderMap;
use tokio::time::Instant;

use crate::config::template::{Unusable, Values};
use crate::config::{Config, Jwt, Route, TokenSource};
use crate::metrics::{Counter, Metrics, TOKEN_REJECTIONS};
use crate::secret::Secret;
use crate::stream::{StreamKey, StreamKeys};
use crate::tasks::Tasks;
use authorize::Authorizer;
pub use explain::{Explained, Finding};
pub use jwks::JwksError;
pub use keyring::Fetched;
pub use rejection::{Rejection, TokenFault};
use verify::{Verified, Verifier};

/// What a request brings that can say who sent it.
pub struct Request<'a> {
    /// The headers of the upgrade request.
    pub headers: &'a HeaderMap,
    /// Path parameters (`job_id`) and the query variables that the route's templates use
    /// (`query.x`), decoded and checked against the route's patterns.
    pub params: &'a BTreeMap<String, String>,
    /// All query variables, decoded. The first of several with one name counts.
    pub query: &'a BTreeMap<String, String>,
    /// A token that has come in a message. Then the request itself is not searched for one.
    pub message: Option<&'a Secret>,
}

/// What a verified request may do.
pub struct Grant {
    /// Absent on a public route, or where the token has no such claim.
    pub subject: Option<String>,
    /// What templates are rendered with: parameters and verified claims.
    pub values: Values,
    /// The resolved keys, in the order of the route.
    pub streams: StreamKeys,
    /// When the socket closes: `exp` plus leeway. Absent where nothing expires.
    pub expires_at: Option<Instant>,
    /// When the token itself ends, which the client is told ahead of. Absent where nothing
    /// expires.
    pub token_expires_at: Option<Instant>,
}

/// Shows no claim, and no key, since keys are made of claims.
impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("has_subject", &self.subject.is_some())
            .field("streams", &self.streams.len())
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Decides who may listen, by the config.
pub struct Authority {
    /// Absent with auth mode "none".
    tokens: Option<Tokens>,
    authorizer: Authorizer,
    rejections: HashMap<&'static str, Counter>,
}

/// Where tokens are looked for, and what is wanted of them.
struct Tokens {
    sources: Vec<TokenSource>,
    verifier: Verifier,
}

impl Authority {
    /// An authority for this config, whose keys stay as they are. Every key is tried once, so
    /// that a build that can't verify tokens fails here and not at the first client.
    pub fn new(config: &Config, metrics: &Metrics) -> Self {
        Self::of(config.auth.jwt.as_ref(), &config.routes, metrics)
    }

    /// An authority for this config, whose keys are kept up to date by tasks of `tasks`.
    pub fn start(config: &Config, tasks: &Tasks, metrics: &Metrics) -> Self {
        let authority = Self::new(config, metrics);
        if let (Some(tokens), Some(jwt)) = (&authority.tokens, &config.auth.jwt) {
            tokens.verifier.keyring.start(jwt, tasks, metrics);
        }
        authority
    }

    fn of(jwt: Option<&Jwt>, routes: &[Route], metrics: &Metrics) -> Self {
        let rejections = TokenFault::ALL.iter().map(|fault| {
            let counter = metrics.counter(&TOKEN_REJECTIONS, &[fault.reason()]);
            counter.inc_by(0);
            (fault.reason(), counter)
        });
        Self {
            tokens: jwt.map(|jwt| Tokens::new(jwt, metrics)),
            authorizer: Authorizer::new(routes),
            rejections: rejections.collect(),
        }
    }

    /// Verifies the token (unless the route is public), authorises, and resolves the streams.
    ///
    /// A public route ignores whatever token there is: it has no claims. Its `authorize` is
    /// asked all the same, for it may look at path and query, and a rule that is written down
    /// is not passed over. Takes no time, but where a JWKS has to be asked for an unknown key.
    pub async fn admit(&self, route: &Route, request: &Request<'_>) -> Result<Grant, Rejection> {
        let verified = match &self.tokens {
            Some(tokens) if !route.public => self.counted(tokens.verify(request).await)?,
            Some(_) | None => Verified::default(),
        };
        self.grant(route, verified, request)
    }

    fn grant(
        &self,
        route: &Route,
        verified: Verified,
        request: &Request<'_>,
    ) -> Result<Grant, Rejection> {
        let claims = &verified.claims;
        if !self.authorizer.allows(route, claims, request) {
            return Err(Rejection::NotAllowed);
        }
        let values = Values {
            params: request.params.clone(),
            claims: verified.claims,
        };
        Ok(Grant {
            subject: verified.subject,
            streams: resolve(route, &values)?,
            values,
            expires_at: verified.expires_at,
            token_expires_at: verified.token_expires_at,
        })
    }

    /// Whether the token has to be waited for: this request has none, and it may come in the
    /// first message.
    pub fn awaits_message(&self, route: &Route, request: &Request<'_>) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| {
            !route.public
                && tokens.sources.contains(&TokenSource::FirstMessage)
                && matches!(
                    token::find(&tokens.sources, request),
                    Err(TokenFault::Missing)
                )
        })
    }

    /// Fetches every JWKS once.
    pub async fn fetch_jwks(&self) -> Vec<Fetched> {
        match &self.tokens {
            Some(tokens) => tokens.verifier.keyring.fetch_all().await,
            None => Vec::new(),
        }
    }

    /// Whether every JWKS was fetched at least once; `None` if there is none.
    pub fn has_keys(&self) -> Option<bool> {
        self.tokens.as_ref()?.verifier.keyring.are_there()
    }

    /// The subprotocol that carries a token in this offer, if a token source says so.
    ///
    /// A browser drops the connection unless one of the subprotocols that it offered is
    /// selected (RFC 6455 section 4.1), and it may have offered nothing but its token.
    pub fn token_subprotocol<'a>(&self, offered: &[&'a str]) -> Option<&'a str> {
        let sources = &self.tokens.as_ref()?.sources;
        sources.iter().find_map(|source| match source {
            TokenSource::Subprotocol { prefix } => {
                token::subprotocol(offered.iter().copied(), prefix).map(|(value, _)| value)
            }
            TokenSource::Header
            | TokenSource::Cookie { .. }
            | TokenSource::Query { .. }
            | TokenSource::FirstMessage => None,
        })
    }

    /// The token that was waited for has not come.
    pub fn missing(&self) -> Rejection {
        self.count(&TokenFault::Missing);
        Rejection::from(TokenFault::Missing)
    }

    fn counted<T>(&self, result: Result<T, TokenFault>) -> Result<T, TokenFault> {
        result.inspect_err(|fault| self.count(fault))
    }

    fn count(&self, fault: &TokenFault) {
        if let Some(counter) = self.rejections.get(fault.reason()) {
            counter.inc();
        }
    }
}

impl Tokens {
    fn new(jwt: &Jwt, metrics: &Metrics) -> Self {
        Self {
            sources: jwt.token_from.clone(),
            verifier: Verifier::new(jwt, metrics),
        }
    }

    async fn verify(&self, request: &Request<'_>) -> Result<Verified, TokenFault> {
        let token = token::find(&self.sources, request)?;
        self.verifier.verify(&token).await
    }
}

/// The keys of the route's streams.
fn resolve(route: &Route, values: &Values) -> Result<StreamKeys, Unusable> {
    let keys = route.streams.iter();
    let keys = keys.map(|template| template.render(values).map(StreamKey::from));
    keys.collect::<Result<_, _>>().map(StreamKeys::new)
}
