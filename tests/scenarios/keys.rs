//! Many keys on few connections, and keys that can't be read.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::client::Client;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::upgrade::Refusal;
use crate::support::wait::eventually;

/// Clients of the jobs `0` to `count - 1`, all live.
async fn clients_of(relay: &Relay, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for job in 0..count {
        let mut client = relay.open(&format!("/ws/jobs/{job}")).await;
        client.expect_live().await;
        clients.push(client);
    }
    clients
}

/// The time from an XADD to its frame for keys that nobody has read before, in the middle of
/// twenty tries.
async fn median_of_new_keys(redis: &Redis, relay: &Relay) -> Duration {
    let mut times = Vec::new();
    for job in 0..20 {
        let mut client = relay.open(&format!("/ws/jobs/new-{job}")).await;
        client.expect_live().await;
        let start = Instant::now();
        redis
            .xadd(&format!("job:new-{job}:updates"), "1-0", "x")
            .await;
        client.expect_event("1-0", "x").await;
        times.push(start.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

const USER: &str = "[redis]\nusername = \"relay\"\npassword = \"a-password-of-redis\"";

#[tokio::test]
async fn s18_polling_can_be_asked_for() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).with("[redis]\nwake = \"poll\"")).await;
    let median = median_of_new_keys(&redis, &relay).await;
    assert!(median < Duration::from_millis(100), "{median:?}");
    let commands = redis.commands().await;
    assert!(!commands.contains_key("client|tracking"), "{commands:?}");
}

#[tokio::test]
async fn s19_a_key_of_the_wrong_type() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    let mut clients = clients_of(&relay, 3).await;
    let mut beside = relay.open("/ws/jobs/0").await;
    beside.expect_live().await;
    redis
        .transaction(&["DEL job:0:updates", "SET job:0:updates poison"].map(ToOwned::to_owned))
        .await;
    let mut poisoned = clients.remove(0);
    let reason = poisoned.expect_close(1011).await;
    assert!(!reason.is_empty());
    assert_eq!(beside.expect_close(1011).await, reason);
    let labels = [("route", "job"), ("code", "1011")];
    relay
        .metric_reaches("relay_closes_total", &labels, 2.0)
        .await;
    for (job, client) in clients.iter_mut().enumerate() {
        let key = format!("job:{}:updates", job + 1);
        redis.xadd(&key, "1-0", "still there").await;
        client.expect_event("1-0", "still there").await;
    }
    let refusal = relay.upgrade("/ws/jobs/0").refused().await;
    assert_eq!(refusal, Refusal::closed(1011, &reason));
    relay.metric_reaches("relay_redis_up", &[], 1.0).await;
    relay
        .metric_reaches("relay_redis_reconnects_total", &[], 0.0)
        .await;

    redis.run("DEL job:0:updates").await;
    let healed = eventually("the key is served again", async || {
        let mut client = relay.open("/ws/jobs/0").await;
        let text = tokio::time::timeout(Duration::from_secs(1), client.receive()).await;
        format!("{text:?}").contains("live").then_some(client)
    });
    let mut client = healed.await;
    redis.xadd("job:0:updates", "1-0", "healed").await;
    client.expect_event("1-0", "healed").await;
}

#[tokio::test]
async fn s19_refused_from_memory() {
    let redis = Redis::start().await;
    redis.run("SET job:poisoned:updates x").await;
    let relay = Relay::start(&Config::new(&redis)).await;
    let path = "/ws/jobs/poisoned";
    let first = relay.upgrade(path).refused().await;
    assert_eq!(first.code(), 1011);
    let before = redis.reads().await;
    for _ in 0..20 {
        assert_eq!(relay.upgrade(path).refused().await, first);
    }
    let reads = redis.reads().await - before;
    assert!(reads <= 2, "{reads} reads of a poisoned key");
}

#[tokio::test]
async fn s19_a_key_without_permission() {
    let redis = Redis::start().await;
    redis
        .run("ACL SETUSER relay on >a-password-of-redis ~job:open-* +@all")
        .await;
    let relay = Relay::start(&Config::new(&redis).with(USER)).await;
    let mut open = relay.open("/ws/jobs/open-1").await;
    open.expect_live().await;
    let refusal = relay.upgrade("/ws/jobs/closed").refused().await;
    assert_eq!(refusal.code(), 1011);
    assert!(!refusal.reason().is_empty());
    redis.xadd("job:open-1:updates", "1-0", "still there").await;
    open.expect_event("1-0", "still there").await;
}

#[tokio::test]
async fn s19_permission_is_taken_away() {
    let redis = Redis::start().await;
    redis
        .run("ACL SETUSER relay on >a-password-of-redis ~* +@all")
        .await;
    let relay = Relay::start(&Config::new(&redis).with(USER)).await;
    let mut clients = clients_of(&relay, 2).await;
    redis.run("ACL SETUSER relay resetkeys ~job:1:*").await;
    redis.xadd("job:0:updates", "1-0", "not for us").await;
    redis.xadd("job:1:updates", "1-0", "still there").await;
    let mut lost = clients.remove(0);
    assert!(!lost.expect_close(1011).await.is_empty());
    clients[0].expect_event("1-0", "still there").await;
}
