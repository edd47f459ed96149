//! Whether a key of the config has signed a token, and for us, and for now.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::TokenFault;
use super::keyring::{Clue, Keyring, Opened};
use super::rules::{Claims, Rules, expiry, now};
use crate::config::{Expiry, Jwt};
use crate::metrics::Metrics;

/// Larger tokens are refused before anything in them is read.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// The keys of the config, and what it demands of claims.
pub(super) struct Verifier {
    pub(super) keyring: Keyring,
    pub(super) rules: Rules,
    leeway: Duration,
    expiry: Expiry,
}

/// What a token says whose signature and claims have been checked.
#[derive(Default)]
pub(super) struct Verified {
    pub(super) claims: Claims,
    pub(super) subject: Option<String>,
    /// `exp`; absent where nothing expires.
    pub(super) token_expires_at: Option<Instant>,
    /// `exp` plus leeway; absent where nothing expires.
    pub(super) expires_at: Option<Instant>,
}

/// A token's header, as far as anybody looks at it.
pub(super) struct Header {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    pub(super) typ: Option<String>,
}

impl Verifier {
    pub(super) fn new(jwt: &Jwt, metrics: &Metrics) -> Self {
        Self {
            keyring: Keyring::new(jwt, metrics),
            rules: Rules::new(jwt),
            leeway: jwt.leeway,
            expiry: jwt.expiry,
        }
    }

    /// Checks everything that the config wants of a token. Of several things that are wrong,
    /// the first of these is told: size, form, `crit`, algorithm, `typ`, signature, types, `exp`
    /// and `nbf`, issuer, audience, `require`, subject.
    pub(super) async fn verify(&self, token: &str) -> Result<Verified, TokenFault> {
        let header = Header::read(token)?;
        self.rules.check_typ(header.typ.as_deref())?;
        let Opened { claims, key } = self.keyring.open(token, &header.clue()).await?;
        let rulings = self.rules.judge(&claims, key.index);
        rulings.into_iter().try_for_each(|(_, ruling)| ruling)?;
        self.verified(claims)
    }

    /// What claims say that keep to the rules.
    pub(super) fn verified(&self, claims: Claims) -> Result<Verified, TokenFault> {
        let exp = expiry(&claims).ok_or(TokenFault::ExpMissing)?;
        let at = |time| (self.expiry == Expiry::Close).then(|| instant(time))?;
        Ok(Verified {
            subject: self.rules.subject(&claims)?,
            token_expires_at: at(exp),
            expires_at: at(exp.saturating_add(self.leeway)),
            claims,
        })
    }
}

impl Header {
    /// Reads a header that can be understood as a whole (RFC 7515 section 4.1.11: an unknown
    /// critical extension is to be refused).
    pub(super) fn read(token: &str) -> Result<Self, TokenFault> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenFault::TooLarge);
        }
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
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenFault::Malformed)?;
        Ok(Self {
            algorithm,
            kid: header.kid,
            typ: header.typ,
        })
    }

    pub(super) fn clue(&self) -> Clue<'_> {
        Clue {
            algorithm: self.algorithm,
            kid: self.kid.as_deref(),
        }
    }
}

/// A time from the Unix epoch on the clock that timers use; now if it is past. `None` is later
/// than that clock can say, so never.
fn instant(time: Duration) -> Option<Instant> {
    Instant::now().checked_add(time.saturating_sub(now()))
}
