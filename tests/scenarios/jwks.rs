//! Keys that an issuer publishes: rotation, outages, and who may cause a fetch.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::api::{FakeApi, Reply};
use crate::support::client::{Client, Received};
use crate::support::config::Config;
use crate::support::http::get;
use crate::support::jwks::{IssuerKey, TlsFront, key_of, set};
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{claims_of, token};
use crate::support::upgrade::Refusal;
use crate::support::wait::eventually;
use crate::{JOB, KEY};

const UNAVAILABLE: &str = "keys_unavailable";
const REFRESHES: &str = "relay_jwks_refreshes_total";

fn claims() -> Value {
    claims_of("alice", json!({}))
}

/// A key of the config that is fetched anew by an unknown kid alone, but for the first time.
fn seldom(issuer: &FakeApi) -> String {
    key_of(issuer, "refresh = \"1h\"\ncooldown = \"1h\"")
}

async fn issuer(keys: &[&IssuerKey]) -> FakeApi {
    let issuer = FakeApi::start().await;
    issuer.answer(set(keys));
    issuer
}

async fn open(relay: &Relay, token: String) -> Client {
    let mut client = relay.upgrade(JOB).token(token).open().await;
    client.expect_live().await;
    client
}

async fn admits(relay: &Relay, token: String) -> bool {
    let mut client = relay.upgrade(JOB).token(token).open().await;
    matches!(client.next().await, Received::Text(_))
}

async fn reason(relay: &Relay, token: String) -> String {
    let refusal = relay.upgrade(JOB).token(token).refused().await;
    let code = match refusal.reason() {
        UNAVAILABLE => 1013,
        _ => 4401,
    };
    assert_eq!(refusal.code(), code, "{refusal:?}");
    refusal.reason().to_owned()
}

#[tokio::test]
async fn s22_a_rotation_drops_nobody() {
    let redis = Redis::start().await;
    let (old, new) = (IssuerKey::new("old"), IssuerKey::new("new"));
    let issuer = issuer(&[&old]).await;
    let keys = key_of(&issuer, "refresh = \"1h\"\ncooldown = \"1s\"");
    let relay = Relay::start(&Config::new(&redis).with(&keys)).await;
    let mut before = open(&relay, old.sign(&claims())).await;

    issuer.answer(set(&[&old, &new]));
    open(&relay, new.sign(&claims())).await;
    open(&relay, old.sign(&claims())).await;
    assert_eq!(issuer.calls().len(), 2, "the start, and the unknown kid");

    issuer.answer(set(&[&new]));
    // Another unknown kid, once the cooldown is over, brings the set without the old key.
    eventually("the old key is gone", async || {
        reason(&relay, old.sign_as(Some("stranger"), &claims())).await;
        let refused = relay.metrics().await.value("relay_jwks_keys", &[]);
        (issuer.calls().len() >= 3 && (refused - 1.0).abs() < f64::EPSILON).then_some(())
    })
    .await;
    let gone = reason(&relay, old.sign(&claims())).await;
    assert!(
        ["token_unknown_key", UNAVAILABLE].contains(&&*gone),
        "{gone}"
    );
    open(&relay, new.sign(&claims())).await;
    redis.xadd(KEY, "1-0", "for those who are there").await;
    before.expect_event("1-0", "for those who are there").await;
}

#[tokio::test]
async fn s22_a_refresh_takes_a_key_away() {
    let redis = Redis::start().await;
    let (old, new) = (IssuerKey::new("old"), IssuerKey::new("new"));
    let issuer = issuer(&[&old]).await;
    let keys = key_of(&issuer, "refresh = \"1s\"\ncooldown = \"1h\"");
    let relay = Relay::start(&Config::new(&redis).with(&keys)).await;
    open(&relay, old.sign(&claims())).await;
    issuer.answer(set(&[&new]));
    issuer.called(3).await;
    relay
        .metric_reaches("relay_jwks_keys", &[("key", "1")], 1.0)
        .await;
    eventually("the old key verifies no more", async || {
        (!admits(&relay, old.sign(&claims())).await).then_some(())
    })
    .await;
    open(&relay, new.sign(&claims())).await;
}

