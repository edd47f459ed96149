//! One key, and what it may verify.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::TokenFault;

/// A key with the only algorithms that it may verify (RFC 8725 section 3.1).
pub(super) struct Key {
    decoding: DecodingKey,
    algorithms: Vec<Algorithm>,
}

impl Key {
    /// Uses the key once. jsonwebtoken panics at its first use where the build has no provider
    /// of cryptography, or two: that must be when the relay starts, not when a client comes.
    pub(super) fn new(decoding: DecodingKey, algorithms: &[Algorithm]) -> Self {
        for &algorithm in algorithms {
            let verified = jsonwebtoken::crypto::verify("", b"", &decoding, algorithm);
            debug_assert!(!verified.unwrap_or(false), "an empty signature fits no key");
        }
        Self {
            decoding,
            algorithms: algorithms.to_owned(),
        }
    }

    pub(super) fn verifies(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// The claims of a token that this key has signed with this algorithm.
    ///
    /// The library's `decode` would judge the claims too, and take more for right than the rules
    /// do: it is asked for the signature alone.
    ///
    /// # Errors
    /// `Signature` if it has not: another key may have.
    pub(super) fn open(
        &self,
        token: &str,
        algorithm: Algorithm,
    ) -> Result<Map<String, Value>, TokenFault> {
        if !self.verifies(algorithm) {
            return Err(TokenFault::Signature);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
        let (_, payload) = message.split_once('.').ok_or(TokenFault::Malformed)?;
        let bytes = message.as_bytes();
        match jsonwebtoken::crypto::verify(signature, bytes, &self.decoding, algorithm) {
            Ok(true) => claims(payload),
            Err(error) if matches!(error.kind(), ErrorKind::Base64(_)) => {
                Err(TokenFault::Malformed)
            }
            // Wrong, or the key can't verify any.
            Ok(false) | Err(_) => Err(TokenFault::Signature),
        }
    }
}

fn claims(payload: &str) -> Result<Map<String, Value>, TokenFault> {
    let json = URL_SAFE_NO_PAD.decode(payload);
    let json = json.map_err(|_| TokenFault::Malformed)?;
    match serde_json::from_slice::<Payload>(&json) {
        Ok(Payload(claims)) => Ok(claims),
        Err(error) if error.is_data() => Err(TokenFault::ClaimType),
        Err(_) => Err(TokenFault::Malformed),
    }
}

/// An object of claims, each there once: of two, one reader would take the first and another
/// the last (RFC 7519 section 4).
struct Payload(Map<String, Value>);

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Claims;

        impl<'de> Visitor<'de> for Claims {
            type Value = Payload;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of claims")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Payload, A::Error> {
                let mut claims = Map::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if claims.insert(name, value).is_some() {
                        return Err(A::Error::custom("a claim that is there twice"));
                    }
                }
                Ok(Payload(claims))
            }
        }

        deserializer.deserialize_map(Claims)
    }
}
