//! `[[auth.key]]`.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};
use toml::Spanned;

use super::interpolate::{whole_file, without_newline};
use super::jwks::Jwks;
use super::source::Source;
use super::value::{Wrong, not_empty, one_of};
use super::{ConfigError, written};
use crate::secret::Secret;

/// One `[[auth.key]]`: what verifies, and the only algorithms that it may verify.
#[derive(Debug)]
pub struct VerificationKey {
    /// At least one; all of the family of the key, or public ones for a JWKS.
    pub algorithms: Vec<Algorithm>,
    /// Accepted values of `iss` in what it has signed: its own, or else those of `auth.issuer`.
    /// Empty: not checked.
    pub issuer: Vec<String>,
    /// Where its material comes from.
    pub origin: KeyOrigin,
}

/// Where the material of an `[[auth.key]]` comes from.
#[derive(Debug)]
pub enum KeyOrigin {
    /// The config, or a file that it names.
    Fixed(FixedKey),
    /// A set that is fetched.
    Jwks(Jwks),
}

/// A secret or a public key.
#[derive(Clone)]
pub struct FixedKey {
    /// What verifies.
    pub decoding: DecodingKey,
    /// The HMAC secret, with which `relay token` can sign; absent for public keys.
    pub secret: Option<Secret>,
    /// The file that the whole value comes from (`"${file:…}"`), to be read again when it changes.
    pub file: Option<PathBuf>,
}

impl PartialEq for FixedKey {
    fn eq(&self, other: &Self) -> bool {
        use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        match (self.decoding.kind(), other.decoding.kind()) {
            (SecretOrDer(one), SecretOrDer(two)) => one == two,
            (RsaModulusExponent { n, e }, RsaModulusExponent { n: n2, e: e2 }) => {
                (n, e) == (n2, e2)
            }
            (SecretOrDer(_), RsaModulusExponent { .. })
            | (RsaModulusExponent { .. }, SecretOrDer(_)) => false,
        }
    }
}

impl std::fmt::Debug for FixedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FixedKey").finish_non_exhaustive()
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

/// Of RSA keys as PKCS#1 with 2048 to 8192 bits: the modulus, up to 5 bytes of exponent, headers.
const RSA_DER_BYTES: RangeInclusive<usize> = 268..=1042;

const RSA_MODULUS_BYTES: RangeInclusive<usize> = 256..=1024;

pub(super) fn check(
    written: &Spanned<written::Key>,
    all_issuers: &[String],
    source: &Source<'_>,
) -> Result<VerificationKey, ConfigError> {
    let key = written.get_ref();
    let algorithms = key.algorithms(source)?;
    let mut issuer = source.parse_list_or(key.issuer.as_ref(), &[], not_empty)?;
    if issuer.is_empty() {
        issuer = all_issuers.to_owned();
    }
    let material = [&key.secret, &key.public_key, &key.jwks_url];
    if let [_, second, ..] = material.into_iter().flatten().collect::<Vec<_>>()[..] {
        return Err(source.error(
            &second.span(),
            "stands beside another key; expected one of `secret`, `public_key` and `jwks_url`, and another [[auth.key]] for the other",
        ));
    }
    if let Some(url) = &key.jwks_url {
        let jwks = key.jwks(url, &algorithms, source)?;
        return Ok(VerificationKey {
            algorithms,
            issuer,
            origin: KeyOrigin::Jwks(jwks),
        });
    }
    key.refuse_what_is_of_jwks(source)?;
    let (text, build): (_, Build) = match (&key.secret, &key.public_key) {
        (Some(secret), _) => (secret, FixedKey::secret),
        (None, Some(public_key)) => (public_key, FixedKey::public),
        (None, None) => {
            return Err(source.missing(
                &written.span(),
                "secret",
                "is missing; expected one of `secret`, `public_key` and `jwks_url`",
            ));
        }
    };
    let fixed = source.parse_hidden(text, |value| {
        build(value, &algorithms, whole_file(text.get_ref()))
    })?;
    Ok(VerificationKey {
        algorithms,
        issuer,
        origin: KeyOrigin::Fixed(fixed),
    })
}

/// What makes a key of a text.
type Build = fn(&str, &[Algorithm], Option<PathBuf>) -> Result<FixedKey, Wrong>;

impl VerificationKey {
    /// The HMAC secret, if it is one.
    pub fn secret(&self) -> Option<&Secret> {
        match &self.origin {
            KeyOrigin::Fixed(fixed) => fixed.secret.as_ref(),
            KeyOrigin::Jwks(_) => None,
        }
    }
}

