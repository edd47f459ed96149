//! Keys and claims: whether a key of the config has signed a token, and for us, and for now.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
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
    /// the first of these is told: size, form, `crit`, algorithm, signature, types, `exp` and
    /// `nbf`, issuer, audience, `require`.
    pub(super) fn verify(&self, token: &str) -> Result<Verified, TokenFault> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenFault::TooLarge);
        }
        let algorithm = algorithm(token)?;
        let claims = self.decode(token, algorithm)?;
        self.check(&claims)?;
        let exp = claims.get("exp").and_then(numeric_date);
        let exp = exp.ok_or(TokenFault::ExpMissing)?;
        let at = |time| (self.expiry == Expiry::Close).then(|| instant(time))?;
        Ok(Verified {
            subject: self.subject(&claims)?,
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
            match jsonwebtoken::decode::<WellTyped>(token, &key.decoding, &key.validation) {
                Ok(data) => return Ok(data.claims.0),
                Err(error) => fault = fault_of(error.kind()),
            }
            if fault != TokenFault::Signature {
                break;
            }
        }
        Err(fault)
    }

    /// What jsonwebtoken lets pass: an absent issuer or audience. And the claims of `require`.
    fn check(&self, claims: &Map<String, Value>) -> Result<(), TokenFault> {
        if self.checks_issuer && !claims.contains_key("iss") {
            return Err(TokenFault::Issuer);
        }
        if self.checks_audience && !claims.contains_key("aud") {
            return Err(TokenFault::Audience);
        }
        let as_required = |(name, value): (&String, &Value)| claims.get(name) == Some(value);
        if !self.require.iter().all(as_required) {
            return Err(TokenFault::Claim);
        }
        Ok(())
    }

    fn subject(&self, claims: &Map<String, Value>) -> Result<Option<String>, TokenFault> {
        let claim = claims.get(&self.subject_claim);
        claim
            .map(|value| identity(value).ok_or(TokenFault::ClaimType))
            .transpose()
    }
}

impl Key {
    fn new(key: &VerificationKey, jwt: &Jwt) -> Self {
        let mut validation = Validation::default();
        validation.algorithms.clone_from(&key.algorithms);
        validation.leeway = jwt.leeway.as_secs();
        validation.validate_nbf = true;
        // Of several that are absent an arbitrary one would be told: `check` sees to the others.
        validation.set_required_spec_claims(&["exp"]);
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
    let name = name.ok_or(TokenFault::Malformed)?;
    let algorithm = name.parse().map_err(|_| TokenFault::Algorithm)?;
    // The rest of the header, so that a wrong type that is found later is one of a claim.
    jsonwebtoken::decode_header(token).map_err(|_| TokenFault::Malformed)?;
    Ok(algorithm)
}

fn fault_of(kind: &ErrorKind) -> TokenFault {
    match kind {
        ErrorKind::ExpiredSignature => TokenFault::Expired,
        ErrorKind::ImmatureSignature => TokenFault::NotYetValid,
        ErrorKind::InvalidIssuer => TokenFault::Issuer,
        ErrorKind::InvalidAudience => TokenFault::Audience,
        ErrorKind::MissingRequiredClaim(_) => TokenFault::ExpMissing,
        ErrorKind::InvalidClaimFormat(_) => TokenFault::ClaimType,
        ErrorKind::Json(error) if error.is_data() => TokenFault::ClaimType,
        ErrorKind::InvalidToken
        | ErrorKind::Base64(_)
        | ErrorKind::Json(_)
        | ErrorKind::Utf8(_) => TokenFault::Malformed,
        // A wrong signature, or a key that can't verify any: the next key may.
        _ => TokenFault::Signature,
    }
}

/// Claims of which those that RFC 7519 section 4.1 registers are of the right type, where they
/// are present. jsonwebtoken takes a claim of the wrong type for an absent one, or for no JSON.
struct WellTyped(Map<String, Value>);

impl<'de> Deserialize<'de> for WellTyped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let claims = Map::deserialize(deserializer)?;
        let is = |name: &str, fits: fn(&Value) -> bool| claims.get(name).is_none_or(fits);
        let well_typed = is("exp", |value| numeric_date(value).is_some())
            && is("nbf", |value| numeric_date(value).is_some())
            && is("iss", Value::is_string)
            && is("aud", is_audience)
            && is("sub", |value| identity(value).is_some());
        if !well_typed {
            return Err(D::Error::custom("a registered claim of the wrong type"));
        }
        Ok(Self(claims))
    }
}

/// Seconds from the Unix epoch, perhaps with a fraction (RFC 7519 section 2).
fn numeric_date(value: &Value) -> Option<Duration> {
    if let Some(seconds) = value.as_u64() {
        return Some(Duration::from_secs(seconds));
    }
    // Fails for what is before the epoch, or after the end of u64.
    Duration::try_from_secs_f64(value.as_f64()?).ok()
}

fn is_audience(value: &Value) -> bool {
    let several = value.as_array();
    value.is_string() || several.is_some_and(|values| values.iter().all(Value::is_string))
}

/// Who somebody is: a string (RFC 7519 section 4.1.2), or an integer, which many issuers use.
fn identity(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            None
        }
    }
}

/// A time from the Unix epoch on the clock that timers use; now if it is past. `None` is later
/// than that clock can say, so never.
fn instant(time: Duration) -> Option<Instant> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Instant::now().checked_add(time.saturating_sub(now.unwrap_or_default()))
}