#[tokio::test]
async fn s22_without_its_jwks_the_relay_starts_and_asks_to_come_back() {
    let redis = Redis::start().await;
    let key = IssuerKey::new("one");
    let issuer = FakeApi::start().await;
    issuer.answer(Reply::status(503));
    let config = Config::new(&redis).with(&format!(
        "{}[[auth.key]]\nalgorithms = [\"HS256\"]\nsecret = \"{}\"",
        key_of(&issuer, "refresh = \"1s\""),
        crate::support::token::SECRET
    ));
    let relay = Relay::start(&config).await;
    // Other keys verify meanwhile.
    relay.open(JOB).await.expect_live().await;
    let refusal = relay
        .upgrade(JOB)
        .token(key.sign(&claims()))
        .refused()
        .await;
    assert_eq!(refusal, Refusal::closed(1013, UNAVAILABLE));
    let labels = [("reason", UNAVAILABLE)];
    let refused = relay
        .metrics()
        .await
        .value("relay_token_rejections_total", &labels);
    assert!(refused >= 1.0, "{refused}");
    let (status, said) = relay.readyz().await;
    assert_eq!(
        (status, &said["checks"]["jwks"]),
        (503, &json!(false)),
        "{said}"
    );
    assert_eq!(said["checks"]["redis"], true, "{said}");
    let own = get(relay.admin_address(), "/readyz?scope=self").await;
    assert_eq!(own.status, 200, "{}", own.text());
    assert!(relay.log_contains("the JWKS can't be fetched"));

    issuer.answer(set(&[&key]));
    eventually("ready", async || {
        (relay.readyz().await.0 == 200).then_some(())
    })
    .await;
    open(&relay, key.sign(&claims())).await;
    let metrics = relay.metrics().await;
    assert!(metrics.value(REFRESHES, &[("key", "1"), ("outcome", "status")]) >= 1.0);
    let last = metrics.value("relay_jwks_last_success_timestamp_seconds", &[("key", "1")]);
    assert!(last > 1.7e9, "{last}");
}

#[tokio::test]
async fn s22_clients_that_are_early_wait_for_the_first_fetch() {
    let redis = Redis::start().await;
    let key = IssuerKey::new("one");
    let issuer = issuer(&[&key]).await;
    issuer.close_gate();
    let relay = Relay::start(&Config::new(&redis).with(&seldom(&issuer))).await;
    let early = (0..20).map(|_| open(&relay, key.sign(&claims())));
    tokio::join!(join_all(early), async {
        issuer.called(1).await;
        issuer.open_gate();
    });
    let calls = issuer.calls().len();
    assert!(calls <= 2, "{calls} fetches");
}

#[tokio::test]
async fn s22_bad_answers_leave_the_keys_as_they_are() {
    let redis = Redis::start().await;
    let key = IssuerKey::new("one");
    let issuer = issuer(&[&key]).await;
    let keys = key_of(&issuer, "refresh = \"1s\"\ncooldown = \"1h\"");
    let relay = Relay::start(&Config::new(&redis).with(&keys)).await;
    open(&relay, key.sign(&claims())).await;
    let other = IssuerKey::new("other");
    let elsewhere = Reply::status(302).header("location", &issuer.url("/other"));
    let unusable = json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0", "kid": "one" }, 7, null] });
    let bad = [
        ("status", Reply::status(500)),
        ("status", Reply::status(404)),
        ("status", elsewhere),
        ("no_set", Reply::text(200, "<html>")),
        ("no_set", Reply::text(200, "")),
        ("no_set", Reply::json(&json!([other.jwk()]))),
        ("no_set", Reply::json(&json!({ "keys": {} }))),
        ("no_usable_key", Reply::json(&json!({ "keys": [] }))),
        ("no_usable_key", Reply::json(&unusable)),
        ("too_large", Reply::text(200, vec![b' '; 1024 * 1024 + 1])),
    ];
    let mut seen = std::collections::BTreeMap::new();
    for (outcome, reply) in bad {
        issuer.answer(reply);
        *seen.entry(outcome).or_insert(0.0) += 1.0;
        let labels = [("key", "1"), ("outcome", outcome)];
        eventually(outcome, async || {
            (relay.metrics().await.value(REFRESHES, &labels) >= seen[outcome]).then_some(())
        })
        .await;
        // Refetching goes on while the next answer is prepared.
        seen.insert(outcome, relay.metrics().await.value(REFRESHES, &labels));
        open(&relay, key.sign(&claims())).await;
    }
    assert!(issuer.calls().iter().all(|call| call.path == "/jwks.json"));
    assert_eq!(relay.readyz().await.0, 200);
    issuer.answer(set(&[&other]));
    eventually("the new key verifies", async || {
        admits(&relay, other.sign(&claims())).await.then_some(())
    })
    .await;
}

#[tokio::test]
async fn s22_unknown_kids_cause_one_fetch_per_cooldown() {
    let redis = Redis::start().await;
    let key = IssuerKey::new("one");
    let issuer = issuer(&[&key]).await;
    let relay = Relay::start(&Config::new(&redis).with(&seldom(&issuer))).await;
    open(&relay, key.sign(&claims())).await;
    assert_eq!(issuer.calls().len(), 1);

    let many = (0..30).map(|_| reason(&relay, key.sign_as(Some("nobody"), &claims())));
    let reasons = join_all(many).await;
    assert!(
        reasons.iter().all(|reason| reason == "token_unknown_key"),
        "{reasons:?}"
    );
    // One kid that was looked for, and one that was not.
    let again = reason(&relay, key.sign_as(Some("nobody"), &claims())).await;
    assert_eq!(again, "token_unknown_key");
    let others = (0..30).map(|number| {
        let kid = format!("stranger-{number}");
        reason(&relay, key.sign_as(Some(&kid), &claims()))
    });
    let reasons = join_all(others).await;
    assert!(
        reasons.iter().all(|reason| reason == UNAVAILABLE),
        "{reasons:?}"
    );
    assert_eq!(issuer.calls().len(), 2, "the start, and the unknown kid");
    open(&relay, key.sign(&claims())).await;
}

