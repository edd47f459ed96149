//! Development tokens, signed with the HMAC key of the config.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Map, Value};

use crate::config::Jwt;

/// Why no token can be minted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// Only public keys are configured, or none.
    #[error("no [[auth.key]] has a `secret`: only HMAC keys can sign tokens here")]
    NoSecret,
    /// The library would not sign.
    #[error("the token can't be signed: {0}")]
    Unsigned(jsonwebtoken::errors::Error),
}

/// A token that this very config accepts: signed with the first HMAC key, with the first
/// issuer and audience and everything that `require` wants. What `claims` says wins over all
/// of that, so that a token can be made wrong on purpose.
pub fn mint(
    jwt: &Jwt,
    subject: &str,
    lifetime: Duration,
    claims: Map<String, Value>,
) -> Result<String, MintError> {
    let (algorithm, secret) = jwt
        .keys
        .iter()
        .find_map(|key| Some((key.algorithms.first()?, key.secret.as_ref()?)))
        .ok_or(MintError::NoSecret)?;
    let mut all = standard_claims(jwt, subject, lifetime);
    all.extend(claims);
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    jsonwebtoken::encode(&Header::new(*algorithm), &all, &key).map_err(MintError::Unsigned)
}

fn standard_claims(jwt: &Jwt, subject: &str, lifetime: Duration) -> Map<String, Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    let mut claims = Map::new();
    claims.insert("iat".to_owned(), now.into());
    claims.insert(
        "exp".to_owned(),
        now.saturating_add(lifetime.as_secs()).into(),
    );
    let first = [("iss", jwt.issuer.first()), ("aud", jwt.audience.first())];
    for (name, value) in first {
        if let Some(value) = value {
            claims.insert(name.to_owned(), value.as_str().into());
        }
    }
    claims.extend(jwt.require.clone());
    claims.insert(jwt.subject_claim.clone(), subject.into());
    claims
}
