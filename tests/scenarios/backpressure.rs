//! Clients that read slowly, or not at all: they cost nobody anything.

use crate::support::api::FakeApi;
use crate::support::client::{Client, Received};
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::{JOB, KEY};

const KIB: usize = 1024;

/// A client whose kernel takes little.
async fn slow_client(relay: &Relay) -> Client {
    let mut client = relay.upgrade(JOB).receive_buffer(4 * KIB).open().await;
    client.expect_live().await;
    client
}

#[tokio::test]
async fn s14_write_timeout() {
    const ENTRIES: u64 = 3_000;
    let redis = Redis::start().await;
    let config = Config::new(&redis).route("[slow]\nwrite_timeout = \"1s\"");
    let relay = Relay::start(&config).await;
    let mut client = slow_client(&relay).await;
    redis.fill(KEY, 1, ENTRIES, KIB).await;
    let labels = [("route", "job"), ("code", "4408")];
    relay
        .metric_reaches("relay_closes_total", &labels, 1.0)
        .await;

    let mut next = 1;
    loop {
        match client.next().await {
            Received::Text(text) => {
                assert!(text.contains(&format!("\"id\":\"{next}-0\"")), "{text}");
                next += 1;
            }
            Received::Cut => break,
            closed @ Received::Closed(..) => panic!("{closed:?} can't have passed"),
        }
    }
    assert!(next < ENTRIES, "the kernel has taken everything");
    let cursor = format!("{}-0", next - 1);
    let mut client = relay.upgrade(JOB).cursor(&cursor).open().await;
    client.expect_events(next, ENTRIES).await;
}

/// Reads events, which must ascend, up to the first other frame or the end.
async fn read_events(client: &mut Client, first: u64) -> (u64, Received) {
    let mut next = first;
    loop {
        let received = client.next().await;
        let Received::Text(text) = &received else {
            return (next, received);
        };
        if !text.contains("\"event\"") {
            return (next, received);
        }
        assert!(text.contains(&format!("\"id\":\"{next}-0\"")), "{text}");
        next += 1;
    }
}

#[tokio::test]
async fn s15_a_client_that_lags_is_closed() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).route("[slow]\nmax_lag = 50\nthen = \"close\"");
    let relay = Relay::start(&config).await;
    let mut client = slow_client(&relay).await;
    redis.fill(KEY, 1, 3_000, KIB).await;
    let (next, end) = read_events(&mut client, 1).await;
    assert!(next < 3_000, "it was never behind");
    let Received::Closed(4408, reason) = end else {
        panic!("{end:?} instead of a close with 4408");
    };
    assert!(!reason.is_empty());
    let labels = [("route", "job"), ("code", "4408")];
    relay
        .metric_reaches("relay_closes_total", &labels, 1.0)
        .await;
    let cursor = format!("{}-0", next - 1);
    let mut client = relay.upgrade(JOB).cursor(&cursor).open().await;
    client.expect_events(next, 3_000).await;
}

#[tokio::test]
async fn s15_a_client_that_lags_is_given_a_snapshot() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis)
        .snapshot_from(&api)
        .route("[slow]\nmax_lag = 50\nthen = \"resync\"");
    let relay = Relay::start(&config).await;
    let upgrade = relay.upgrade(JOB).receive_buffer(4 * KIB);
    let mut client = upgrade.open().await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    redis.fill(KEY, 1, 3_000, KIB).await;
    let (next, received) = read_events(&mut client, 1).await;
    assert!(next < 3_000, "it was never behind");
    let Received::Text(text) = received else {
        panic!("{received:?} instead of a resync");
    };
    assert!(
        text.contains("\"resync\"") && text.contains("\"lagged\""),
        "{text}"
    );
    client.expect_snapshot("lagged").await;
    assert_eq!(client.expect_live().await, "3000-0");
    redis.xadd(KEY, "3001-0", "now").await;
    client.expect_event("3001-0", "now").await;
    assert_eq!(api.calls().len(), 2);
}

#[tokio::test]
async fn s15_replaying_is_not_lagging() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).route("history = \"all\"\n[slow]\nmax_lag = 50");
    let relay = Relay::start(&config).await;
    redis.fill(KEY, 1, 3_000, KIB).await;
    let upgrade = relay.upgrade(JOB).receive_buffer(4 * KIB);
    let mut client = upgrade.open().await;
    client.expect_events(1, 3_000).await;
    client.expect_live().await;
}

#[tokio::test]
async fn s16_a_history_that_is_trimmed_between_two_readers() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).route(r#"history = "all""#)).await;
    redis.fill(KEY, 1, 2_000, KIB).await;
    let mut first = relay.open(JOB).await;
    first.expect_events(1, 2_000).await;
    first.expect_live().await;
    redis.run(&format!("XTRIM {KEY} MAXLEN 1000")).await;
    let mut second = relay.open(JOB).await;
    second.expect_events(1_001, 2_000).await;
    second.expect_live().await;
}