#[tokio::test]
async fn s22_a_token_without_kid_needs_a_set_that_leaves_no_choice() {
    let redis = Redis::start().await;
    let (one, two) = (IssuerKey::new("one"), IssuerKey::new("two"));
    let issuer = issuer(&[&one]).await;
    let keys = key_of(&issuer, "refresh = \"1h\"\ncooldown = \"1s\"");
    let relay = Relay::start(&Config::new(&redis).with(&keys)).await;
    open(&relay, one.sign_as(None, &claims())).await;
    // A key that replaces the only one has no kid to be missed by.
    issuer.answer(set(&[&two]));
    open(&relay, two.sign_as(None, &claims())).await;
    issuer.answer(set(&[&one, &two]));
    eventually("two keys", async || {
        reason(&relay, two.sign_as(Some("nobody"), &claims())).await;
        let keys = relay.metrics().await.value("relay_jwks_keys", &[]);
        (keys > 1.5).then_some(())
    })
    .await;
    assert_eq!(
        reason(&relay, two.sign_as(None, &claims())).await,
        "token_kid_missing"
    );
    open(&relay, two.sign(&claims())).await;
    // The kid decides, not the signature: no other key is tried.
    assert_eq!(
        reason(&relay, one.sign_as(Some("two"), &claims())).await,
        "token_signature"
    );
}

#[tokio::test]
async fn s22_several_issuers_stand_side_by_side() {
    let redis = Redis::start().await;
    // Both call their key "1", as issuers do.
    let (one, two) = (IssuerKey::new("1"), IssuerKey::new("1"));
    let (first, second) = (issuer(&[&one]).await, issuer(&[&two]).await);
    let keys = [seldom(&first), seldom(&second)].concat();
    let relay = Relay::start(&Config::new(&redis).with(&keys)).await;
    open(&relay, one.sign(&claims())).await;
    open(&relay, two.sign(&claims())).await;
    assert_eq!(
        reason(&relay, IssuerKey::new("1").sign(&claims())).await,
        "token_signature"
    );
    assert_eq!(reason(&relay, token("alice")).await, "token_algorithm");
}

#[tokio::test]
async fn s22_over_https_the_authority_must_be_trusted() {
    let redis = Redis::start().await;
    let key = IssuerKey::new("one");
    let issuer = issuer(&[&key]).await;
    let front = TlsFront::start(issuer.address()).await;
    let config = |more: &str| {
        let url = front.url("/jwks.json");
        Config::new(&redis).with(&format!(
            "[[auth.key]]\nalgorithms = [\"ES256\"]\njwks_url = \"{url}\"\n{more}"
        ))
    };
    let strange = Relay::start(&config("")).await;
    assert_eq!(reason(&strange, key.sign(&claims())).await, UNAVAILABLE);
    let labels = [("key", "1"), ("outcome", "unreachable")];
    assert!(strange.metrics().await.value(REFRESHES, &labels) >= 1.0);
    assert_eq!(issuer.calls().len(), 0);

    let trusting = config(&format!("ca_file = \"{}\"", front.ca_file().display()));
    let trusting = Relay::start(&trusting).await;
    open(&trusting, key.sign(&claims())).await;
}

#[tokio::test]
async fn s22_a_slow_issuer_delays_nobody_for_long() {
    let redis = Redis::start().await;
    let key = IssuerKey::new("one");
    let issuer = issuer(&[&key]).await;
    let relay = Relay::start(&Config::new(&redis).with(&seldom(&issuer))).await;
    open(&relay, key.sign(&claims())).await;
    issuer.answer(set(&[&key]).delay(Duration::from_secs(60)));
    let unknown = reason(&relay, key.sign_as(Some("nobody"), &claims()));
    let (unknown, ()) = tokio::join!(unknown, async {
        issuer.called(2).await;
        // Others need no fetch.
        open(&relay, key.sign(&claims())).await;
    });
    assert_eq!(unknown, UNAVAILABLE);
}

#[tokio::test]
async fn a_fresh_token_waits_for_the_keys_on_a_live_socket() {
    let redis = Redis::start().await;
    let (old, new) = (IssuerKey::new("old"), IssuerKey::new("new"));
    let issuer = issuer(&[&old]).await;
    let keys = key_of(&issuer, "refresh = \"1h\"\ncooldown = \"1s\"");
    let relay = Relay::start(&Config::new(&redis).with(&keys)).await;
    let mut client = open(&relay, old.sign(&claims())).await;

    issuer.answer(Reply::status(500));
    let fresh = json!({ "type": "auth", "token": new.sign(&claims()) });
    client.send(fresh.to_string()).await;
    issuer.called(2).await;
    redis.xadd(KEY, "1-0", "still there").await;
    client.expect_event("1-0", "still there").await;

    issuer.answer(set(&[&old, &new]));
    let labels = [("route", "job"), ("outcome", "accepted")];
    relay
        .metric_reaches("relay_token_renewals_total", &labels, 1.0)
        .await;
    redis.xadd(KEY, "2-0", "renewed").await;
    client.expect_event("2-0", "renewed").await;
}
