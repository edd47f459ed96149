//! What of a JWKS can verify tokens (RFC 7517).

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde_json::Value;

use super::super::key::Key;
use crate::config::fits;

/// The keys of a set that the config's algorithms can use.
pub(super) struct KeySet {
    all: Vec<Arc<SetKey>>,
    by_kid: HashMap<String, Vec<Arc<SetKey>>>,
    /// Of the usable keys, so that a change can be told.
    digests: HashSet<u64>,
    /// Members that can't be used.
    pub(super) skipped: usize,
}

/// A key of a set.
pub(in super::super) struct SetKey {
    pub(in super::super) kid: Option<String>,
    pub(in super::super) key: Key,
}

/// What a set has for a token.
pub(super) enum Fitting<'a> {
    /// Of several with one kid, any may have signed it.
    Keys(&'a [Arc<SetKey>]),
    /// No key has its kid.
    UnknownKid,
    /// It has no kid, and there is no key or more than one that could have signed it.
    Unnamed { candidates: usize },
}

impl KeySet {
    /// Reads a set, and leaves out what can't be used. `None` if it is no set at all.
    pub(super) fn read(body: &[u8], algorithms: &[Algorithm]) -> Option<Self> {
        let mut set: Value = serde_json::from_slice(body).ok()?;
        let Some(Value::Array(members)) = set.get_mut("keys").map(Value::take) else {
            return None;
        };
        let mut read = Self {
            all: Vec::new(),
            by_kid: HashMap::new(),
            digests: HashSet::new(),
            skipped: 0,
        };
        for member in members {
            match usable(&member, algorithms) {
                Some(key) => read.add(key, &member),
                None => read.skipped += 1,
            }
        }
        Some(read)
    }

    fn add(&mut self, key: SetKey, member: &Value) {
        let mut hasher = DefaultHasher::new();
        member.to_string().hash(&mut hasher);
        // The same key twice would leave a token without kid undecided.
        if !self.digests.insert(hasher.finish()) {
            return;
        }
        let key = Arc::new(key);
        if let Some(kid) = &key.kid {
            let same = self.by_kid.entry(kid.clone()).or_default();
            same.push(key.clone());
        }
        self.all.push(key);
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many keys have come and gone since `before`.
    pub(super) fn changes(&self, before: Option<&Self>) -> (usize, usize) {
        let none = HashSet::new();
        let before = before.map_or(&none, |before| &before.digests);
        let added = self.digests.difference(before).count();
        let removed = before.difference(&self.digests).count();
        (added, removed)
    }

    /// The keys that may have signed a token of this algorithm. A token without a kid is tried
    /// only where no choice is left.
    pub(super) fn fitting(&self, kid: Option<&str>, algorithm: Algorithm) -> Fitting<'_> {
        if let Some(kid) = kid {
            let named = self.by_kid.get(kid);
            return named.map_or(Fitting::UnknownKid, |keys| Fitting::Keys(keys));
        }
        let mut fitting = self
            .all
            .iter()
            .enumerate()
            .filter(|(_, key)| key.key.verifies(algorithm));
        match (fitting.next(), fitting.count()) {
            (Some((at, _)), 0) => Fitting::Keys(&self.all[at..=at]),
            (first, others) => Fitting::Unnamed {
                candidates: usize::from(first.is_some()) + others,
            },
        }
    }
}

