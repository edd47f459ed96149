//! Who may listen.

use serde_json::{Value, json};

use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{RsaKey, SECRET, claims_of, forged, now, signed, token, token_with};
use crate::support::upgrade::{Refusal, Upgrade};
use crate::{JOB, KEY};

/// A config that checks everything it can, with an HMAC and an RSA key.
fn strict(redis: &Redis, rsa: &RsaKey) -> Config {
    let pem = rsa.public_pem();
    Config::new(redis).with(&format!(
        r#"
        [auth]
        issuer = ["https://issuer.example"]
        audience = ["jobs"]
        require = {{ type = "access" }}

        [[auth.key]]
        algorithms = ["HS256"]
        secret = "{SECRET}"

        [[auth.key]]
        algorithms = ["RS256"]
        public_key = """{pem}"""
        "#
    ))
}

/// Claims that pass, but for these changes.
fn claims(changes: Value) -> Value {
    let mut claims = json!({ "iss": "https://issuer.example", "aud": "jobs", "type": "access" });
    let Value::Object(changes) = changes else {
        panic!("changes are an object: {changes}");
    };
    for (name, value) in changes {
        claims[name] = value;
    }
    claims_of("alice", claims)
}

fn hmac(changes: Value) -> String {
    signed(SECRET.as_bytes(), &claims(changes))
}

/// Tokens that are not accepted. Those of one class may share a reason.
fn bad_tokens(rsa: &RsaKey) -> Vec<(&'static str, String)> {
    let good = claims(json!({}));
    let other_secret = SECRET.replace("scenarios", "attackers");
    let tampered = format!("{}x", hmac(json!({})));
    let crit = json!({ "alg": "HS256", "typ": "JWT", "crit": ["exp"] });
    let stranger = RsaKey::generate();
    vec![
        ("garbage", "garbage".to_owned()),
        ("garbage", "a.b.c".to_owned()),
        ("signature", signed(other_secret.as_bytes(), &good)),
        ("signature", stranger.sign(&good)),
        ("tampered", tampered),
        ("none", forged(&json!({ "alg": "none" }), &good, b"")),
        (
            "none",
            forged(&json!({ "alg": "None", "typ": "JWT" }), &good, b"x"),
        ),
        // The public key is public: as an HMAC secret it proves nothing.
        ("confusion", signed(rsa.public_pem().as_bytes(), &good)),
        ("expired", hmac(json!({ "exp": now() - 60 }))),
        ("not yet valid", hmac(json!({ "nbf": now() + 3600 }))),
        ("issuer", hmac(json!({ "iss": "https://other.example" }))),
        ("issuer", hmac(json!({ "iss": null }))),
        ("issuer", hmac(json!({ "iss": 42 }))),
        ("audience", hmac(json!({ "aud": "invoices" }))),
        ("audience", hmac(json!({ "aud": null }))),
        ("claim", hmac(json!({ "type": "refresh" }))),
        ("claim", hmac(json!({ "type": null }))),
        ("no exp", hmac(json!({ "exp": null }))),
        ("crit", forged(&crit, &good, b"x")),
    ]
}