impl FixedKey {
    /// The key that `file` holds now; this one if it is not from a file.
    ///
    /// # Errors
    /// The file can't be read, or holds no key that fits the algorithms.
    pub async fn read_again(&self, algorithms: &[Algorithm]) -> Result<Self, ConfigError> {
        let Some(file) = &self.file else {
            return Ok(self.clone());
        };
        let shown = file.display().to_string();
        let content = tokio::fs::read_to_string(file).await;
        let content = content.map_err(|error| ConfigError::unreadable(&shown, &error))?;
        let build: Build = match self.secret {
            Some(_) => Self::secret,
            None => Self::public,
        };
        build(without_newline(&content), algorithms, self.file.clone())
            .map_err(|wrong| ConfigError::of_file(&shown, wrong))
    }

    fn secret(text: &str, algorithms: &[Algorithm], file: Option<PathBuf>) -> Result<Self, Wrong> {
        let is_other = |algorithm: &&Algorithm| algorithm.family() != AlgorithmFamily::Hmac;
        if let Some(other) = algorithms.iter().find(is_other) {
            return Err(Wrong::new(format!(
                "a secret can't verify {other:?}; expected `public_key`, or HS algorithms only"
            )));
        }
        if text.len() < SHORTEST_SECRET {
            return Err(Wrong::new(format!(
                "is too short; expected at least {SHORTEST_SECRET} bytes of randomness"
            )));
        }
        Ok(Self {
            decoding: DecodingKey::from_secret(text.as_bytes()),
            secret: Some(Secret::new(text)),
            file,
        })
    }

    fn public(pem: &str, algorithms: &[Algorithm], file: Option<PathBuf>) -> Result<Self, Wrong> {
        let decoding = decoding_key(pem)?;
        for algorithm in algorithms {
            refuse_misfit(&decoding, *algorithm)?;
        }
        Ok(Self {
            decoding,
            secret: None,
            file,
        })
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
fn refuse_misfit(key: &DecodingKey, algorithm: Algorithm) -> Result<(), Wrong> {
    if fits(key, algorithm) {
        return Ok(());
    }
    let expected = match (algorithm, algorithm.family()) {
        (_, AlgorithmFamily::Hmac) => {
            return Err(Wrong::new(format!(
                "a public key never verifies {algorithm:?}; expected `secret`, or no HS algorithm"
            )));
        }
        (_, AlgorithmFamily::Rsa) => "an RSA key of 2048 to 8192 bits",
        (Algorithm::ES384, _) => "a key on the curve P-384",
        (_, AlgorithmFamily::Ec) => "a key on the curve P-256",
        (_, AlgorithmFamily::Ed) => "an Ed25519 key",
    };
    Err(Wrong::new(format!(
        "does not fit {algorithm:?}; expected {expected}"
    )))
}

/// Whether a public key is of the kind, curve and size that the algorithm needs.
pub fn fits(key: &DecodingKey, algorithm: Algorithm) -> bool {
    let verification: &'static dyn VerificationAlgorithm = match (algorithm, algorithm.family()) {
        (_, AlgorithmFamily::Hmac) => return false,
        // All of them take the same keys.
        (_, AlgorithmFamily::Rsa) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (Algorithm::ES384, _) => &signature::ECDSA_P384_SHA384_FIXED,
        (_, AlgorithmFamily::Ec) => &signature::ECDSA_P256_SHA256_FIXED,
        (_, AlgorithmFamily::Ed) => &signature::ED25519,
    };
    if key.family() != algorithm.family() {
        return false;
    }
    match key.kind() {
        DecodingKeyKind::SecretOrDer(der) => {
            // Whether its size is allowed is looked at only when it verifies.
            let size_fits =
                key.family() != AlgorithmFamily::Rsa || RSA_DER_BYTES.contains(&der.len());
            size_fits && ParsedPublicKey::new(verification, der).is_ok()
        }
        DecodingKeyKind::RsaModulusExponent { n, e } => is_rsa_key(n, e),
    }
}

/// 2048 to 8192 bits; of the exponents, those that aws-lc takes.
fn is_rsa_key(n: &[u8], e: &[u8]) -> bool {
    let modulus = significant(n);
    let is_modulus = match modulus.len() {
        256 => modulus[0] >= 0x80,
        length => RSA_MODULUS_BYTES.contains(&length),
    };
    let exponent = significant(e);
    let is_odd = exponent.last().is_some_and(|last| last % 2 == 1);
    is_modulus && is_odd && exponent.len() <= 5 && exponent != [1]
}

/// Without leading zeros.
fn significant(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}
