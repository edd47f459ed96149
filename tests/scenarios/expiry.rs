//! A token ends while its socket is open.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::api::{FakeApi, Reply, state};
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{now, token_with};
use crate::support::upgrade::Refusal;
use crate::{JOB, KEY};

/// A token that ends in so many seconds, or in one less: it has whole ones only.
fn token_for(seconds: u64) -> String {
    token_with("alice", json!({ "exp": now() + seconds }))
}

#[tokio::test]
async fn s23_closed_at_the_end_of_the_token_and_the_leeway() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).with("[auth]\nleeway = \"1s\"")).await;
    let opened = Instant::now();
    let mut client = relay.upgrade(JOB).token(token_for(2)).open().await;
    client.ignore("expiring");
    client.expect_live().await;
    redis.xadd(KEY, "1-0", "still valid").await;
    client.expect_event("1-0", "still valid").await;
    let mut end = client.next().await;
    while format!("{end:?}").contains("expiring") {
        end = client.next().await;
    }
    let closed = format!("{end:?}");
    assert_eq!(closed, "Closed(4401, \"token_expired\")");
    let lived = opened.elapsed();
    assert!(lived > Duration::from_millis(1_900), "{lived:?}");
    assert!(lived < Duration::from_millis(4_500), "{lived:?}");
    let labels = [("route", "job"), ("code", "4401")];
    relay
        .metric_reaches("relay_closes_total", &labels, 1.0)
        .await;
}

#[tokio::test]
async fn s23_a_socket_may_outlive_its_token() {
    let redis = Redis::start().await;
    let config = "[auth]\nleeway = \"0s\"\nexpiry = \"ignore\"";
    let relay = Relay::start(&Config::new(&redis).with(config)).await;
    let mut client = relay.upgrade(JOB).token(token_for(2)).open().await;
    client.ignore("expiring");
    client.expect_live().await;
    client.expect_silence(Duration::from_secs(3)).await;
    redis.xadd(KEY, "1-0", "still there").await;
    client.expect_event("1-0", "still there").await;
}

#[tokio::test]
async fn s23_expiry_is_looked_at_again_after_the_callback() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis)
        .snapshot_from(&api)
        .with("[auth]\nleeway = \"0s\"")
        .route("[snapshot]\ntimeout = \"5s\"");
    let relay = Relay::start(&config).await;
    api.answer(Reply::json(&state()).delay(Duration::from_millis(2_500)));
    let refusal = relay.upgrade(JOB).token(token_for(2)).refused().await;
    assert_eq!(refusal, Refusal::closed(4401, "token_expired"));
}
