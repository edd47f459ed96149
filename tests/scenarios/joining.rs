//! Joining: history, the snapshot, and the cut between them and what is live.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::api::{FakeApi, Reply, state};
use crate::support::client::Client;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::{JOB, KEY};

#[tokio::test]
async fn s01_late_joiner() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api);
    let relay = Relay::start(&config.route(r#"history = "all""#)).await;
    for number in 1..=5 {
        redis
            .xadd(KEY, &format!("{number}-0"), json!({ "n": number }))
            .await;
    }

    let mut client = relay.open(JOB).await;
    assert_eq!(client.expect_snapshot("connect").await, state());
    assert_eq!(client.cursor(), "0-0", "where the history begins");
    for number in 1..=5 {
        let event = client
            .expect_event(&format!("{number}-0"), json!({ "n": number }))
            .await;
        assert_eq!(event["stream"], KEY);
        assert_eq!(event["cursor"], event["id"]);
    }
    assert_eq!(client.expect_live().await, "5-0");
    redis.xadd(KEY, "6-0", "six").await;
    client.expect_event("6-0", "six").await;
    client.expect_silence(Duration::from_millis(300)).await;
    assert_eq!(api.calls().len(), 1);
}

#[tokio::test]
async fn s02_stream_does_not_exist_yet() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    let mut client = relay.open(JOB).await;
    assert_eq!(client.expect_live().await, "0-0");
    client.expect_silence(Duration::from_secs(3)).await;
    redis.xadd(KEY, "1-0", "the first ever").await;
    client.expect_event("1-0", "the first ever").await;
    client.expect_silence(Duration::from_millis(300)).await;
}

/// A client of a relay whose API is still thinking when `meanwhile` happens.
async fn join_during(relay: &Relay, api: &FakeApi, meanwhile: impl Future<Output = ()>) -> Client {
    api.close_gate();
    let calls = api.calls().len();
    let (client, ()) = tokio::join!(relay.open(JOB), async {
        api.called(calls + 1).await;
        meanwhile.await;
        api.open_gate();
    });
    client
}

#[tokio::test]
async fn s03_entries_during_the_snapshot() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let relay = Relay::start(&Config::new(&redis).snapshot_from(&api)).await;
    redis.xadd(KEY, "1-0", "before").await;

    let mut client = join_during(&relay, &api, async {
        redis.xadd(KEY, "2-0", "during").await;
        redis.xadd(KEY, "3-0", "during, too").await;
    })
    .await;
    client.expect_snapshot("connect").await;
    client.expect_events_around_live(2, 3).await;
    redis.xadd(KEY, "4-0", "after").await;
    client.expect_events_around_live(4, 4).await;
}

#[tokio::test]
async fn s03_nothing_is_sent_before_a_slow_snapshot() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api);
    // Two seconds are as long as a callback may take by default.
    let relay = Relay::start(&config.route("[snapshot]\ntimeout = \"8s\"")).await;
    let mut first = relay.open(JOB).await;
    first.expect_snapshot("connect").await;
    first.expect_live().await;

    api.answer(Reply::json(&json!("late")).delay(Duration::from_secs(2)));
    let (mut second, ()) = tokio::join!(relay.open(JOB), async {
        api.called(2).await;
        redis.fill(KEY, 1, 2, 10).await;
        // The relay has read both, and the callback is still to be answered.
        first.expect_events(1, 2).await;
    });
    assert_eq!(second.expect_snapshot("connect").await, "late");
    assert_eq!(second.cursor(), "0-0");
    second.expect_events_around_live(1, 2).await;
    redis.fill(KEY, 3, 3, 10).await;
    second.expect_events_around_live(3, 3).await;
}

#[tokio::test]
async fn s04_publish_before_commit() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api);
    let relay = Relay::start(&config.route(r#"history = { since = "10s" }"#)).await;
    redis.xadd(KEY, "1-0", "of long ago").await;
    let tail = redis.xadd(KEY, "*", "not committed yet").await;

    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_event(&tail, "not committed yet").await;
    assert_eq!(client.expect_live().await, tail);
    let next = redis.xadd(KEY, "*", "next").await;
    client.expect_event(&next, "next").await;
}

#[tokio::test]
async fn s05_declared_cursor() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let relay = Relay::start(&Config::new(&redis).snapshot_from(&api)).await;
    redis.fill(KEY, 1, 5, 10).await;

    api.answer(Reply::json(&state()).header("relay-cursor", "2-0"));
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    assert_eq!(client.cursor(), "2-0");
    client.expect_events(3, 5).await;
    assert_eq!(client.expect_live().await, "5-0");

    api.answer(Reply::json(&state()).header("relay-cursor", "5-0"));
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    assert_eq!(client.expect_live().await, "5-0");
}