/// The key of a member with the algorithms that it may verify, if it has any. The library takes
/// keys for encryption, and curves that it can't verify with.
fn usable(member: &Value, algorithms: &[Algorithm]) -> Option<SetKey> {
    // Whoever reads the set can sign with a private key in it: such a signature says nothing.
    if member.get("d").is_some() {
        return None;
    }
    let jwk: Jwk = serde_json::from_value(member.clone()).ok()?;
    let common = &jwk.common;
    let is_for_signatures = common
        .public_key_use
        .as_ref()
        .is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
    let may_verify = common
        .key_operations
        .as_ref()
        .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    if !is_for_signatures || !may_verify {
        return None;
    }
    let named = match member.get("alg") {
        None => None,
        // RSA-OAEP and its like are no algorithms of signatures.
        Some(name) => Some(name.as_str()?.parse::<Algorithm>().ok()?),
    };
    let decoding = DecodingKey::from_jwk(&jwk).ok()?;
    let algorithms: Vec<_> = algorithms
        .iter()
        .copied()
        .filter(|algorithm| named.is_none_or(|named| named == *algorithm))
        .filter(|algorithm| suits(&jwk.algorithm, *algorithm) && fits(&decoding, *algorithm))
        .collect();
    let kid = jwk.common.key_id;
    (!algorithms.is_empty()).then(|| SetKey {
        kid,
        key: Key::new(decoding, &algorithms),
    })
}

