//! Keys and claims: whether a key of the config has signed a token, and for us, and for now.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::TokenFault;
use crate::config::{Expiry, Jwt, VerificationKey};

/// Larger tokens are refused before anything in them is read.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// The keys of the config, and what it demands of claims.
pub(super) struct Verifier {
    keys: Vec<Key>,
    checks_issuer: bool,
    checks_audience: bool,
    require: BTreeMap<String, Value>,
    subject_claim: String,
    leeway: Duration,
    expiry: Expiry,
}

/// A key with the only algorithms that it may verify (RFC 8725 section 3.1). One `Validation`
/// per key, since jsonwebtoken wants all algorithms of one to be of the key's family.
struct Key {
    decoding: DecodingKey,
    validation: Validation,
}

/// What a token says whose signature and claims have been checked.
#[derive(Default)]
pub(super) struct Verified {
    pub(super) claims: Map<String, Value>,
    pub(super) subject: Option<String>,
    /// `exp`; absent where nothing expires.
    pub(super) token_expires_at: Option<Instant>,
    /// `exp` plus leeway; absent where nothing expires.
    pub(super) expires_at: Option<Instant>,
}

impl Verifier {
    pub(super) fn new(jwt: &Jwt) -> Self {
        let keys: Vec<Key> = jwt.keys.iter().map(|key| Key::new(key, jwt)).collect();
        for key in &keys {
            key.rehearse();
        }
        Self {
            keys,
            checks_issuer: !jwt.issuer.is_empty(),
            checks_audience: !jwt.audience.is_empty(),
            require: jwt.require.clone(),
            subject_claim: jwt.subject_claim.clone(),
            leeway: jwt.leeway,
            expiry: jwt.expiry,
        }
    }

    /// Checks everything that the config wants of a token. Of several things that are wrong,
    /// the first of these is told: size, form, `crit`, algorithm, signature, `exp` and `nbf`,
    /// issuer, audience, types, `require`.
    pub(super) fn verify(&self, token: &str) -> Result<Verified, TokenFault> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenFault::TooLarge);
        }
        let algorithm = algorithm(token)?;
        let claims = self.decode(token, algorithm)?;
        self.check(&claims)?;
        let exp = expires(&claims)?;
        let at = |time| (self.expiry == Expiry::Close).then(|| instant(time))?;
        Ok(Verified {
            subject: subject(&claims, &self.subject_claim)?,
            token_expires_at: at(exp),
            expires_at: at(exp.saturating_add(self.leeway)),
            claims,
        })
    }

    /// Tries the keys that have this algorithm. All keys want the same of claims, so the first
    /// that has signed the token decides: "expired" is never hidden by another key's
    /// "not my signature".
    fn decode(&self, token: &str, algorithm: Algorithm) -> Result<Map<String, Value>, TokenFault> {
        let fitting = |key: &&Key| key.validation.algorithms.contains(&algorithm);
        let mut fault = TokenFault::Algorithm;
        for key in self.keys.iter().filter(fitting) {
            match jsonwebtoken::decode(token, &key.decoding, &key.validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) => fault = fault_of(error.kind()),
            }
            if fault != TokenFault::Signature {
                break;
            }
        }
        Err(fault)
    }

    /// What jsonwebtoken lets pass: registered claims that are absent or of the wrong type,
    /// and the claims of `require`.
    fn check(&self, claims: &Map<String, Value>) -> Result<(), TokenFault> {
        match claims.get("iss") {
            None if self.checks_issuer => return Err(TokenFault::Issuer),
            None | Some(Value::String(_)) => {}
            Some(_) => return Err(TokenFault::ClaimType),
        }
        match claims.get("aud") {
            None if self.checks_audience => return Err(TokenFault::Audience),
            None | Some(Value::String(_)) => {}
            Some(Value::Array(values)) if values.iter().all(Value::is_string) => {}
            Some(_) => return Err(TokenFault::ClaimType),
        }
        subject(claims, "sub")?;
        let as_required = |(name, value): (&String, &Value)| claims.get(name) == Some(value);
        if !self.require.iter().all(as_required) {
            return Err(TokenFault::Claim);
        }
        Ok(())
    }
}

