//! Why a request is refused, and what it is told.

use std::time::Duration;

use crate::config::template::Unusable;
use crate::protocol::outcome::{Outcome, Refusal};

/// The token may be good: whether it is will be known when a JWKS was fetched.
const KEYS_UNAVAILABLE: Refusal = Refusal::retry(
    Outcome::Overloaded,
    TokenFault::KeysUnavailable.reason(),
    Duration::from_secs(5),
);

/// Why a request is refused. Neither `Debug` nor `Display` shows a token or a claim's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The token does not say who is asking.
    #[error(transparent)]
    Token(#[from] TokenFault),
    /// The route's `authorize` said no, or could not be evaluated.
    #[error("not allowed by the route's `authorize`")]
    NotAllowed,
    /// A template needs a value that the request does not have in usable form.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

impl Rejection {
    /// What the client is told.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Token(TokenFault::KeysUnavailable) => KEYS_UNAVAILABLE,
            Self::Token(fault) => Refusal::new(Outcome::Unauthenticated, fault.reason()),
            Self::NotAllowed => Refusal::new(Outcome::Forbidden, "not_allowed"),
            Self::Unusable(Unusable::Claim(_)) => {
                Refusal::new(Outcome::Forbidden, "claim_unusable")
            }
            Self::Unusable(Unusable::Param(_)) => {
                Refusal::new(Outcome::BadRequest, "parameter_missing")
            }
        }
    }
}

macro_rules! token_faults {
    ($($name:ident = $reason:literal, $text:literal;)*) => {
        /// What is wrong with a token, or keeps it from being judged.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        pub enum TokenFault {
            $(
                #[doc = concat!("The answer to ", $text, ".")]
                #[error($text)]
                $name,
            )*
        }

        impl TokenFault {
            /// Every fault, so that each is in the metrics before it occurs.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The reason that the client is told; a metric label too.
            pub const fn reason(self) -> &'static str {
                match self {
                    $(Self::$name => $reason,)*
                }
            }
        }
    };
}

token_faults! {
    Missing = "token_missing", "a request without a token";
    TooLarge = "token_too_large", "a token of more than 8 KiB";
    Malformed = "token_malformed", "a token that is no signed JWT (RFC 7519 section 7.2)";
    Crit = "token_crit", "a `crit` header, of which no extension is understood (RFC 7515 section 4.1.11)";
    Typ = "token_typ", "a `typ` other than those configured, or none (RFC 8725 section 3.11)";
    Algorithm = "token_algorithm", "an algorithm that no configured key has (RFC 8725 section 3.1)";
    Signature = "token_signature", "a signature that no configured key has made";
    UnknownKey = "token_unknown_key", "a `kid` that no JWKS has";
    KidMissing = "token_kid_missing", "a token without `kid`, where several keys of a JWKS may have signed it";
    KeysUnavailable = "keys_unavailable", "a token whose key can't be looked for now";
    ExpMissing = "token_exp_missing", "a token without `exp`";
    Expired = "token_expired", "a token that has expired";
    NotYetValid = "token_not_yet_valid", "a token that is not valid yet (`nbf`)";
    ClaimType = "token_claim_type", "a registered claim of the wrong type (RFC 7519 section 4.1)";
    Issuer = "token_issuer", "another issuer than its key may have, or none";
    Audience = "token_audience", "another audience than those configured, or none";
    Claim = "token_claim", "a claim that is not what `require` wants";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_fault_has_its_own_reason() {
        assert!(!TokenFault::ALL.is_empty());
        let reasons: BTreeSet<_> = TokenFault::ALL.iter().map(|f| f.reason()).collect();
        assert_eq!(reasons.len(), TokenFault::ALL.len());
        let ours = |reason: &&str| reason.starts_with("token_") || *reason == "keys_unavailable";
        assert!(reasons.iter().all(ours));
    }

    #[test]
    fn rejections_have_the_outcomes_of_the_protocol() {
        let cases = [
            (
                TokenFault::Expired.into(),
                Outcome::Unauthenticated,
                "token_expired",
            ),
            (Rejection::NotAllowed, Outcome::Forbidden, "not_allowed"),
            (
                Unusable::Claim("sub".into()).into(),
                Outcome::Forbidden,
                "claim_unusable",
            ),
            (
                Unusable::Param("query.x".into()).into(),
                Outcome::BadRequest,
                "parameter_missing",
            ),
        ];
        for (rejection, outcome, reason) in cases {
            assert_eq!(rejection.refusal(), Refusal::new(outcome, reason));
        }
    }
}
