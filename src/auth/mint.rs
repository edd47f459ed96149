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

/// A token that this very config accepts: signed with the first HMAC key, with that key's first
/// issuer, the first audience and everything that `require` wants. What `claims` says wins over all
/// of that, so that a token can be made wrong on purpose.
pub fn mint(
    jwt: &Jwt,
    subject: &str,
    lifetime: Duration,
    claims: Map<String, Value>,
) -> Result<String, MintError> {
    let (algorithm, secret, issuer) = jwt
        .keys
        .iter()
        .find_map(|key| Some((key.algorithms.first()?, key.secret()?, key.issuer.first())))
        .ok_or(MintError::NoSecret)?;
    let mut all = standard_claims(jwt, issuer, subject, lifetime);
    all.extend(claims);
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    jsonwebtoken::encode(&Header::new(*algorithm), &all, &key).map_err(MintError::Unsigned)
}

fn standard_claims(
    jwt: &Jwt,
    issuer: Option<&String>,
    subject: &str,
    lifetime: Duration,
) -> Map<String, Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    let mut claims = Map::new();
    claims.insert("iat".to_owned(), now.into());
    claims.insert(
        "exp".to_owned(),
        now.saturating_add(lifetime.as_secs()).into(),
    );
    let first = [("iss", issuer), ("aud", jwt.audience.first())];
    for (name, value) in first {
        if let Some(value) = value {
            claims.insert(name.to_owned(), value.as_str().into());
        }
    }
    claims.extend(jwt.require.clone());
    claims.insert(jwt.subject_claim.clone(), subject.into());
    claims
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::TokenFault;
    use super::super::tests::{at_once, jwt, jwt_with_hmac};
    use super::super::verify::{Verified, Verifier};
    use super::*;
    use crate::metrics::Metrics;

    const HOUR: Duration = Duration::from_secs(3600);

    fn verified(jwt: &Jwt, claims: &Value) -> Result<Verified, TokenFault> {
        let claims = claims.as_object().unwrap().clone();
        let token = mint(jwt, "alice", HOUR, claims).unwrap();
        let verifier = Verifier::new(jwt, &Metrics::new());
        at_once(verifier.verify(&token))
    }

    #[test]
    fn the_config_accepts_what_it_mints() {
        let mut jwt = jwt();
        let minted = verified(&jwt, &json!({"role": "admin"})).unwrap();
        assert_eq!(minted.subject.as_deref(), Some("alice"));
        assert_eq!(minted.claims["role"], "admin");
        assert_eq!(minted.claims["aud"], "relay");

        jwt.subject_claim = "user_id".to_owned();
        jwt.keys.iter_mut().for_each(|key| key.issuer.clear());
        jwt.audience.clear();
        jwt.require.clear();
        let minted = verified(&jwt, &json!({})).unwrap();
        assert_eq!(minted.subject.as_deref(), Some("alice"));
        assert!(!minted.claims.contains_key("iss"));
    }

    #[test]
    fn what_is_asked_for_wins() {
        let refused = |claims: Value| verified(&jwt_with_hmac(), &claims).err();
        assert_eq!(refused(json!({"exp": 1})), Some(TokenFault::Expired));
        assert_eq!(refused(json!({"iss": "x"})), Some(TokenFault::Issuer));
        assert_eq!(refused(json!({"type": "x"})), Some(TokenFault::Claim));
        assert_eq!(refused(json!({"sub": "bob"})), None);
    }

    #[test]
    fn public_keys_can_not_sign() {
        let mut jwt = jwt();
        jwt.keys.retain(|key| key.secret().is_none());
        assert!(!jwt.keys.is_empty());
        let minted = mint(&jwt, "alice", HOUR, Map::new());
        assert_eq!(minted, Err(MintError::NoSecret));
    }
}
