//! Sockets that are open for a long time.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::config::Config;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::{JOB, KEY};

/// Fifteen minutes behind a proxy that cuts after one: here a minute is a second, and the relay
/// pings every 300 ms where it does every 25 s.
#[tokio::test]
async fn s29_idle_behind_a_proxy_that_cuts_what_is_idle() {
    let redis = Redis::start().await;
    let config = "[keepalive]\nping = \"300ms\"\ntimeout = \"2s\"";
    let relay = Relay::start(&Config::new(&redis).with(config)).await;
    let proxy = Proxy::start(relay.address().to_string()).await;
    proxy.cut_idle(Duration::from_secs(1));
    let upgrade = relay.upgrade(JOB).through(proxy.address());
    let mut client = upgrade.open().await;
    client.expect_live().await;
    client.expect_silence(Duration::from_secs(15)).await;
    assert!(client.pings() >= 25, "{} pings in 15 s", client.pings());
    let start = Instant::now();
    redis.xadd(KEY, "1-0", "at once").await;
    client.expect_event("1-0", "at once").await;
    assert!(start.elapsed() < Duration::from_millis(500));
}

#[tokio::test]
async fn s29_pings_of_the_client_are_answered() {
    let redis = Redis::start().await;
    let config = "[keepalive]\nping = \"1h\"\ntimeout = \"2h\"";
    let relay = Relay::start(&Config::new(&redis).with(config)).await;
    let proxy = Proxy::start(relay.address().to_string()).await;
    proxy.cut_idle(Duration::from_secs(2));
    let upgrade = relay.upgrade(JOB).through(proxy.address());
    let mut client = upgrade.open().await;
    client.expect_live().await;
    for _ in 0..4 {
        client.expect_silence(Duration::from_secs(1)).await;
        client.send_ping().await;
    }
    assert_eq!(client.pongs(), 3);
}

#[tokio::test]
async fn max_age() {
    let redis = Redis::start().await;
    let config = "[keepalive]\nmax_age = \"2s\"";
    let relay = Relay::start(&Config::new(&redis).with(config)).await;
    let opened = Instant::now();
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    let goaway = client.expect("goaway").await;
    assert_eq!(goaway["reason"], "max_age");
    assert!(goaway["retry_after_ms"].is_u64(), "{goaway}");
    client.expect_close(1012).await;
    let lived = opened.elapsed();
    assert!(lived > Duration::from_millis(1_500), "{lived:?}");
    assert!(lived < Duration::from_millis(3_000), "{lived:?}");
    redis.xadd(KEY, "1-0", "meanwhile").await;
    let mut client = relay.upgrade(JOB).cursor(&client.cursor()).open().await;
    client.expect_events_around_live(1, 1).await;
}
