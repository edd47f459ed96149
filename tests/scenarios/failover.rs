//! Another server takes over: with less than the old one had, or while the old one lives on.

use std::time::Duration;

use crate::support::api::FakeApi;
use crate::support::client::Client;
use crate::support::config::Config;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::wait::eventually;
use crate::{JOB, KEY};

/// A replica that has all that its primary has.
async fn replica_of(primary: &Redis) -> Redis {
    let replica = Redis::start().await;
    let follow = format!("REPLICAOF 127.0.0.1 {}", primary.port());
    replica.run(&follow).await;
    eventually("the replica is in step", async || {
        let link = replica.info("replication", "master_link_status").await;
        let length = format!("XLEN {KEY}");
        let behind = replica.query::<u64>(&length).await < primary.query(&length).await;
        (link == "up" && !behind).then_some(())
    })
    .await;
    replica
}

#[tokio::test]
async fn s10d_a_replica_that_lacks_entries_is_promoted() {
    let (primary, api) = (Redis::start().await, FakeApi::start().await);
    primary.fill(KEY, 1, 5, 10).await;
    let replica = replica_of(&primary).await;
    let proxy = Proxy::start(primary.address()).await;
    let relay = Relay::start(&Config::through(&proxy).snapshot_from(&api)).await;
    let mut had = relay.open(JOB).await;
    had.expect_snapshot("connect").await;
    had.expect_live().await;
    had.ignore("status");

    replica.run("REPLICAOF NO ONE").await;
    primary.fill(KEY, 6, 7, 10).await;
    had.expect_events(6, 7).await;
    proxy.retarget(replica.address());
    replica.fill(KEY, 8, 9, 10).await;
    proxy.cut();
    proxy.restore();

    let resync = had.expect_resync("rolled_back").await;
    assert_eq!(resync["lost"], "7-0");
    had.expect_snapshot("rolled_back").await;
    had.expect_live().await;
    let calls = api.calls().len();
    let mut had_not = relay.upgrade(JOB).cursor("5-0").open().await;
    had_not.ignore("status");
    had_not.expect_events_around_live(8, 9).await;
    assert_eq!(api.calls().len(), calls, "it goes on without a snapshot");
    let mut had_too = relay.upgrade(JOB).cursor("7-0").open().await;
    had_too.ignore("status");
    had_too.expect_fresh_start("rolled_back").await;

    replica.xadd(KEY, "10-0", "next").await;
    had.expect_event("10-0", "next").await;
    had_not.expect_events_around_live(10, 10).await;
    had_too.expect_event("10-0", "next").await;
}

/// Two relays, each on its own way to the primary. One is cut off before the last two entries
/// come: its clients never get them, and stay connected.
#[tokio::test]
async fn s10d_those_who_had_not_what_is_lost_go_on_where_they_are() {
    let (primary, api) = (Redis::start().await, FakeApi::start().await);
    primary.fill(KEY, 1, 5, 10).await;
    let replica = replica_of(&primary).await;
    let (near, far) = (
        Proxy::start(primary.address()).await,
        Proxy::start(primary.address()).await,
    );
    let relays = [
        Relay::start(&Config::through(&near).snapshot_from(&api)).await,
        Relay::start(&Config::through(&far).snapshot_from(&api)).await,
    ];
    let mut had = live(&relays[0]).await;
    let mut had_not = live(&relays[1]).await;
    let calls = api.calls().len();

    far.cut();
    replica.run("REPLICAOF NO ONE").await;
    primary.fill(KEY, 6, 7, 10).await;
    had.expect_events(6, 7).await;
    near.cut();
    replica.fill(KEY, 8, 9, 10).await;
    for proxy in [&near, &far] {
        proxy.retarget(replica.address());
        proxy.restore();
    }
    had_not.expect_events(8, 9).await;
    let resync = had.expect_resync("rolled_back").await;
    assert_eq!(resync["lost"], "7-0");
    had.expect_snapshot("rolled_back").await;
    assert_eq!(had.expect_live().await, "9-0");
    assert_eq!(api.calls().len(), calls + 1, "only one has lost anything");

    replica.xadd(KEY, "10-0", "next").await;
    for client in [&mut had, &mut had_not] {
        client.expect_event("10-0", "next").await;
    }
    for (relay, count) in [(&relays[0], 1.0), (&relays[1], 0.0)] {
        let labels = [("route", "job"), ("reason", "rolled_back")];
        relay
            .metric_reaches("relay_resyncs_total", &labels, count)
            .await;
    }
}

/// A client that does not mind whether it is told that Redis was away.
async fn live(relay: &Relay) -> Client {
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    client.ignore("status");
    client
}

/// It answers PING for ever, and has nothing new: only its role tells.
#[tokio::test]
async fn s20_demoted_while_connections_stay_open() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    old.fill(KEY, 1, 5, 10).await;
    new.fill(KEY, 1, 5, 10).await;
    let proxy = Proxy::start(old.address()).await;
    let relay = Relay::start(&Config::through(&proxy)).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    client.ignore("status");

    proxy.retarget(new.address());
    // A replica of nobody who answers stays as it is.
    old.run("REPLICAOF 127.0.0.1 1").await;
    new.fill(KEY, 6, 7, 10).await;
    client.expect_events(6, 7).await;
    let labels = [("reason", "role_changed")];
    relay
        .metric_reaches("relay_redis_reconnects_total", &labels, 1.0)
        .await;
    // The pool has moved, too: a new key is read there, and nothing is left at the old one.
    new.fill("job:43:updates", 1, 3, 10).await;
    let mut other = relay.upgrade("/ws/jobs/43").cursor("1-0").open().await;
    other.expect_events(2, 3).await;
    eventually("nobody is connected to the old one", async || {
        let left = old.connections().await;
        let left = left.iter().filter(|line| line.contains(" name=relay"));
        (left.count() == 0).then_some(())
    })
    .await;
}

/// The old primary becomes a replica of the new one and takes over its data: it flushes what it
/// had and loads, with the relay still connected to it.
#[tokio::test]
async fn s20_demoted_and_brought_in_step() {
    let (old, api) = (Redis::start().await, FakeApi::start().await);
    old.fill(KEY, 1, 5, 10).await;
    let new = replica_of(&old).await;
    let proxy = Proxy::start(old.address()).await;
    let relay = Relay::start(&Config::through(&proxy).snapshot_from(&api)).await;
    let mut client = live(&relay).await;

    new.run("REPLICAOF NO ONE").await;
    // At once, while the relay is still at the old one.
    new.run("CONFIG SET repl-diskless-sync-delay 0").await;
    proxy.retarget(new.address());
    old.run(&format!("REPLICAOF 127.0.0.1 {}", new.port()))
        .await;
    new.fill(KEY, 6, 7, 10).await;
    client.expect_events(6, 7).await;
    let labels = [("reason", "role_changed")];
    relay
        .metric_reaches("relay_redis_reconnects_total", &labels, 1.0)
        .await;
    new.fill(KEY, 8, 9, 10).await;
    client.expect_events(8, 9).await;
    client.expect_silence(Duration::from_millis(300)).await;
    assert_eq!(api.calls().len(), 1);
}
