//! What the config wants of a token's header and claims.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::TokenFault;
use crate::config::{Jwt, media_type};

/// What must be true of the claims of a token whose signature is right.
///
/// It is stricter than jsonwebtoken, which takes a claim of the wrong type for an absent one,
/// and an absent issuer or audience for a right one.
pub(super) struct Rules {
    typ: Vec<String>,
    /// For each key, in the order of the config.
    issuers: Vec<Vec<String>>,
    audience: Vec<String>,
    require: BTreeMap<String, Value>,
    subject_claim: String,
    leeway: Duration,
}

/// The claims of a token.
pub(super) type Claims = Map<String, Value>;

/// One rule, and whether it is kept.
pub(super) type Ruling = (&'static str, Result<(), TokenFault>);

impl Rules {
    pub(super) fn new(jwt: &Jwt) -> Self {
        Self {
            typ: jwt.typ.clone(),
            issuers: jwt.keys.iter().map(|key| key.issuer.clone()).collect(),
            audience: jwt.audience.clone(),
            require: jwt.require.clone(),
            subject_claim: jwt.subject_claim.clone(),
            leeway: jwt.leeway,
        }
    }

    /// Whether this is a kind of token that is wanted (RFC 8725 section 3.11).
    pub(super) fn check_typ(&self, typ: Option<&str>) -> Result<(), TokenFault> {
        let is_wanted = |typ: &str| self.typ.contains(&media_type(typ));
        when(
            self.typ.is_empty() || typ.is_some_and(is_wanted),
            TokenFault::Typ,
        )
    }

    /// Every rule in its order: the first that is broken is the one to tell. `key` is the place
    /// of the key that has signed them.
    pub(super) fn judge(&self, claims: &Claims, key: usize) -> [Ruling; 7] {
        [
            ("types", self.check_types(claims)),
            ("exp", self.check_exp(claims)),
            ("nbf", self.check_nbf(claims)),
            ("iss", self.check_issuer(claims, key)),
            ("aud", self.check_audience(claims)),
            ("require", self.check_required(claims)),
            ("subject", self.subject(claims).map(|_| ())),
        ]
    }

    /// Claims that are known (RFC 7519 section 4.1) must be of their type where they are present.
    fn check_types(&self, claims: &Claims) -> Result<(), TokenFault> {
        let is = |name: &str, fits: fn(&Value) -> bool| claims.get(name).is_none_or(fits);
        let is_date = |value: &Value| numeric_date(value).is_some();
        let well_typed = is("exp", is_date)
            && is("nbf", is_date)
            && is("iat", is_date)
            && is("iss", Value::is_string)
            && is("aud", is_audience)
            && is("jti", Value::is_string)
            && is("sub", |value| identity(value).is_some());
        when(well_typed, TokenFault::ClaimType)
    }

    fn check_exp(&self, claims: &Claims) -> Result<(), TokenFault> {
        let exp = expiry(claims).ok_or(TokenFault::ExpMissing)?;
        when(exp.saturating_add(self.leeway) > now(), TokenFault::Expired)
    }

    fn check_nbf(&self, claims: &Claims) -> Result<(), TokenFault> {
        let nbf = claims.get("nbf").and_then(numeric_date);
        let latest = now().saturating_add(self.leeway);
        when(nbf.is_none_or(|nbf| nbf <= latest), TokenFault::NotYetValid)
    }

    /// Whoever has one key must not speak for the issuer of another.
    fn check_issuer(&self, claims: &Claims, key: usize) -> Result<(), TokenFault> {
        let issuer = claims.get("iss").and_then(Value::as_str);
        let issuers = &self.issuers[key];
        let is_accepted = |issuer| issuers.iter().any(|accepted| accepted == issuer);
        when(
            issuers.is_empty() || issuer.is_some_and(is_accepted),
            TokenFault::Issuer,
        )
    }

    fn check_audience(&self, claims: &Claims) -> Result<(), TokenFault> {
        let is_accepted = |value: &Value| {
            let audience = value.as_str();
            audience.is_some_and(|audience| self.audience.iter().any(|a| a == audience))
        };
        let is_for_us = match claims.get("aud") {
            Some(Value::Array(several)) => several.iter().any(is_accepted),
            Some(one) => is_accepted(one),
            None => false,
        };
        when(self.audience.is_empty() || is_for_us, TokenFault::Audience)
    }

    fn check_required(&self, claims: &Claims) -> Result<(), TokenFault> {
        let as_required = |(name, value): (&String, &Value)| claims.get(name) == Some(value);
        when(self.require.iter().all(as_required), TokenFault::Claim)
    }

    /// Who the token is for, if it says so.
    pub(super) fn subject(&self, claims: &Claims) -> Result<Option<String>, TokenFault> {
        let claim = claims.get(&self.subject_claim);
        claim
            .map(|value| identity(value).ok_or(TokenFault::ClaimType))
            .transpose()
    }
}

/// When a token ends, from the Unix epoch.
pub(super) fn expiry(claims: &Claims) -> Option<Duration> {
    claims.get("exp").and_then(numeric_date)
}

/// The time since the Unix epoch.
pub(super) fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

fn when(is_kept: bool, fault: TokenFault) -> Result<(), TokenFault> {
    is_kept.then_some(()).ok_or(fault)
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