fn is_machine_readable(reason: &str) -> bool {
    !reason.is_empty() && reason.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

#[tokio::test]
async fn s22_each_bad_token_is_refused_and_counted() {
    let (redis, rsa) = (Redis::start().await, RsaKey::generate());
    let relay = Relay::start(&strict(&redis, &rsa)).await;
    let mut reasons: Vec<(&str, String)> = Vec::new();
    let mut refuse = async |class, upgrade: Upgrade| {
        let refusal = upgrade.refused().await;
        assert_eq!(refusal.code(), 4401, "{class}: {refusal:?}");
        let reason = refusal.reason().to_owned();
        assert!(is_machine_readable(&reason), "{class}: {reason:?}");
        reasons.push((class, reason.clone()));
        let count = reasons.iter().filter(|(_, known)| *known == reason).count();
        let count = f64::from(u32::try_from(count).unwrap());
        let labels = [("reason", &*reason)];
        relay
            .metric_reaches("relay_token_rejections_total", &labels, count)
            .await;
    };
    refuse("missing", relay.upgrade(JOB).no_token()).await;
    let bad_tokens = bad_tokens(&rsa);
    for (class, token) in &bad_tokens {
        refuse(class, relay.upgrade(JOB).token(token)).await;
    }

    let reason_of = |class| {
        let known = reasons.iter().find(|(known, _)| *known == class);
        known.unwrap().1.as_str()
    };
    assert_eq!(reason_of("expired"), "token_expired");
    let own = [
        "missing",
        "garbage",
        "signature",
        "expired",
        "not yet valid",
        "issuer",
        "audience",
        "claim",
    ];
    for (index, class) in own.iter().enumerate() {
        for other in &own[..index] {
            assert_ne!(reason_of(class), reason_of(other), "{class} and {other}");
        }
    }
    for (_, token) in &bad_tokens {
        assert!(
            token.len() < 10 || !relay.log_contains(token),
            "a token was logged"
        );
    }
}

#[tokio::test]
async fn s22_good_tokens_are_accepted() {
    let (redis, rsa) = (Redis::start().await, RsaKey::generate());
    let relay = Relay::start(&strict(&redis, &rsa)).await;
    let good = [
        hmac(json!({})),
        rsa.sign(&claims(json!({}))),
        hmac(json!({ "aud": ["invoices", "jobs"] })),
        hmac(json!({ "nbf": now() - 60, "iat": now() })),
        // Within the leeway.
        hmac(json!({ "exp": now() - 10 })),
        hmac(json!({ "nbf": now() + 10 })),
    ];
    for token in good {
        let mut client = relay.upgrade(JOB).token(token).open().await;
        client.ignore("expiring");
        client.expect_live().await;
    }
}

#[tokio::test]
async fn s22_refused_by_a_close_frame_a_status_or_silence() {
    let redis = Redis::start().await;
    let expired = || token_with("alice", json!({ "exp": now() - 60 }));
    let modes = [
        ("close", Refusal::closed(4401, "token_expired")),
        ("http", Refusal::status(401, "token_expired")),
        ("abort", Refusal::Dropped),
    ];
    for (mode, expected) in modes {
        let config = Config::new(&redis).with(&format!("[auth]\nreject = \"{mode}\""));
        let relay = Relay::start(&config).await;
        let refusal = relay.upgrade(JOB).token(expired()).refused().await;
        assert_eq!(refusal, expected, "{mode}");
        relay.open(JOB).await.expect_live().await;
        let labels = [("reason", "token_expired")];
        relay
            .metric_reaches("relay_token_rejections_total", &labels, 1.0)
            .await;
    }
}

#[tokio::test]
async fn s22_other_refusals_as_a_status() {
    let redis = Redis::start().await;
    let config = Config::new(&redis)
        .with("[auth]\nreject = \"http\"")
        .route(r#"authorize = "claims.role == 'admin'""#);
    let relay = Relay::start(&config).await;
    assert_eq!(relay.upgrade(JOB).no_token().refused().await.code(), 401);
    assert_eq!(relay.upgrade(JOB).refused().await.code(), 403);
    assert_eq!(relay.upgrade("/ws/jobs/a*b").refused().await.code(), 404);
    assert_eq!(relay.upgrade("/nowhere").refused().await.code(), 404);
}

#[tokio::test]
async fn s22_two_secrets_for_a_rotation() {
    let redis = Redis::start().await;
    let next = SECRET.replace("scenarios", "next-year");
    let config = Config::new(&redis).with(&format!(
        r#"
        [[auth.key]]
        algorithms = ["HS256"]
        secret = "{SECRET}"
        [[auth.key]]
        algorithms = ["HS256"]
        secret = "{next}"
        "#
    ));
    let relay = Relay::start(&config).await;
    for secret in [SECRET, &next] {
        let token = signed(secret.as_bytes(), &claims_of("alice", json!({})));
        let mut client = relay.upgrade(JOB).token(token).open().await;
        client.expect_live().await;
    }
}

#[tokio::test]
async fn the_first_source_that_is_present_decides() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with(
        r#"
        [server]
        allowed_origins = ["https://app.example"]
        [auth]
        token_from = ["header", "subprotocol:bearer.", "cookie:session", "query:token"]
        "#,
    );
    let relay = Relay::start(&config).await;
    let bare = || relay.upgrade(JOB).no_token();
    let good = token("alice");
    let accepted = [
        bare().token(&good),
        bare().header("authorization", &format!("bearer {good}")),
        bare()
            .protocol("relay.v1")
            .protocol(&format!("bearer.{good}")),
        bare().header("cookie", &format!("theme=dark; session={good}")),
        bare().query("token", &good),
        // Not looked at, since an earlier source decides.
        bare().token(&good).query("token", "garbage"),
    ];
    for upgrade in accepted {
        upgrade.open().await.expect_live().await;
    }
    let refused = [
        bare().token("garbage").query("token", &good),
        bare()
            .header("cookie", "session=garbage")
            .query("token", &good),
    ];
    for upgrade in refused {
        assert_eq!(upgrade.refused().await.code(), 4401);
    }
}

#[tokio::test]
async fn authorize_decides_by_claims_and_path() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).route(
        r#"authorize = "has(claims.role) && claims.role == 'admin' || path.job_id in claims.jobs""#,
    );
    let relay = Relay::start(&config).await;
    for claims in [json!({ "role": "admin" }), json!({ "jobs": ["41", "42"] })] {
        let upgrade = relay.upgrade(JOB).token(token_with("alice", claims));
        upgrade.open().await.expect_live().await;
    }
    let others = [
        json!({}),
        json!({ "role": "user" }),
        json!({ "jobs": ["43"] }),
        json!({ "jobs": "42" }),
        json!({ "role": ["admin"] }),
    ];
    for claims in others {
        let upgrade = relay
            .upgrade(JOB)
            .token(token_with("alice", claims.clone()));
        let refusal = upgrade.refused().await;
        assert_eq!(refusal.code(), 4403, "{claims}");
        assert!(is_machine_readable(refusal.reason()), "{refusal:?}");
    }
}

