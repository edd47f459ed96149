//! Tokens that come on an open connection: the first, and fresh ones.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::api::FakeApi;
use crate::support::client::{Client, Received};
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{now, token, token_with};
use crate::support::upgrade::Refusal;
use crate::{JOB, KEY};

fn auth(token: &str) -> String {
    json!({ "type": "auth", "token": token }).to_string()
}

fn token_for(subject: &str, seconds: u64, changes: &Value) -> String {
    let mut claims = json!({ "exp": now() + seconds });
    for (name, value) in changes.as_object().expect("claims") {
        claims[name] = value.clone();
    }
    token_with(subject, claims)
}

/// The relay has judged so many fresh tokens this way.
async fn renewed(relay: &Relay, outcome: &str, times: f64) {
    let labels = [("route", "job"), ("outcome", outcome)];
    relay
        .metric_reaches("relay_token_renewals_total", &labels, times)
        .await;
}

#[tokio::test]
async fn s23_a_fresh_token_of_the_same_subject_keeps_the_socket() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).with("[auth]\nleeway = \"0s\"")).await;
    let first = token_for("alice", 3, &json!({}));
    let mut client = relay.upgrade(JOB).token(first).open().await;
    client.expect_live().await;
    client
        .send(auth(&token_for("alice", 3_600, &json!({}))))
        .await;
    renewed(&relay, "accepted", 1.0).await;
    // Longer than the first token had.
    client.expect_silence(Duration::from_secs(4)).await;
    redis.xadd(KEY, "1-0", "still there").await;
    client.expect_event("1-0", "still there").await;
}

#[tokio::test]
async fn s23_a_fresh_token_ends_too() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).with("[auth]\nleeway = \"0s\"")).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    client.send(auth(&token_for("alice", 2, &json!({})))).await;
    assert_eq!(client.expect_close(4401).await, "token_expired");
}

#[tokio::test]
async fn s23_any_other_token_closes_the_socket() {
    let redis = Redis::start().await;
    let config = Config::new(&redis)
        .route("streams = [\"job:{claims.team}\"]\nauthorize = \"!has(claims.banned)\"");
    let relay = Relay::start(&config).await;
    let team = |name: &str| json!({ "team": name });
    let cases = [
        (token_for("bob", 3_600, &team("red")), 4403, "grant_changed"),
        (
            token_for("alice", 3_600, &team("blue")),
            4403,
            "grant_changed",
        ),
        (
            token_for("alice", 3_600, &json!({ "team": "red", "banned": true })),
            4403,
            "not_allowed",
        ),
        (
            token_for("alice", 3_600, &json!({})),
            4403,
            "claim_unusable",
        ),
        ("x.y.z".to_owned(), 4401, "token_malformed"),
        (String::new(), 4401, "token_malformed"),
    ];
    for (index, (fresh, code, reason)) in cases.iter().enumerate() {
        let first = token_for("alice", 3_600, &team("red"));
        let mut client = relay.upgrade(JOB).token(first).open().await;
        client.expect_live().await;
        client.send(auth(fresh)).await;
        assert_eq!(client.expect_close(*code).await, *reason);
        renewed(&relay, "refused", index as f64 + 1.0).await;
        let claims = fresh.split('.').nth(1).filter(|part| part.len() > 20);
        assert!(!claims.is_some_and(|claims| relay.log_contains(claims)));
    }
}

#[tokio::test]
async fn s23_without_a_subject_nothing_is_renewed() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    let anonymous = || token_for("alice", 3_600, &json!({ "sub": null }));
    let mut client = relay.upgrade(JOB).token(anonymous()).open().await;
    client.expect_live().await;
    client.send(auth(&anonymous())).await;
    assert_eq!(client.expect_close(4403).await, "grant_changed");
}

#[tokio::test]
async fn on_a_public_route_there_is_nothing_to_renew() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).route("auth = \"none\"")).await;
    let mut client = relay.upgrade(JOB).no_token().open().await;
    client.expect_live().await;
    client.send(auth("x.y.z")).await;
    client.send("ping").await;
    client.expect("pong").await;
}

#[tokio::test]
async fn later_callbacks_carry_the_fresh_token() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis)
        .snapshot_from(&api)
        .route("[snapshot.headers]\nx-role = \"{claims.role}\"");
    let relay = Relay::start(&config).await;
    redis.xadd(KEY, "1-0", "old").await;
    let first = token_for("alice", 3_600, &json!({ "role": "old" }));
    let mut client = relay.upgrade(JOB).token(first).open().await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    let fresh = token_for("alice", 3_600, &json!({ "role": "new" }));
    client.send(auth(&fresh)).await;
    renewed(&relay, "accepted", 1.0).await;
    redis.run(&format!("DEL {KEY}")).await;
    client.expect_fresh_start("deleted").await;
    let calls = api.calls();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0].headers["x-role"], "old");
    assert_eq!(calls[1].headers["x-role"], "new");
    assert_eq!(calls[1].headers["authorization"], format!("Bearer {fresh}"));
}

async fn with_first_message(redis: &Redis) -> Relay {
    let config = Config::new(redis).with(
        "[auth]\ntoken_from = [\"header\", \"first_message\"]\n[server]\nhandshake_timeout = \"1s\"",
    );
    Relay::start(&config).await
}

/// A client that was accepted, and has not said who it is.
async fn unknown(relay: &Relay) -> Client {
    relay.upgrade(JOB).no_token().open().await
}

