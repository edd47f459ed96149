//! Tokens as an API would issue them, and as an attacker would.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

/// What the base config verifies with.
pub(crate) const SECRET: &str = "an-hmac-secret-of-the-scenarios-48-bytes-in-all.";

/// Seconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("the clock is past 1970").as_secs()
}

/// A token of this subject that is valid for an hour.
pub(crate) fn token(subject: &str) -> String {
    token_with(subject, json!({}))
}

/// The same with further claims, or other ones; `null` takes a claim away.
pub(crate) fn token_with(subject: &str, claims: Value) -> String {
    signed(SECRET.as_bytes(), &claims_of(subject, claims))
}

/// A token with HS256 and this secret.
pub(crate) fn signed(secret: &[u8], claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret);
    encode(&Header::new(Algorithm::HS256), claims, &key).expect("claims can be signed")
}

pub(crate) fn claims_of(subject: &str, changes: Value) -> Value {
    let mut claims = json!({ "sub": subject, "exp": now() + 3600 });
    let Value::Object(changes) = changes else {
        panic!("claims are an object: {changes}");
    };
    for (name, value) in changes {
        claims[name] = value;
    }
    if let Value::Object(claims) = &mut claims {
        claims.retain(|_, value| !value.is_null());
    }
    claims
}

/// A token of three parts, built by hand: of any header, with any signature.
pub(crate) fn forged(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    format!(
        "{}.{}.{}",
        part(header.to_string().as_bytes()),
        part(claims.to_string().as_bytes()),
        part(signature)
    )
}

/// An RSA key pair.
pub(crate) struct RsaKey {
    pair: KeyPair,
}

impl RsaKey {
    pub(crate) fn generate() -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("an RSA key");
        Self { pair }
    }

    /// The public key as a config has it.
    pub(crate) fn public_pem(&self) -> String {
        let der: PublicKeyX509Der<'_> = self.pair.public_key().as_der().expect("an RSA key");
        pem("PUBLIC KEY", der.as_ref())
    }

    /// A token with RS256.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let der: Pkcs8V1Der<'_> = self.pair.as_der().expect("an RSA key");
        let pem = pem("PRIVATE KEY", der.as_ref());
        let key = EncodingKey::from_rsa_pem(pem.as_bytes()).expect("a PEM of our own");
        encode(&Header::new(Algorithm::RS256), claims, &key).expect("claims can be signed")
    }
}

/// DER as PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut lines: Vec<&str> = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        lines.push(line);
        rest = after;
    }
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
