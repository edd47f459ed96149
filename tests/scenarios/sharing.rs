//! One callback for many clients.

use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::api::{FakeApi, Reply, state};
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::{JOB, KEY};

async fn stage(settings: &str) -> (Redis, FakeApi, Relay) {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api).route(&format!(
        "[snapshot]\nforward = []\nshare = \"url\"\ntimeout = \"8s\"\n{settings}"
    ));
    let relay = Relay::start(&config).await;
    (redis, api, relay)
}

#[tokio::test]
async fn s12_a_joiner_of_a_callback_in_flight_loses_nothing() {
    let (redis, api, relay) = stage("").await;
    redis.xadd(KEY, "1-0", "before").await;
    // A client that comes back needs no snapshot: it shows what the relay has read.
    let mut watcher = relay.upgrade(JOB).cursor("1-0").open().await;
    watcher.expect_live().await;

    api.close_gate();
    let join = async {
        api.called(1).await;
        redis.xadd(KEY, "2-0", "since it was sent").await;
        watcher.expect_event("2-0", "since it was sent").await;
        let open_later = async {
            // The joiner has attached: its connection is there beside the other two.
            relay.metric_reaches("relay_connections", &[], 3.0).await;
            api.open_gate();
        };
        tokio::join!(relay.open(JOB), open_later).0
    };
    let (mut first, mut joiner) = tokio::join!(relay.open(JOB), join);
    for client in [&mut first, &mut joiner] {
        assert_eq!(client.expect_snapshot("connect").await, state());
        assert_eq!(client.cursor(), "1-0");
        client.expect_events_around_live(2, 2).await;
    }
    assert_eq!(api.calls().len(), 1);
}

#[tokio::test]
async fn s12_a_crowd_asks_once() {
    let (redis, api, relay) = stage("").await;
    redis.xadd(KEY, "1-0", "before").await;
    api.close_gate();
    let mut crowd = JoinSet::new();
    for _ in 0..50 {
        let upgrade = relay.upgrade(JOB);
        crowd.spawn(async move {
            let mut client = upgrade.open().await;
            client.expect_snapshot("connect").await;
            client.expect_live().await
        });
    }
    relay.metric_reaches("relay_connections", &[], 50.0).await;
    api.open_gate();
    let cursors = crowd.join_all().await;
    assert_eq!(cursors, vec!["1-0"; 50]);
    // Those that had connected but not asked yet may have come too late for the first.
    assert!(api.calls().len() <= 3, "{} calls", api.calls().len());
}

#[tokio::test]
async fn other_urls_are_not_shared() {
    let (_redis, api, relay) = stage("share_ttl = \"1m\"").await;
    for job in ["42", "43", "42"] {
        api.answer(Reply::json(&json!(job)));
        let mut client = relay.open(&format!("/ws/jobs/{job}")).await;
        assert_eq!(client.expect_snapshot("connect").await, job);
        client.expect_live().await;
    }
    assert_eq!(api.calls().len(), 2);
}

#[tokio::test]
async fn a_kept_body_keeps_its_position() {
    let (redis, api, relay) = stage("share_ttl = \"1m\"").await;
    redis.fill(KEY, 1, 3, 10).await;
    let mut first = relay.open(JOB).await;
    first.expect_snapshot("connect").await;
    first.expect_live().await;
    redis.fill(KEY, 4, 6, 10).await;
    first.expect_events(4, 6).await;

    // The stream supplies the difference.
    let mut later = relay.open(JOB).await;
    later.expect_snapshot("connect").await;
    assert_eq!(later.cursor(), "3-0");
    later.expect_events(4, 6).await;
    later.expect_live().await;
    assert_eq!(api.calls().len(), 1);
}

#[tokio::test]
async fn a_body_is_kept_no_longer_than_it_may() {
    let (_redis, api, relay) = stage("share_ttl = \"500ms\"").await;
    relay.open(JOB).await.expect_snapshot("connect").await;
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    assert_eq!(api.calls().len(), 1);
    client.expect_silence(Duration::from_millis(700)).await;
    relay.open(JOB).await.expect_snapshot("connect").await;
    assert_eq!(api.calls().len(), 2);
}

#[tokio::test]
async fn failures_are_not_kept() {
    let (_redis, api, relay) = stage("share_ttl = \"1m\"\nretries = 0").await;
    api.answer_once(Reply::status(500));
    assert_eq!(relay.upgrade(JOB).refused().await.code(), 1011);
    relay.open(JOB).await.expect_snapshot("connect").await;
    assert_eq!(api.calls().len(), 2);
}

#[tokio::test]
async fn a_resync_takes_no_body_from_before_the_gap() {
    let (redis, api, relay) = stage("share_ttl = \"1m\"").await;
    redis.xadd(KEY, "1-0", "one").await;
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    api.answer(Reply::json(&json!("after the gap")));
    let lines: Vec<String> = (2..=51)
        .map(|number| format!("XADD {KEY} MAXLEN 5 {number}-0 data {number}"))
        .collect();
    redis.transaction(&lines).await;
    client.expect_resync("trimmed").await;
    assert_eq!(client.expect_snapshot("trimmed").await, "after the gap");
    client.expect_live().await;
    assert_eq!(api.calls().len(), 2);
}
