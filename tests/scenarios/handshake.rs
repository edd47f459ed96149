//! The handshake, and the few messages that a client may send.

use std::time::Duration;

use serde_json::json;

use crate::support::client::Received;
use crate::support::config::Config;
use crate::support::http::get;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::token;
use crate::support::upgrade::Answer;
use crate::{JOB, KEY};

async fn stage() -> (Redis, Relay) {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    (redis, relay)
}

#[tokio::test]
async fn the_protocol_is_selected_if_it_is_offered() {
    let (_redis, relay) = stage().await;
    let bearer = format!("bearer.{}", token("alice"));
    let bare = || relay.upgrade(JOB).no_token();
    let cases = [
        (
            bare().protocol("relay.v1").protocol(&bearer),
            Some("relay.v1"),
        ),
        (
            bare().protocol(&bearer).protocol("relay.v1"),
            Some("relay.v1"),
        ),
        (bare().protocol(&bearer).protocol("other"), Some(&*bearer)),
        (relay.upgrade(JOB).protocol("relay.v1"), Some("relay.v1")),
        (relay.upgrade(JOB), None),
    ];
    for (upgrade, selected) in cases {
        let mut client = upgrade.open().await;
        assert_eq!(client.protocol(), selected);
        client.expect_live().await;
    }
}

#[tokio::test]
async fn an_offer_without_our_protocol_is_refused() {
    let (_redis, relay) = stage().await;
    let refusal = relay.upgrade(JOB).protocol("graphql-ws").refused().await;
    assert!([400, 4400].contains(&refusal.code()), "{refusal:?}");
    assert!(!refusal.reason().is_empty());
}

#[tokio::test]
async fn a_refusal_by_close_frame_selects_the_protocol_too() {
    let (_redis, relay) = stage().await;
    let upgrade = relay.upgrade(JOB).no_token();
    let upgrade = upgrade.protocol("relay.v1").protocol("bearer.garbage");
    let Answer::Upgraded(mut client) = upgrade.send().await else {
        panic!("not a close frame");
    };
    assert_eq!(client.protocol(), Some("relay.v1"));
    client.expect_close(4401).await;
}

#[tokio::test]
async fn what_is_no_upgrade_gets_a_status() {
    let (_redis, relay) = stage().await;
    assert_eq!(get(relay.address(), JOB).await.status, 426);
    assert_eq!(get(relay.address(), "/").await.status, 404);
    assert_eq!(get(relay.address(), "/ws/jobs/42/more").await.status, 404);
    assert_eq!(get(relay.address(), "/metrics").await.status, 404);
}

#[tokio::test]
async fn no_such_route() {
    let (_redis, relay) = stage().await;
    for path in [
        "/",
        "/ws/jobs",
        "/ws/jobs/42/",
        "/WS/jobs/42",
        "/ws//jobs/42",
    ] {
        let refusal = relay.upgrade(path).refused().await;
        assert!([404, 4404].contains(&refusal.code()), "{path}: {refusal:?}");
    }
}

#[tokio::test]
async fn another_version_of_websocket() {
    let (_redis, relay) = stage().await;
    let upgrade = relay.upgrade(JOB).header("sec-websocket-version", "8");
    let Answer::Status(response) = upgrade.send().await else {
        panic!("version 8 was accepted");
    };
    assert_eq!(response.status, 426);
    assert_eq!(response.header("sec-websocket-version"), Some("13"));
}

#[tokio::test]
async fn pings_are_answered() {
    let (redis, relay) = stage().await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    client.send(r#"{"type":"ping"}"#).await;
    assert_eq!(client.frame().await, json!({ "type": "pong" }));
    client.send("ping").await;
    assert_eq!(client.frame().await, json!({ "type": "pong" }));
    redis.xadd(KEY, "1-0", "x").await;
    client.expect_event("1-0", "x").await;
}

#[tokio::test]
async fn messages_that_are_too_big() {
    let (_redis, relay) = stage().await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    client.send("x".repeat(17 * 1024)).await;
    client.expect_close(1009).await;
    let labels = [("route", "job"), ("code", "1009")];
    relay
        .metric_reaches("relay_closes_total", &labels, 1.0)
        .await;
}

#[tokio::test]
async fn too_many_messages() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with("[client]\nmax_messages_per_second = 5");
    let relay = Relay::start(&config).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    for _ in 0..30 {
        client.send("ping").await;
    }
    let mut pongs = 0;
    let reason = loop {
        match client.next().await {
            Received::Text(text) => {
                assert_eq!(text, r#"{"type":"pong"}"#);
                pongs += 1;
            }
            Received::Closed(4429, reason) => break reason,
            other => panic!("{other:?} instead of a close with 4429"),
        }
    };
    assert!(!reason.is_empty());
    assert!(pongs <= 10, "{pongs} of 30 were answered");
}

#[tokio::test]
async fn a_few_messages_are_not_too_many() {
    let (_redis, relay) = stage().await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    for _ in 0..3 {
        for _ in 0..5 {
            client.send("ping").await;
            client.expect("pong").await;
        }
        client.expect_silence(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn a_client_that_closes_is_answered_and_gone() {
    let (_redis, relay) = stage().await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    client.close(1000).await;
    client.expect_close(1000).await;
    let labels = [("route", "job"), ("code", "1000")];
    relay
        .metric_reaches("relay_closes_total", &labels, 1.0)
        .await;
    relay.metric_reaches("relay_sessions", &[], 0.0).await;
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_nothing() {
    let (_redis, relay) = stage().await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    relay
        .metric_reaches("relay_sessions", &[("route", "job")], 1.0)
        .await;
    client.vanish();
    relay
        .metric_reaches("relay_sessions", &[("route", "job")], 0.0)
        .await;
    relay.metric_reaches("relay_connections", &[], 0.0).await;
}

#[tokio::test]
async fn messages_that_come_with_the_handshake_are_all_heard() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    // A ping, and then one of ours; no further byte says that there is something to be read.
    let early = [
        &[0x89, 0x80, 0, 0, 0, 0][..],
        &[0x81, 0x84, 0, 0, 0, 0],
        b"ping",
    ]
    .concat();
    let mut client = relay.upgrade(JOB).early(early).open().await;
    client.ignore("live");
    client.expect("pong").await;
}
