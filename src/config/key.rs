//! `[[auth.key]]`.

use std::path::PathBuf;

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use toml::Spanned;

use super::ConfigError;
use super::interpolate::whole_file;
use super::source::{Source, Span};
use super::value::{Wrong, one_of};
use super::written::{self, Text};
use crate::secret::Secret;

/// One `[[auth.key]]`: its material, and the only algorithms that it may verify.
pub struct VerificationKey {
    /// At least one, all of the family of the key.
    pub algorithms: Vec<Algorithm>,
    /// What verifies.
    pub decoding: DecodingKey,
    /// The HMAC secret, with which `relay token` can sign; absent for public keys.
    pub secret: Option<Secret>,
    /// The file that the whole value comes from (`"${file:…}"`), to be read again when it changes.
    pub file: Option<PathBuf>,
}

impl std::fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerificationKey")
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

const ALGORITHMS: [(&str, Algorithm); 12] = [
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// Shorter ones can be guessed from one token.
const SHORTEST_SECRET: usize = 32;

pub(super) fn check(
    written: &Spanned<written::Key>,
    source: &Source<'_>,
) -> Result<VerificationKey, ConfigError> {
    let key = written.get_ref();
    if let Some(url) = &key.jwks_url {
        return Err(source.error(
            &url.span(),
            "is not supported yet; expected `secret` or `public_key`",
        ));
    }
    source.not_supported_unless(key.refresh.as_ref(), "10m")?;
    source.not_supported_unless(key.cooldown.as_ref(), "30s")?;
    let algorithms = key.algorithms(source)?;
    match (&key.secret, &key.public_key) {
        (Some(secret), None) => hmac(secret, algorithms, source),
        (None, Some(public_key)) => public(public_key, algorithms, source),
        (None, None) => Err(source.missing(
            &written.span(),
            "secret",
            "is missing; expected either `secret` or `public_key`",
        )),
        (Some(_), Some(public_key)) => Err(source.error(
            &public_key.span(),
            "stands beside `secret`; expected one of them, and another [[auth.key]] for the other",
        )),
    }
}

impl written::Key {
    fn algorithms(&self, source: &Source<'_>) -> Result<Vec<Algorithm>, ConfigError> {
        let at = self.algorithms.span();
        let algorithms = source.parse_list_or(Some(&self.algorithms), &[], one_of(&ALGORITHMS))?;
        if algorithms.is_empty() {
            return Err(source.error(&at, r#"is empty; expected algorithms such as ["HS256"]"#));
        }
        for (at, algorithm) in algorithms.iter().enumerate() {
            if algorithms[..at].contains(algorithm) {
                return Err(source.error(
                    &self.algorithms.span(),
                    format!("{algorithm:?} is listed twice; expected it once"),
                ));
            }
        }
        Ok(algorithms)
    }
}

fn hmac(
    written: &Text,
    algorithms: Vec<Algorithm>,
    source: &Source<'_>,
) -> Result<VerificationKey, ConfigError> {
    let at = written.span();
    if let Some(other) = not_of(AlgorithmFamily::Hmac, &algorithms) {
        return Err(source.error(
            &at,
            format!(
                "a secret can't verify {other:?}; expected `public_key`, or HS algorithms only"
            ),
        ));
    }
    let secret = source.text(written)?;
    if secret.len() < SHORTEST_SECRET {
        return Err(source.error(
            &at,
            format!("is too short; expected at least {SHORTEST_SECRET} bytes of randomness"),
        ));
    }
    Ok(VerificationKey {
        algorithms,
        decoding: DecodingKey::from_secret(secret.as_bytes()),
        secret: Some(Secret::new(secret)),
        file: whole_file(written.get_ref()),
    })
}

fn public(
    written: &Text,
    algorithms: Vec<Algorithm>,
    source: &Source<'_>,
) -> Result<VerificationKey, ConfigError> {
    let at = written.span();
    let pem = source.text(written)?;
    let decoding = decoding_key(&pem).map_err(|wrong| source.error(&at, wrong))?;
    for algorithm in &algorithms {
        fits(&decoding, *algorithm, &at, source)?;
    }
    Ok(VerificationKey {
        algorithms,
        decoding,
        secret: None,
        file: whole_file(written.get_ref()),
    })
}

/// The kind of the key is what the PEM says it is.
fn decoding_key(pem: &str) -> Result<DecodingKey, Wrong> {
    let pem = pem.trim();
    if !pem.starts_with("-----BEGIN PUBLIC KEY-----")
        && !pem.starts_with("-----BEGIN RSA PUBLIC KEY-----")
    {
        let found = match pem {
            pem if pem.contains("PRIVATE KEY-----") => "is a private key",
            pem if pem.contains("BEGIN CERTIFICATE-----") => "is a certificate",
            _ => "is not a public key",
        };
        return Err(Wrong::new(format!(
            r#"{found}; expected PEM that begins with "-----BEGIN PUBLIC KEY-----""#
        )));
    }
    let bytes = pem.as_bytes();
    // Each takes only keys of its own kind.
    DecodingKey::from_ec_pem(bytes)
        .or_else(|_| DecodingKey::from_ed_pem(bytes))
        .or_else(|_| DecodingKey::from_rsa_pem(bytes))
        .map_err(|_| {
            Wrong::new("can't be read; expected a public key of RSA, EC or Ed25519 in PEM")
        })
}

/// Refuses a key of another kind, curve or size now, as it would refuse every token later.
fn fits(
    key: &DecodingKey,
    algorithm: Algorithm,
    at: &Span,
    source: &Source<'_>,
) -> Result<(), ConfigError> {
    let verification: &'static dyn VerificationAlgorithm = match algorithm {
        Algorithm::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
        Algorithm::ES384 => &signature::ECDSA_P384_SHA384_FIXED,
        Algorithm::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
        Algorithm::EdDSA => &signature::ED25519,
        // The HMAC ones; the crate's enum may grow.
        _ => {
            return Err(source.error(
                at,
                format!(
                    "a public key never verifies {algorithm:?}; expected `secret`, or no HS algorithm"
                ),
            ));
        }
    };
    let fits = key.family() == algorithm.family()
        && key
            .try_get_as_bytes()
            .is_ok_and(|bytes| ParsedPublicKey::new(verification, bytes).is_ok());
    if fits {
        return Ok(());
    }
    let expected = match algorithm.family() {
        AlgorithmFamily::Rsa => "an RSA key of 2048 to 8192 bits",
        AlgorithmFamily::Ec if algorithm == Algorithm::ES256 => "a key on the curve P-256",
        AlgorithmFamily::Ec => "a key on the curve P-384",
        AlgorithmFamily::Ed => "an Ed25519 key",
        AlgorithmFamily::Hmac => "a secret",
    };
    Err(source.error(
        at,
        format!("does not fit {algorithm:?}; expected {expected}"),
    ))
}

fn not_of(family: AlgorithmFamily, algorithms: &[Algorithm]) -> Option<&Algorithm> {
    algorithms
        .iter()
        .find(|algorithm| algorithm.family() != family)
}
