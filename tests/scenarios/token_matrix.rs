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
use crate::support::upgrade::{Answer, Refusal, Upgrade};
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
            self.kept.sign_as(Some("nobody"), &good),
            self.old.sign(&good),
        ] {
            // Once it was looked for, it is known to be unknown.
            eventually("the kid is unknown", async || {
                let labels = [("reason", "token_unknown_key")];
                let before = relay.metrics().await.value(refused, &labels);
                let upgrade = relay.upgrade(JOB).token(token.clone());
                if let Answer::Upgraded(mut client) = upgrade.send().await {
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
    [
        good_ones(issuers),
        forms_and_headers(issuers),
        signatures(issuers),
        kids(issuers),
        wrong_claims(),
        claims_of_a_wrong_type(),
    ]
    .concat()
}

fn good_ones(issuers: &Issuers) -> Vec<Case> {
    let good = claims(json!({}));
    let access = |header: &mut Header| header.typ = Some("application/AT+JWT".to_owned());
    let next = signed(next_secret().as_bytes(), &good);
    let tokens = [
        ("good, HMAC", hmac(json!({}))),
        ("good, the next secret", next),
        ("good, RSA", issuers.rsa.sign(&good)),
        ("good, JWKS", issuers.kept.sign(&good)),
        ("good, rotated in", issuers.new.sign(&good)),
        ("good, another typ", with_header(&issuers.kept, access)),
        ("good, audiences", hmac(json!({ "aud": ["x", "jobs"] }))),
        ("good, within leeway", hmac(json!({ "exp": now() - 5 }))),
        ("good, soon valid", hmac(json!({ "nbf": now() + 20 }))),
        ("good, a number", hmac(json!({ "sub": 7 }))),
    ];
    tokens.map(|(name, token)| (name, Ok(()), token)).into()
}

fn forms_and_headers(issuers: &Issuers) -> Vec<Case> {
    let headed = |header: Value| forged(&header, &claims(json!({})), b"x");
    let of_alg = |alg: &str| headed(json!({ "alg": alg, "typ": "JWT" }));
    let unsigned = json!({ "alg": "none", "typ": "JWT" });
    let crit = json!({ "alg": "HS256", "typ": "JWT", "crit": ["exp"] });
    let logout = |header: &mut Header| header.typ = Some("logout+jwt".to_owned());
    let large = hmac(json!({ "padding": "x".repeat(7000) }));
    let part = "YWJjZGVmZ2hpamts";
    vec![
        bad("empty", "token_malformed", ""),
        bad("garbage", "token_malformed", "garbage"),
        bad("two parts", "token_malformed", [part, part].join(".")),
        bad("no JSON", "token_malformed", [part, part, part].join(".")),
        bad("oversized", "token_too_large", large),
        bad("crit", "token_crit", headed(crit)),
        bad(
            "alg none",
            "token_algorithm",
            forged(&unsigned, &claims(json!({})), b""),
        ),
        bad("alg NONE", "token_algorithm", of_alg("NONE")),
        bad("alg of no key", "token_algorithm", of_alg("PS512")),
        bad("typ", "token_typ", with_header(&issuers.kept, logout)),
        bad(
            "no typ",
            "token_typ",
            with_header(&issuers.kept, |h| h.typ = None),
        ),
    ]
}

fn signatures(issuers: &Issuers) -> Vec<Case> {
    let good = claims(json!({}));
    let others_secret = SECRET.replace("scenarios", "attackers");
    let public_pem = issuers.rsa.public_pem();
    let of_another = |mine: &str, other: &str| {
        let (message, _) = mine.rsplit_once('.').expect("three parts");
        let (_, signature) = other.rsplit_once('.').expect("three parts");
        format!("{message}.{signature}")
    };
    let admin = claims(json!({ "role": "admin" }));
    let tampered = of_another(&hmac(json!({ "role": "admin" })), &hmac(json!({})));
    let tampered_rsa = of_another(&issuers.rsa.sign(&admin), &issuers.rsa.sign(&good));
    let tampered_ec = of_another(&issuers.kept.sign(&admin), &issuers.kept.sign(&good));
    let tokens = [
        ("stranger's secret", signed(others_secret.as_bytes(), &good)),
        ("public key as secret", signed(public_pem.as_bytes(), &good)),
        ("tampered, HMAC", tampered),
        ("tampered, RSA", tampered_rsa),
        ("tampered, JWKS", tampered_ec),
        ("stranger's RSA key", RsaKey::generate().sign(&good)),
        (
            "stranger with a known kid",
            IssuerKey::new("kept").sign(&good),
        ),
        (
            "another key's kid",
            issuers.new.sign_as(Some("kept"), &good),
        ),
    ];
    tokens
        .map(|(name, token)| bad(name, "token_signature", token))
        .into()
}

fn kids(issuers: &Issuers) -> Vec<Case> {
    let good = claims(json!({}));
    let of_down = forged(
        &json!({ "alg": "EdDSA", "typ": "JWT", "kid": "any" }),
        &good,
        b"x",
    );
    let unknown = issuers.kept.sign_as(Some("nobody"), &good);
    let unnamed = issuers.kept.sign_as(None, &good);
    vec![
        bad("unknown kid", "token_unknown_key", unknown),
        bad("rotated out", "token_unknown_key", issuers.old.sign(&good)),
        bad("no kid, two keys", "token_kid_missing", unnamed),
        bad("JWKS down", "keys_unavailable", of_down),
    ]
}

fn wrong_claims() -> Vec<Case> {
    let table = [
        ("no exp", "token_exp_missing", json!({ "exp": null })),
        ("expired", "token_expired", json!({ "exp": now() - 60 })),
        (
            "not yet valid",
            "token_not_yet_valid",
            json!({ "nbf": now() + 3600 }),
        ),
        (
            "issuer",
            "token_issuer",
            json!({ "iss": "https://other.example" }),
        ),
        ("no issuer", "token_issuer", json!({ "iss": null })),
        ("audience", "token_audience", json!({ "aud": "invoices" })),
        ("no audience", "token_audience", json!({ "aud": null })),
        ("claim", "token_claim", json!({ "type": "refresh" })),
        ("no claim", "token_claim", json!({ "type": null })),
    ];
    let case = |(name, reason, changes)| bad(name, reason, hmac(changes));
    table.map(case).into()
}

fn claims_of_a_wrong_type() -> Vec<Case> {
    let table = [
        ("exp", json!("soon")),
        ("exp", Value::Null),
        ("nbf", json!("0")),
        ("iat", json!([])),
        ("iss", json!(42)),
        ("aud", json!({})),
        ("sub", json!(true)),
    ];
    let case = |(name, value)| bad(name, "token_claim_type", hmac_raw(name, value));
    table.map(case).into()
}

fn bad(name: &'static str, reason: &'static str, token: impl Into<String>) -> Case {
    (name, Err(reason), token.into())
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