#[tokio::test]
async fn s22_the_token_may_come_in_the_first_message() {
    let redis = Redis::start().await;
    let relay = with_first_message(&redis).await;
    redis.xadd(KEY, "1-0", "one").await;
    let mut client = unknown(&relay).await;
    client.send_ping().await;
    client.send(auth(&token("alice"))).await;
    assert_eq!(client.expect_live().await, "1-0");
    redis.xadd(KEY, "2-0", "two").await;
    client.expect_event("2-0", "two").await;
    let labels = [("route", "job"), ("outcome", "accepted")];
    relay
        .metric_reaches("relay_connects_total", &labels, 1.0)
        .await;
    // A cursor is read as ever, and a token in another place is not waited for.
    let mut client = relay.upgrade(JOB).no_token().cursor("1-0").open().await;
    client.send(auth(&token("alice"))).await;
    client.expect_event("2-0", "two").await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
}

#[tokio::test]
async fn what_comes_with_the_first_message_is_heard() {
    let redis = Redis::start().await;
    let api = FakeApi::start().await;
    let config = Config::new(&redis)
        .with("[auth]\ntoken_from = [\"first_message\"]")
        .snapshot_from(&api);
    let relay = Relay::start(&config).await;
    api.close_gate();
    let mut client = unknown(&relay).await;
    // Both in one segment: no further byte says that there is something to be read.
    let mut bytes = masked(&auth(&token("alice")));
    bytes.extend(masked("ping"));
    client.send_bytes(&bytes).await;
    api.called(1).await;
    api.open_gate();
    client.expect_snapshot("connect").await;
    client.ignore("live");
    client.expect("pong").await;
}

#[tokio::test]
async fn a_client_that_closes_while_it_is_looked_at_gives_its_place_back() {
    let redis = Redis::start().await;
    let api = FakeApi::start().await;
    let config = Config::new(&redis)
        .with("[auth]\ntoken_from = [\"first_message\"]")
        .snapshot_from(&api)
        .route("[snapshot]\nmax_in_flight = 1\ntimeout = \"1m\"");
    let relay = Relay::start(&config).await;
    api.close_gate();
    let mut first = unknown(&relay).await;
    first.send(auth(&token("alice"))).await;
    api.called(1).await;
    first.send_ping().await;
    first.close(1001).await;
    assert_eq!(first.expect_close(1001).await, "");
    assert_eq!(first.pongs(), 1);
    let mut second = unknown(&relay).await;
    second.send(auth(&token("alice"))).await;
    api.called(2).await;
    api.open_gate();
    second.expect_snapshot("connect").await;
}

/// A text message as it goes over the wire, masked with zeros.
fn masked(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("a short text");
    let mut bytes = vec![0x81];
    match length {
        0..126 => bytes.push(0x80 | text.len() as u8),
        _ => {
            bytes.push(0xfe);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(text.as_bytes());
    bytes
}

#[tokio::test]
async fn s22_without_a_token_in_the_first_message_there_is_nothing() {
    let redis = Redis::start().await;
    let relay = with_first_message(&redis).await;
    let expired = token_with("alice", json!({ "exp": now() - 3_600 }));
    let cases = [
        (Some(auth(&expired)), "token_expired"),
        (Some(auth("garbage")), "token_malformed"),
        (Some("ping".to_owned()), "token_missing"),
        (Some(r#"{"type":"auth"}"#.to_owned()), "token_missing"),
        (None, "token_missing"),
    ];
    for (message, reason) in cases {
        let mut client = unknown(&relay).await;
        if let Some(message) = message {
            client.send(message).await;
        }
        match client.next().await {
            Received::Closed(4401, told) => assert_eq!(told, reason),
            other => panic!("{other:?} instead of {reason}"),
        }
        let labels = [("route", "job"), ("outcome", reason)];
        assert!(relay.metrics().await.value("relay_connects_total", &labels) >= 1.0);
    }
    assert!(
        redis.connections().await.len() <= 4,
        "Redis was asked for nobody"
    );
    // A token elsewhere decides, even a bad one.
    let refusal = relay.upgrade(JOB).token("x.y.z").refused().await;
    assert_eq!(refusal, Refusal::closed(4401, "token_malformed"));
}

#[tokio::test]
async fn who_does_not_say_who_it_is_keeps_no_place() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with(
        "[auth]\ntoken_from = [\"first_message\"]\n[server]\nhandshake_timeout = \"1s\"\nmax_connections = 2",
    );
    let relay = Relay::start(&config).await;
    let mut silent = unknown(&relay).await;
    let gone = unknown(&relay).await;
    gone.vanish();
    assert_eq!(silent.expect_close(4401).await, "token_missing");
    drop(silent);
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = unknown(&relay).await;
        client.send(auth(&token("alice"))).await;
        client.expect_live().await;
        clients.push(client);
    }
}

#[tokio::test]
async fn a_drain_does_not_wait_for_first_messages() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with(
        "[auth]\ntoken_from = [\"first_message\"]\n[server]\nhandshake_timeout = \"1m\"\n[drain]\ndelay = \"0s\"\nwindow = \"0s\"\ngrace = \"5s\"",
    );
    let mut relay = Relay::start(&config).await;
    let mut client = unknown(&relay).await;
    relay.sigterm();
    assert_eq!(client.expect_close(1013).await, "draining");
    assert!(relay.wait_exit(Duration::from_secs(10)).await.success());
}
