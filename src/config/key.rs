//! `[[auth.key]]`.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use toml::Spanned;

use super::ConfigError;
use super::interpolate::{read_file, whole_file};
use super::source::Source;
use super::value::{Wrong, one_of};
use super::written;
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

/// Of RSA keys as PKCS#1 with 2048 to 8192 bits: the modulus, up to 5 bytes of exponent, headers.
const RSA_DER_BYTES: RangeInclusive<usize> = 268..=1042;

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
        (Some(written), None) => source.parse_hidden(written, |text| {
            VerificationKey::secret(text, &algorithms, whole_file(written.get_ref()))
        }),
        (None, Some(written)) => source.parse_hidden(written, |text| {
            VerificationKey::public(text, &algorithms, whole_file(written.get_ref()))
        }),
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

impl VerificationKey {
    /// The same key with what its file holds now; `None` if it is not from a file.
    pub fn read_again(&self) -> Option<Result<Self, ConfigError>> {
        let file = self.file.as_deref()?;
        let shown = file.display().to_string();
        let build = match self.secret {
            Some(_) => Self::secret,
            None => Self::public,
        };
        Some(match read_file(file) {
            Ok(text) => build(&text, &self.algorithms, self.file.clone())
                .map_err(|wrong| ConfigError::of_file(&shown, wrong)),
            Err(error) => Err(ConfigError::unreadable(&shown, &error)),
        })
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
            algorithms: algorithms.to_owned(),
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
            algorithms: algorithms.to_owned(),
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
    let (verification, expected): (&'static dyn VerificationAlgorithm, _) = match algorithm {
        Algorithm::ES256 => (
            &signature::ECDSA_P256_SHA256_FIXED,
            "a key on the curve P-256",
        ),
        Algorithm::ES384 => (
            &signature::ECDSA_P384_SHA384_FIXED,
            "a key on the curve P-384",
        ),
        Algorithm::EdDSA => (&signature::ED25519, "an Ed25519 key"),
        rsa if rsa.family() == AlgorithmFamily::Rsa => (
            // All of them take the same keys.
            &signature::RSA_PKCS1_2048_8192_SHA256,
            "an RSA key of 2048 to 8192 bits",
        ),
        other => {
            return Err(Wrong::new(format!(
                "a public key never verifies {other:?}; expected `secret`, or no HS algorithm"
            )));
        }
    };
    let fits = |der: &[u8]| {
        // Whether its size is allowed is looked at only when it verifies.
        let size_fits = key.family() != AlgorithmFamily::Rsa || RSA_DER_BYTES.contains(&der.len());
        size_fits && ParsedPublicKey::new(verification, der).is_ok()
    };
    if key.family() == algorithm.family() && key.try_get_as_bytes().is_ok_and(fits) {
        return Ok(());
    }
    Err(Wrong::new(format!(
        "does not fit {algorithm:?}; expected {expected}"
    )))
}