impl Key {
    fn new(key: &VerificationKey, jwt: &Jwt) -> Self {
        let mut validation = Validation::default();
        validation.algorithms.clone_from(&key.algorithms);
        validation.leeway = jwt.leeway.as_secs();
        validation.validate_nbf = true;
        // An absent `exp` is found by `expires`: here it would be told from one of the wrong
        // type no longer.
        validation.required_spec_claims = HashSet::new();
        if !jwt.issuer.is_empty() {
            validation.set_issuer(&jwt.issuer);
        }
        validation.validate_aud = !jwt.audience.is_empty();
        validation.set_audience(&jwt.audience);
        Self {
            decoding: key.decoding.clone(),
            validation,
        }
    }

    /// Uses the key once. jsonwebtoken panics at its first use where the build has no provider
    /// of cryptography, or two: that must be when the relay starts, not when a client comes.
    fn rehearse(&self) {
        for &algorithm in &self.validation.algorithms {
            let verified = jsonwebtoken::crypto::verify("", b"", &self.decoding, algorithm);
            debug_assert!(!verified.unwrap_or(false), "an empty signature fits no key");
        }
    }
}

/// The algorithm of the token's header, if the header is one that can be understood as a
/// whole (RFC 7515 section 4.1.11: an unknown critical extension is to be refused).
fn algorithm(token: &str) -> Result<Algorithm, TokenFault> {
    let mut parts = token.split('.');
    let (Some(header), Some(_), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenFault::Malformed);
    };
    let json = URL_SAFE_NO_PAD
        .decode(header)
        .map_err(|_| TokenFault::Malformed)?;
    let header: Map<String, Value> =
        serde_json::from_slice(&json).map_err(|_| TokenFault::Malformed)?;
    if header.contains_key("crit") {
        return Err(TokenFault::Crit);
    }
    let name = header.get("alg").and_then(Value::as_str);
    name.ok_or(TokenFault::Malformed)?
        .parse()
        .map_err(|_| TokenFault::Algorithm)
}

fn fault_of(kind: &ErrorKind) -> TokenFault {
    match kind {
        ErrorKind::ExpiredSignature => TokenFault::Expired,
        ErrorKind::ImmatureSignature => TokenFault::NotYetValid,
        ErrorKind::InvalidIssuer => TokenFault::Issuer,
        ErrorKind::InvalidAudience => TokenFault::Audience,
        ErrorKind::InvalidClaimFormat(_) => TokenFault::ClaimType,
        ErrorKind::InvalidToken
        | ErrorKind::Base64(_)
        | ErrorKind::Json(_)
        | ErrorKind::Utf8(_) => TokenFault::Malformed,
        // A wrong signature, or a key that can't verify any: the next key may.
        _ => TokenFault::Signature,
    }
}

/// A claim that says who somebody is: a string (RFC 7519 section 4.1.2), or an integer, which
/// many issuers use.
fn subject(claims: &Map<String, Value>, name: &str) -> Result<Option<String>, TokenFault> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) if !number.is_f64() => Ok(Some(number.to_string())),
        Some(_) => Err(TokenFault::ClaimType),
    }
}

/// `exp` from the Unix epoch. It may have a fraction (RFC 7519 section 2).
fn expires(claims: &Map<String, Value>) -> Result<Duration, TokenFault> {
    let exp = claims.get("exp").ok_or(TokenFault::ExpMissing)?;
    if let Some(seconds) = exp.as_u64() {
        return Ok(Duration::from_secs(seconds));
    }
    let seconds = exp.as_f64().ok_or(TokenFault::ClaimType)?;
    Duration::try_from_secs_f64(seconds).map_err(|_| TokenFault::ClaimType)
}

/// A time from the Unix epoch on the clock that timers use; now if it is past. `None` is later
/// than that clock can say, so never.
fn instant(time: Duration) -> Option<Instant> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Instant::now().checked_add(time.saturating_sub(now.unwrap_or_default()))
}
