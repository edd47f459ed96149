//! Clients that send without end, in every way that the protocol has.

use std::time::Duration;

use crate::support::client::{Client, Received};
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::{JOB, KEY};

async fn stage(client: &str) -> (Redis, Relay) {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with(&format!("[client]\n{client}"));
    let relay = Relay::start(&config).await;
    (redis, relay)
}

async fn closed(client: Client) -> (u16, String) {
    match client.drain().await {
        (_, Received::Closed(code, reason)) => (code, reason),
        (_, end) => panic!("{end:?} instead of a close"),
    }
}

#[tokio::test]
async fn s27_pings_without_end() {
    let (redis, relay) = stage("max_messages_per_second = 3").await;
    let mut other = relay.open(JOB).await;
    other.expect_live().await;
    let mut flood = relay.open(JOB).await;
    flood.expect_live().await;
    for _ in 0..200 {
        flood.send_ping().await;
    }
    assert_eq!(closed(flood).await, (4429, "too_many_messages".to_owned()));
    let labels = [("route", "job"), ("code", "4429")];
    relay
        .metric_reaches("relay_closes_total", &labels, 1.0)
        .await;
    redis.xadd(KEY, "1-0", "unharmed").await;
    other.expect_event("1-0", "unharmed").await;
}

#[tokio::test]
async fn s27_pongs_that_nobody_asked_for() {
    let (_redis, relay) = stage("max_messages_per_second = 3").await;
    let mut flood = relay.open(JOB).await;
    flood.expect_live().await;
    for _ in 0..200 {
        flood.send_pong().await;
    }
    assert_eq!(closed(flood).await, (4429, "too_many_messages".to_owned()));
}

#[tokio::test]
async fn answers_to_pings_are_never_too_many() {
    let redis = Redis::start().await;
    let config = "[client]\nmax_messages_per_second = 1\n[keepalive]\nping = \"10ms\"";
    let relay = Relay::start(&Config::new(&redis).with(config)).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    client.expect_silence(Duration::from_secs(2)).await;
    assert!(client.pings() > 30, "{} pings", client.pings());
}

#[tokio::test]
async fn s27_empty_fragments_without_end() {
    let (redis, relay) = stage("max_message = \"1KiB\"").await;
    let mut other = relay.open(JOB).await;
    other.expect_live().await;
    let mut endless = relay.open(JOB).await;
    endless.expect_live().await;
    endless.send_fragment("", true).await;
    for _ in 0..3_000 {
        endless.send_fragment("", false).await;
    }
    assert_eq!(closed(endless).await, (1009, "message_too_big".to_owned()));
    redis.xadd(KEY, "1-0", "unharmed").await;
    other.expect_event("1-0", "unharmed").await;
}

#[tokio::test]
async fn a_message_in_the_smallest_parts_is_taken() {
    let (_redis, relay) = stage("max_message = \"1KiB\"").await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    for _ in 0..3 {
        client.send_fragment(" ", true).await;
        for _ in 0..1_000 {
            client.send_fragment(" ", false).await;
        }
        client.send_last_fragment("").await;
        client.send("ping").await;
        client.expect("pong").await;
    }
}

/// An empty text message, masked.
const EMPTY: [u8; 6] = [0x81, 0x80, 0, 0, 0, 0];

#[tokio::test]
async fn s27_messages_of_a_client_that_does_not_read() {
    let redis = Redis::start().await;
    let config = Config::new(&redis)
        .with("[server]\nsend_buffer = \"4KiB\"")
        .route("[slow]\nwrite_timeout = \"1m\"");
    let relay = Relay::start(&config).await;
    let mut flood = relay.upgrade(JOB).receive_buffer(4096).open().await;
    flood.expect_live().await;
    // More than the kernels take: it is stuck from here on.
    redis.xadd(KEY, "1-0", &"x".repeat(256 * 1024)).await;
    relay
        .metric_reaches("relay_frames_sent_total", &[], 2.0)
        .await;
    flood.send_bytes(&EMPTY.repeat(100_000)).await;
    let labels = [("route", "job"), ("code", "4429")];
    relay
        .metric_reaches("relay_closes_total", &labels, 1.0)
        .await;
}