#[tokio::test]
async fn s05_declared_cursor_of_an_entry_that_came_during_the_call() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let relay = Relay::start(&Config::new(&redis).snapshot_from(&api)).await;
    redis.fill(KEY, 1, 3, 10).await;
    api.answer(Reply::json(&state()).header("relay-cursor", "5-0"));
    let mut client = join_during(&relay, &api, redis.fill(KEY, 4, 6, 10)).await;
    client.expect_snapshot("connect").await;
    assert_eq!(client.cursor(), "5-0");
    client.expect_events_around_live(6, 6).await;
}

#[tokio::test]
async fn s05_declared_cursor_that_is_older_than_the_ring() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api);
    let relay = Relay::start(&config.with("[redis]\nring_entries = 16")).await;
    let mut first = relay.open(JOB).await;
    first.expect_snapshot("connect").await;
    first.expect_live().await;
    for number in 1..=200 {
        redis.fill(KEY, number, number, 10).await;
        first.expect_events(number, number).await;
    }
    api.answer(Reply::json(&state()).header("relay-cursor", "7-0"));
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    assert_eq!(client.cursor(), "7-0");
    client.expect_events(8, 200).await;
    assert_eq!(client.expect_live().await, "200-0");
}

#[tokio::test]
async fn s05_declared_cursor_overrides_history() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api);
    let relay = Relay::start(&config.route(r#"history = "all""#)).await;
    redis.fill(KEY, 1, 5, 10).await;
    api.answer(Reply::json(&state()).header("relay-cursor", "4-0"));
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_events(5, 5).await;
    client.expect_live().await;
}

#[tokio::test]
async fn s06_history_is_the_newest() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).route("history = { last = 3 }")).await;
    redis.fill(KEY, 1, 10, 10).await;
    let mut client = relay.open(JOB).await;
    client.expect_events(8, 10).await;
    assert_eq!(client.expect_live().await, "10-0");

    redis.fill("job:43:updates", 1, 2, 10).await;
    let mut client = relay.open("/ws/jobs/43").await;
    client.expect_events(1, 2).await;
    client.expect_live().await;
}

#[tokio::test]
async fn s06_history_that_is_longer_than_the_ring() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).route("history = { last = 1_000 }")).await;
    let mut first = relay.open(JOB).await;
    first.expect_live().await;
    redis.fill(KEY, 1, 5_000, 10).await;
    first.expect_events(1, 5_000).await;
    let mut client = relay.open(JOB).await;
    client.expect_events(4_001, 5_000).await;
    assert_eq!(client.expect_live().await, "5000-0");
}

#[tokio::test]
async fn s06_history_is_only_for_clients_without_a_cursor() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).route(r#"history = "all""#)).await;
    redis.fill(KEY, 1, 5, 10).await;
    let mut client = relay.upgrade(JOB).cursor("4-0").open().await;
    client.expect_events(5, 5).await;
    client.expect_live().await;
    let mut client = relay.upgrade(JOB).cursor("").open().await;
    client.expect_events(1, 5).await;
    client.expect_live().await;
}

/// A deletion is then noticed by the push that it causes, or not at all.
const NO_SWEEP: &str = "[redis]\nsweep = \"1h\"";

#[tokio::test]
async fn s07_publisher_deletes_the_stream_at_the_end() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api).with(NO_SWEEP);
    let relay = Relay::start(&config).await;
    redis.xadd(KEY, "1-0", "started").await;
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;

    redis.xadd(KEY, "2-0", "job_progress").await;
    redis.xadd(KEY, "3-0", "job_completed").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    redis.run(&format!("DEL {KEY}")).await;
    let deleted = Instant::now();
    client.expect_event("2-0", "job_progress").await;
    client.expect_event("3-0", "job_completed").await;
    let resync = client.expect_resync("deleted").await;
    assert_eq!(resync["lost"], "3-0");
    client.expect_snapshot("deleted").await;
    assert!(deleted.elapsed() < Duration::from_secs(2));
    assert_eq!(client.expect_live().await, "0-0");

    redis.xadd(KEY, "1-0", "once more").await;
    client.expect_event("1-0", "once more").await;
}

#[tokio::test]
async fn s07_the_deletion_wins() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api).with(NO_SWEEP);
    let relay = Relay::start(&config).await;
    redis.xadd(KEY, "1-0", "started").await;
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;

    let deleted = Instant::now();
    redis
        .transaction(&[
            format!("XADD {KEY} 2-0 data job_completed"),
            format!("DEL {KEY}"),
        ])
        .await;
    client.expect_resync("deleted").await;
    client.expect_snapshot("deleted").await;
    assert!(deleted.elapsed() < Duration::from_secs(2));
    client.expect_live().await;
    redis.xadd(KEY, "3-0", "once more").await;
    client.expect_event("3-0", "once more").await;
}