/// Whether a key of this type and curve is one for the algorithm. Secrets (`oct`) are never
/// published, and other curves have no algorithm.
fn suits(parameters: &AlgorithmParameters, algorithm: Algorithm) -> bool {
    match parameters {
        AlgorithmParameters::RSA(_) => algorithm.family() == AlgorithmFamily::Rsa,
        AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
            EllipticCurve::P256 => algorithm == Algorithm::ES256,
            EllipticCurve::P384 => algorithm == Algorithm::ES384,
            _ => false,
        },
        AlgorithmParameters::OctetKeyPair(okp) => {
            okp.curve == EllipticCurve::Ed25519 && algorithm == Algorithm::EdDSA
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use Algorithm::{ES256, ES384, EdDSA, HS256, PS256, RS256};
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::EncodingKey;
    use serde_json::json;

    use super::*;

    const ALL: [Algorithm; 6] = [RS256, PS256, ES256, ES384, EdDSA, HS256];

    fn of_pem(algorithm: Algorithm, pem: &[u8]) -> Value {
        let key = match algorithm {
            RS256 | PS256 => EncodingKey::from_rsa_pem(pem),
            EdDSA => EncodingKey::from_ed_pem(pem),
            _ => EncodingKey::from_ec_pem(pem),
        };
        let jwk = Jwk::from_encoding_key(&key.unwrap(), algorithm).unwrap();
        let mut jwk = json!(jwk);
        jwk.as_object_mut().unwrap().remove("alg");
        jwk
    }

    fn p256() -> Value {
        of_pem(ES256, include_bytes!("../../../tests/keys/p256.pem"))
    }

    fn rsa() -> Value {
        of_pem(RS256, include_bytes!("../../../tests/keys/rsa.pem"))
    }

    fn with(mut jwk: Value, name: &str, value: Value) -> Value {
        jwk[name] = value;
        jwk
    }

    fn read(members: &[Value], algorithms: &[Algorithm]) -> KeySet {
        let body = json!({ "keys": members }).to_string();
        KeySet::read(body.as_bytes(), algorithms).unwrap()
    }

    /// The algorithms that a key of a set verifies.
    fn verifies(member: Value, algorithms: &[Algorithm]) -> Vec<Algorithm> {
        let set = read(&[member], algorithms);
        let all = algorithms.iter().copied();
        let fits = |algorithm: &Algorithm| set.all.iter().any(|key| key.key.verifies(*algorithm));
        all.filter(fits).collect()
    }

    #[test]
    fn keys_verify_what_they_fit_and_no_more() {
        let p384 = of_pem(ES384, include_bytes!("../../../tests/keys/p384.pem"));
        let ed25519 = of_pem(EdDSA, include_bytes!("../../../tests/keys/ed25519.pem"));
        let table = [
            (rsa(), vec![RS256, PS256]),
            (p256(), vec![ES256]),
            (p384, vec![ES384]),
            (ed25519, vec![EdDSA]),
            (with(rsa(), "alg", json!("PS256")), vec![PS256]),
            (with(p256(), "use", json!("sig")), vec![ES256]),
            (with(p256(), "key_ops", json!(["verify"])), vec![ES256]),
        ];
        for (jwk, expected) in table {
            assert_eq!(verifies(jwk.clone(), &ALL), expected, "{jwk}");
        }
        assert_eq!(verifies(rsa(), &[RS256]), [RS256]);
        assert_eq!(verifies(rsa(), &[ES256]), []);
        assert_eq!(verifies(with(rsa(), "alg", json!("RS256")), &[PS256]), []);
    }

    #[test]
    fn what_can_not_verify_is_left_out() {
        let small = URL_SAFE_NO_PAD.encode([0xff; 128]);
        let secret = json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode([7; 64]) });
        let p521 = json!({ "kty": "EC", "crv": "P-521", "x": "AQ", "y": "AQ" });
        let table = [
            with(p256(), "use", json!("enc")),
            with(p256(), "use", json!("tls")),
            with(p256(), "key_ops", json!(["sign"])),
            with(p256(), "key_ops", json!([])),
            with(p256(), "alg", json!("ES384")),
            with(p256(), "alg", json!("ECDH-ES")),
            with(p256(), "alg", json!(7)),
            with(p256(), "d", json!("AQ")),
            with(p256(), "crv", json!("P-384")),
            with(p256(), "crv", json!("secp256k1")),
            with(p256(), "x", json!("AQ")),
            with(p256(), "kid", json!(7)),
            with(p256(), "kty", json!("XY")),
            with(rsa(), "alg", json!("RSA-OAEP")),
            with(rsa(), "n", json!(small)),
            with(rsa(), "e", json!("AQ")),
            with(rsa(), "e", json!("AA")),
            with(rsa(), "e", json!("")),
            with(secret.clone(), "alg", json!("HS256")),
            secret,
            p521,
            json!(null),
            json!("key"),
            json!({}),
        ];
        for jwk in table {
            assert_eq!(verifies(jwk.clone(), &ALL), [], "{jwk}");
        }
    }

    #[test]
    fn without_a_kid_only_one_key_may_fit() {
        let fitting = |members: Vec<Value>, kid, algorithm| match read(&members, &ALL)
            .fitting(kid, algorithm)
        {
            Fitting::Keys(keys) => keys.len().to_string(),
            Fitting::UnknownKid => "unknown".to_owned(),
            Fitting::Unnamed { candidates } => format!("unnamed {candidates}"),
        };
        let named = |jwk, kid| with(jwk, "kid", json!(kid));
        assert_eq!(fitting(vec![p256(), rsa()], None, ES256), "1");
        assert_eq!(fitting(vec![p256(), p256()], None, ES256), "1", "the same");
        let two = vec![named(p256(), "a"), named(p256(), "b"), rsa()];
        assert_eq!(fitting(two.clone(), None, ES256), "unnamed 2");
        assert_eq!(fitting(two.clone(), None, RS256), "1");
        assert_eq!(fitting(two.clone(), None, ES384), "unnamed 0");
        assert_eq!(fitting(two.clone(), Some("a"), ES256), "1");
        assert_eq!(fitting(two, Some("c"), ES256), "unknown");
        let same_kid = vec![named(p256(), "a"), named(rsa(), "a")];
        assert_eq!(fitting(same_kid, Some("a"), ES256), "2");
    }

    #[test]
    fn a_set_is_an_object_with_a_list_of_keys() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"keys":{}}"#,
            r#"{"keys":null}"#,
            "<html>",
        ] {
            assert!(KeySet::read(body.as_bytes(), &ALL).is_none(), "{body}");
        }
        let one = read(&[p256(), json!(7)], &ALL);
        assert_eq!((one.len(), one.skipped), (1, 1));
        assert_eq!(one.changes(None), (1, 0));
        let other = read(&[rsa()], &ALL);
        assert_eq!(other.changes(Some(&one)), (1, 1));
    }
}
