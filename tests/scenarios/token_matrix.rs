//! Every kind of bad token, wherever it is, however it is refused: each with its own reason,
//! its own counter and its own code, and never in the log.

use jsonwebtoken::{Algorithm, Header};
use serde_json::{Value, json};

use crate::JOB;
use crate::support::api::{FakeApi, Reply};
use crate::support::config::Config;
use crate::support::jwks::{IssuerKey, set};
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{RsaKey, SECRET, claims_of, forged, now, signed};
use crate::support::upgrade::{Refusal, Upgrade};
use crate::support::wait::eventually;

/// Where a token can be: its name, and how a request brings it there.
type Source = (&'static str, fn(Upgrade, &str) -> Upgrade);

const SOURCES: [Source; 4] = [
    ("header", |upgrade, token| upgrade.token(token)),
    ("subprotocol", |upgrade, token| {
        upgrade.protocol(&format!("bearer.{token}"))
    }),
    ("cookie", |upgrade, token| {
        upgrade.header("cookie", &format!("theme=dark; session={token}"))
    }),
    ("query", |upgrade, token| upgrade.query("token", token)),
];

const MODES: [&str; 3] = ["close", "http", "abort"];

/// What a token comes to: accepted, or refused for this reason.
type Expected = Result<(), &'static str>;
type Case = (&'static str, Expected, String);

struct Issuers {
    rsa: RsaKey,
    /// In the set all the time, in it no more, and in it since.
    kept: IssuerKey,
    old: IssuerKey,
    new: IssuerKey,
    up: FakeApi,
    down: FakeApi,
}

impl Issuers {
    async fn start() -> Self {
        let issuers = Self {
            rsa: RsaKey::generate(),
            kept: IssuerKey::new("kept"),
            old: IssuerKey::new("old"),
            new: IssuerKey::new("new"),
            up: FakeApi::start().await,
            down: FakeApi::start().await,
        };
        issuers.down.answer(Reply::status(503));
        issuers
    }

    fn config(&self, redis: &Redis, mode: &str) -> Config {
        Config::new(redis).with(&format!(
            r#"
            [server]
            allowed_origins = ["https://app.example"]
            [auth]
            reject = "{mode}"
            token_from = ["header", "subprotocol:bearer.", "cookie:session", "query:token"]
            issuer = ["https://issuer.example"]
            audience = ["jobs"]
            require = {{ type = "access" }}
            typ = ["JWT", "at+jwt"]

            [[auth.key]]
            algorithms = ["HS256"]
            secret = "{SECRET}"
            [[auth.key]]
            algorithms = ["HS256"]
            secret = "{}"
            [[auth.key]]
            algorithms = ["RS256"]
            public_key = """{}"""
            [[auth.key]]
            algorithms = ["ES256"]
            jwks_url = "{}"
            refresh = "1h"
            cooldown = "1s"
            [[auth.key]]
            algorithms = ["EdDSA"]
            jwks_url = "{}"
            "#,
            next_secret(),
            self.rsa.public_pem(),
            self.up.url("/jwks.json"),
            self.down.url("/jwks.json"),
        ))
    }

    /// The old key goes, a new one comes, and the relay has seen it.
    async fn rotate(&self, relay: &Relay) {
        self.up.answer(set(&[&self.kept, &self.new]));
        let good = claims(json!({}));
        let refused = "relay_token_rejections_total";
        for token in [
            self.old.sign(&good),
            self.kept.sign_as(Some("nobody"), &good),
        ] {
            // Once it was looked for, it is known to be unknown.
            eventually("the kid is unknown", async || {
                let labels = [("reason", "token_unknown_key")];
                let before = relay.metrics().await.value(refused, &labels);
                let upgrade = relay.upgrade(JOB).token(token.clone());
                if let crate::support::upgrade::Answer::Upgraded(mut client) = upgrade.send().await
                {
                    client.next().await;
                }
                (relay.metrics().await.value(refused, &labels) > before).then_some(())
            })
            .await;
        }
    }
}

fn next_secret() -> String {
    SECRET.replace("scenarios", "next-year")
}

/// Claims that pass, but for these changes; `null` takes one away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({ "iss": "https://issuer.example", "aud": "jobs", "type": "access" });
    if let Value::Object(changes) = changes {
        for (name, value) in changes {
            claims[name] = value;
        }
    }
    claims_of("alice", claims)
}

fn hmac(changes: Value) -> String {
    signed(SECRET.as_bytes(), &claims(changes))
}

/// A claim as it is written, `null` too.
fn hmac_raw(name: &str, value: Value) -> String {
    let mut claims = claims(json!({}));
    claims[name] = value;
    signed(SECRET.as_bytes(), &claims)
}

fn with_header(key: &IssuerKey, change: impl Fn(&mut Header)) -> String {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(key.kid.clone());
    change(&mut header);
    key.sign_header(&header, &claims(json!({})))
}

fn cases(issuers: &Issuers) -> Vec<Case> {
    let good = claims(json!({}));
    let other_secret = SECRET.replace("scenarios", "attackers");
    let tampered = {
        let (one, two) = (hmac(json!({})), hmac(json!({ "role": "admin" })));
        let (head, _) = one.rsplit_once('.').expect("three parts");
        let (_, signature) = two.rsplit_once('.').expect("three parts");
        format!("{head}.{signature}")
    };
    let of_rsa = issuers.rsa.sign(&good);
    let of_rsa_changed = {
        let (head, signature) = of_rsa.rsplit_once('.').expect("three parts");
        format!("{head}.{}", signature.chars().rev().collect::<String>())
    };
    let eddsa = json!({ "alg": "EdDSA", "typ": "JWT", "kid": "any" });
    let with = |name: &str, value: Value| hmac(json!({ name: value }));
    let public_pem = issuers.rsa.public_pem();
    let unknown = issuers.kept.sign_as(Some("nobody"), &good);
    let mut cases: Vec<Case> = vec![
        ("good, HMAC", Ok(()), hmac(json!({}))),
        (
            "good, the next secret",
            Ok(()),
            signed(next_secret().as_bytes(), &good),
        ),
        ("good, RSA", Ok(()), of_rsa),
        ("good, JWKS", Ok(()), issuers.kept.sign(&good)),
        ("good, rotated in", Ok(()), issuers.new.sign(&good)),
        (
            "good, another typ",
            Ok(()),
            with_header(&issuers.kept, |h| h.typ = Some("application/AT+JWT".into())),
        ),
        (
            "good, several audiences",
            Ok(()),
            with("aud", json!(["x", "jobs"])),
        ),
        (
            "good, expired within leeway",
            Ok(()),
            with("exp", json!(now() - 5)),
        ),
        ("good, soon valid", Ok(()), with("nbf", json!(now() + 20))),
        ("good, a number as subject", Ok(()), with("sub", json!(7))),
        ("empty", Err("token_malformed"), String::new()),
        ("garbage", Err("token_malformed"), "garbage".into()),
        (
            "two parts",
            Err("token_malformed"),
            "YWJjZGVmZ2g.YWJjZGVmZ2g".into(),
        ),
        (
            "no JSON",
            Err("token_malformed"),
            "YWJjZGVmZ2g.YWJjZGVmZ2g.YWJjZGVmZ2g".into(),
        ),
        (
            "oversized",
            Err("token_too_large"),
            with("padding", json!("x".repeat(7000))),
        ),
        (
            "crit",
            Err("token_crit"),
            forged(
                &json!({ "alg": "HS256", "typ": "JWT", "crit": ["exp"] }),
                &good,
                b"x",
            ),
        ),
        (
            "alg none",
            Err("token_algorithm"),
            forged(&json!({ "alg": "none", "typ": "JWT" }), &good, b""),
        ),
        (
            "alg NONE",
            Err("token_algorithm"),
            forged(&json!({ "alg": "NONE", "typ": "JWT" }), &good, b"x"),
        ),
        (
            "alg of no key",
            Err("token_algorithm"),
            forged(&json!({ "alg": "PS512", "typ": "JWT" }), &good, b"x"),
        ),
        (
            "typ",
            Err("token_typ"),
            with_header(&issuers.kept, |h| h.typ = Some("logout+jwt".into())),
        ),
        (
            "no typ",
            Err("token_typ"),
            with_header(&issuers.kept, |h| h.typ = None),
        ),
        (
            "stranger's secret",
            Err("token_signature"),
            signed(other_secret.as_bytes(), &good),
        ),
        (
            "public key as secret",
            Err("token_signature"),
            signed(public_pem.as_bytes(), &good),
        ),
        ("tampered", Err("token_signature"), tampered),
        ("bad RSA signature", Err("token_signature"), of_rsa_changed),
        (
            "stranger's RSA key",
            Err("token_signature"),
            RsaKey::generate().sign(&good),
        ),
        (
            "stranger with a known kid",
            Err("token_signature"),
            IssuerKey::new("kept").sign(&good),
        ),
        (
            "another key's kid",
            Err("token_signature"),
            issuers.new.sign_as(Some("kept"), &good),
        ),
        ("unknown kid", Err("token_unknown_key"), unknown),
        (
            "rotated out",
            Err("token_unknown_key"),
            issuers.old.sign(&good),
        ),
        (
            "no kid, two keys",
            Err("token_kid_missing"),
            issuers.kept.sign_as(None, &good),
        ),
        (
            "JWKS down",
            Err("keys_unavailable"),
            forged(&eddsa, &good, b"x"),
        ),
        ("no exp", Err("token_exp_missing"), with("exp", Value::Null)),
        (
            "expired",
            Err("token_expired"),
            with("exp", json!(now() - 60)),
        ),
        (
            "not yet valid",
            Err("token_not_yet_valid"),
            with("nbf", json!(now() + 3600)),
        ),
        (
            "issuer",
            Err("token_issuer"),
            with("iss", json!("https://other.example")),
        ),
        ("no issuer", Err("token_issuer"), with("iss", Value::Null)),
        (
            "audience",
            Err("token_audience"),
            with("aud", json!("invoices")),
        ),
        (
            "no audience",
            Err("token_audience"),
            with("aud", Value::Null),
        ),
        ("claim", Err("token_claim"), with("type", json!("refresh"))),
        ("no claim", Err("token_claim"), with("type", Value::Null)),
    ];
    for (name, value) in [
        ("exp", json!("soon")),
        ("exp", Value::Null),
        ("nbf", json!("0")),
        ("iat", json!([])),
        ("iss", json!(42)),
        ("aud", json!({})),
        ("sub", json!(true)),
    ] {
        cases.push((name, Err("token_claim_type"), hmac_raw(name, value)));
    }
    cases
}

fn refusal(mode: &str, reason: &str) -> Refusal {
    let (status, code) = match reason {
        "keys_unavailable" => (503, 1013),
        _ => (401, 4401),
    };
    match mode {
        "close" => Refusal::closed(code, reason),
        "http" => Refusal::status(status, reason),
        _ => Refusal::Dropped,
    }
}

/// Says how many requests were tried.
async fn try_all(relay: &Relay, mode: &str, cases: &[Case]) -> usize {
    let counted = async |reason: &str| {
        let labels = [("reason", reason)];
        relay
            .metrics()
            .await
            .value("relay_token_rejections_total", &labels)
    };
    let missing = relay.upgrade(JOB).no_token().refused().await;
    assert_eq!(missing, refusal(mode, "token_missing"), "{mode}");
    assert!(counted("token_missing").await >= 1.0);
    let mut tried = 1;
    for (case, expected, token) in cases {
        for (source, put) in SOURCES {
            let what = format!("{case} in {source}, {mode}");
            // A browser could not send an empty subprotocol, cookie or header in this way.
            let upgrade = put(relay.upgrade(JOB).no_token(), token);
            tried += 1;
            let Err(reason) = expected else {
                let mut client = upgrade.open().await;
                client.ignore("expiring");
                client.expect_live().await;
                continue;
            };
            let before = counted(reason).await;
            assert_eq!(upgrade.refused().await, refusal(mode, reason), "{what}");
            let after = counted(reason).await;
            assert!(
                (after - before - 1.0).abs() < f64::EPSILON,
                "{what}: {after}"
            );
        }
    }
    tried
}

#[tokio::test]
async fn s22_every_token_from_every_source_in_every_mode() {
    let (redis, issuers) = (Redis::start().await, Issuers::start().await);
    let mut tried = 0;
    for mode in MODES {
        issuers.up.answer(set(&[&issuers.kept, &issuers.old]));
        let relay = Relay::start(&issuers.config(&redis, mode)).await;
        relay
            .upgrade(JOB)
            .token(issuers.old.sign(&claims(json!({}))))
            .open()
            .await
            .expect_live()
            .await;
        issuers.rotate(&relay).await;
        let cases = cases(&issuers);
        assert!(cases.len() >= 45, "only {} cases", cases.len());
        tried += try_all(&relay, mode, &cases).await;
        let log = relay.log_lines().join("\n");
        for (case, _, token) in &cases {
            for part in token.split('.').filter(|part| part.len() >= 16) {
                assert!(!log.contains(part), "{case}: a part of a token was logged");
            }
        }
    }
    println!(
        "{tried} requests: {} sources, {} modes",
        SOURCES.len(),
        MODES.len()
    );
}