#[tokio::test]
async fn claims_choose_the_stream() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).another_route(
        r#"
        name = "own"
        path = "/ws/own"
        streams = ["user:{claims.sub}:{claims.tenant}"]
        message = { field = "data" }
        "#,
    );
    let relay = Relay::start(&config).await;
    let open = |sub: &str, tenant: Value| {
        let token = token_with(sub, json!({ "tenant": tenant }));
        relay.upgrade("/ws/own").token(token)
    };
    let mut alice = open("alice", json!(7)).open().await;
    let mut bob = open("bob", json!("seven")).open().await;
    alice.expect_live().await;
    bob.expect_live().await;
    redis.xadd("user:alice:7", "1-0", "for alice").await;
    redis.xadd("user:bob:seven", "1-0", "for bob").await;
    alice.expect_event("1-0", "for alice").await;
    bob.expect_event("1-0", "for bob").await;

    let unusable = [
        json!("*"),
        json!("a b"),
        json!("{x}"),
        json!("a\nb"),
        json!("[a]"),
        json!("a?"),
        json!(""),
        json!("x".repeat(257)),
        json!(null),
        json!(true),
        json!(1.5),
        json!(["a"]),
    ];
    for claim in unusable {
        let refusal = open("alice", claim.clone()).refused().await;
        assert_eq!(refusal, Refusal::closed(4403, "claim_unusable"), "{claim}");
    }
}

#[tokio::test]
async fn public_routes_ask_for_nothing() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).another_route(
        r#"
        name = "public"
        path = "/ws/news"
        streams = ["news"]
        auth = "none"
        message = { field = "data" }
        "#,
    );
    let relay = Relay::start(&config).await;
    let mut client = relay.upgrade("/ws/news").no_token().open().await;
    client.expect_live().await;
    redis.xadd("news", "1-0", "for all").await;
    client.expect_event("1-0", "for all").await;
    assert_eq!(relay.upgrade(JOB).no_token().refused().await.code(), 4401);
}

#[tokio::test]
async fn without_authentication_every_route_is_public() {
    let redis = Redis::start().await;
    let config = Config::new(&redis)
        .without_keys()
        .with("[auth]\nmode = \"none\"");
    let relay = Relay::start(&config).await;
    let mut client = relay.upgrade(JOB).no_token().open().await;
    client.expect_live().await;
    redis.xadd(KEY, "1-0", "for all").await;
    client.expect_event("1-0", "for all").await;
}
