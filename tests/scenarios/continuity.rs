//! What is lost is told: each gap a resync with its reason, and never one without a gap.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::api::{FakeApi, Reply, state};
use crate::support::client::Client;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::{JOB, KEY};

struct Stage {
    redis: Redis,
    api: FakeApi,
    relay: Relay,
}

/// A relay whose route has a snapshot.
async fn stage() -> Stage {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let relay = Relay::start(&Config::new(&redis).snapshot_from(&api)).await;
    Stage { redis, api, relay }
}

impl Stage {
    /// A client that is live.
    async fn live(&self) -> Client {
        let mut client = self.relay.open(JOB).await;
        client.expect_snapshot("connect").await;
        client.expect_live().await;
        client
    }

    /// A client that comes back with this cursor to a stream that nobody has watched yet: ten
    /// entries were added, and then this was done.
    async fn resume(&self, job: &str, then: &[&str], cursor: &str) -> Client {
        let key = format!("job:{job}:updates");
        self.redis.fill(&key, 1, 10, 10).await;
        for line in then {
            self.redis.run(&line.replace("KEY", &key)).await;
        }
        let upgrade = self.relay.upgrade(&format!("/ws/jobs/{job}"));
        upgrade.cursor(cursor).open().await
    }
}

#[tokio::test]
async fn s10_what_is_lost_while_away_is_told() {
    let stage = stage().await;
    let cases: [(&str, &[&str], &str, &str); 6] = [
        ("trimmed", &["XTRIM KEY MAXLEN 5"], "2-0", "trimmed"),
        ("next", &["XTRIM KEY MAXLEN 5"], "5-0", "trimmed"),
        ("deleted", &["DEL KEY"], "10-0", "deleted"),
        ("ahead", &[], "20-0", "rolled_back"),
        (
            "lower",
            &["DEL KEY", "XADD KEY 4-0 data x"],
            "10-0",
            "rolled_back",
        ),
        (
            "higher",
            &["DEL KEY", "XADD KEY 11-0 data x"],
            "10-0",
            "trimmed",
        ),
    ];
    for (job, then, cursor, reason) in cases {
        let mut client = stage.resume(job, then, cursor).await;
        let resync = client.expect_resync(reason).await;
        assert_eq!(resync["lost"], cursor, "{job}");
        assert_eq!(client.expect_snapshot(reason).await, state());
        client.expect_live().await;
        stage
            .redis
            .xadd(&format!("job:{job}:updates"), "100-0", "next")
            .await;
        client.expect_event("100-0", "next").await;
    }
    let metrics = stage.relay.metrics().await;
    for (reason, count) in [("trimmed", 3.0), ("deleted", 1.0), ("rolled_back", 2.0)] {
        let labels = [("route", "job"), ("reason", reason)];
        let seen = metrics.value("relay_resyncs_total", &labels);
        assert!((seen - count).abs() < f64::EPSILON, "{reason}: {seen}");
    }
}

#[tokio::test]
async fn s10_emptied_while_away() {
    let stage = stage().await;
    let then = ["XTRIM KEY MAXLEN 0"];
    let mut client = stage.resume("emptied", &then, "3-0").await;
    let resync = client.expect("resync").await;
    assert_eq!(resync["lost"], "3-0");
    assert_eq!(resync["reason"], "trimmed", "the key is still there");
    client.expect_snapshot("trimmed").await;
    assert_eq!(client.expect_live().await, "10-0");
    stage
        .redis
        .xadd("job:emptied:updates", "11-0", "next")
        .await;
    client.expect_event("11-0", "next").await;
}

#[tokio::test]
async fn s10_emptied_before_it_was_read() {
    let stage = stage().await;
    stage.redis.xadd(KEY, "1-0", "one").await;
    let mut client = stage.live().await;
    let lines = [
        format!("XADD {KEY} 2-0 data lost"),
        format!("XTRIM {KEY} MAXLEN 0"),
    ];
    stage.redis.transaction(&lines).await;
    assert_eq!(client.expect_fresh_start("trimmed").await, "2-0");
    stage.redis.xadd(KEY, "3-0", "next").await;
    client.expect_event("3-0", "next").await;
}

#[tokio::test]
async fn s10_flushed() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api);
    // It is noticed by the push that says that everything has changed.
    let relay = Relay::start(&config.with("[redis]\nsweep = \"1h\"")).await;
    let mut clients = Vec::new();
    for job in 0..50 {
        redis.fill(&format!("job:{job}:updates"), 1, 3, 10).await;
        let mut client = relay.open(&format!("/ws/jobs/{job}")).await;
        client.expect_snapshot("connect").await;
        assert_eq!(client.expect_live().await, "3-0");
        clients.push(client);
    }
    redis.run("FLUSHALL").await;
    for (job, client) in clients.iter_mut().enumerate() {
        let resync = client.expect_resync("deleted").await;
        assert_eq!(resync["lost"], "3-0");
        client.expect_snapshot("deleted").await;
        assert_eq!(client.expect_live().await, "0-0");
        redis.xadd(&format!("job:{job}:updates"), "1-0", "x").await;
        client.expect_event("1-0", "x").await;
    }
    assert_eq!(api.calls().len(), 2 * clients.len());
}

#[tokio::test]
async fn s10_nothing_lost_is_no_resync() {
    let stage = stage().await;
    let cases: [(&str, &[&str], &str, u64); 5] = [
        ("inside", &["XTRIM KEY MAXLEN 5"], "7-0", 8),
        ("first-kept", &["XTRIM KEY MAXLEN 5"], "6-0", 7),
        ("last", &[], "10-0", 11),
        (
            "last-of-an-emptied-one",
            &["XTRIM KEY MAXLEN 0"],
            "10-0",
            11,
        ),
        (
            "hole",
            &["XDEL KEY 5-0", "XADD KEY 11-0 data x"],
            "10-0",
            11,
        ),
    ];
    for (job, then, cursor, first) in cases {
        let mut client = stage.resume(job, then, cursor).await;
        let added = if job == "hole" { 11 } else { 10 };
        client.expect_events(first, added).await;
        assert_eq!(client.expect_live().await, format!("{added}-0"), "{job}");
        stage
            .redis
            .xadd(&format!("job:{job}:updates"), "100-0", "next")
            .await;
        client.expect_event("100-0", "next").await;
    }
    assert_eq!(stage.api.calls().len(), 0);
}

#[tokio::test]
async fn s10_without_a_snapshot_it_goes_on_from_the_oldest_kept() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    redis.fill(KEY, 1, 10, 10).await;
    redis.run(&format!("XTRIM {KEY} MAXLEN 3")).await;
    let mut client = relay.upgrade(JOB).cursor("2-0").open().await;
    client.expect_resync("trimmed").await;
    client.expect_events(8, 10).await;
    client.expect_live().await;
}

/// A burst over MAXLEN in one transaction: no reader sees its middle.
fn burst(first: u64, last: u64, keep: u64) -> Vec<String> {
    (first..=last)
        .map(|number| format!("XADD {KEY} MAXLEN {keep} {number}-0 data {number}"))
        .collect()
}

#[tokio::test]
async fn s10a_a_burst_over_maxlen_seen_by_one_pull() {
    let stage = stage().await;
    stage.redis.xadd(KEY, "1-0", "one").await;
    let mut client = stage.live().await;
    stage.redis.transaction(&burst(2, 51, 10)).await;
    client.expect_fresh_start("trimmed").await;
    stage.redis.xadd(KEY, "52-0", "next").await;
    client.expect_event("52-0", "next").await;
}

#[tokio::test]
async fn s10a_a_burst_without_a_snapshot() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    redis.xadd(KEY, "1-0", "one").await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    redis.transaction(&burst(2, 51, 10)).await;
    client.expect_resync("trimmed").await;
    client.expect_events(42, 51).await;
    client.expect_live().await;
}

#[tokio::test]
async fn s10b_deleted_and_added_again_in_one_transaction() {
    let stage = stage().await;
    stage.redis.fill(KEY, 1, 5, 10).await;
    let mut client = stage.live().await;
    let lines = [
        format!("XADD {KEY} 6-0 data lost"),
        format!("DEL {KEY}"),
        format!("XADD {KEY} 7-0 data new"),
    ];
    stage.redis.transaction(&lines).await;
    client.expect_fresh_start("trimmed").await;
    stage.redis.xadd(KEY, "8-0", "next").await;
    client.expect_event("8-0", "next").await;
}

#[tokio::test]
async fn s10c_a_stream_of_one_entry() {
    let stage = stage().await;
    let update = async |number: u64| {
        let xadd = format!("XADD {KEY} MAXLEN 1 {number}-0 data x");
        stage.redis.run(&xadd).await;
    };
    let mut client = stage.live().await;
    for round in (1..=1_000).step_by(50) {
        for number in round..round + 49 {
            update(number).await;
            client.expect_events(number, number).await;
        }
        let cursor = client.cursor();
        client.vanish();
        update(round + 49).await;
        client = stage.relay.upgrade(JOB).cursor(&cursor).open().await;
        client.ignore("live");
        client.expect_events(round + 49, round + 49).await;
    }
    assert_eq!(stage.api.calls().len(), 1);
}

#[tokio::test]
async fn s10c_two_updates_between_two_reads_are_told() {
    let stage = stage().await;
    stage.redis.transaction(&burst(1, 1, 1)).await;
    let mut client = stage.live().await;
    stage.redis.transaction(&burst(2, 3, 1)).await;
    client.expect_fresh_start("trimmed").await;
}

#[tokio::test]
async fn s10e_the_first_entries_come_while_away() {
    let stage = stage().await;
    let client = stage.live().await;
    let cursor = client.cursor();
    assert_eq!(cursor, "0-0");
    client.vanish();
    stage.redis.fill(KEY, 1, 5, 10).await;
    let mut client = stage.relay.upgrade(JOB).cursor(&cursor).open().await;
    client.expect_events_around_live(1, 5).await;

    // And with a relay that has never seen the key missing.
    let other = Relay::start(&Config::new(&stage.redis).snapshot_from(&stage.api)).await;
    let mut client = other.upgrade(JOB).cursor(&cursor).open().await;
    client.expect_events(1, 5).await;
    client.expect_live().await;
    assert_eq!(stage.api.calls().len(), 1);
}

#[tokio::test]
async fn s10f_the_entry_at_the_cursor_is_deleted() {
    let stage = stage().await;
    stage.redis.fill(KEY, 1, 5, 10).await;
    let mut staying = stage.live().await;
    stage.redis.run(&format!("XDEL {KEY} 5-0")).await;
    let mut back = stage.relay.upgrade(JOB).cursor("5-0").open().await;
    assert_eq!(back.expect_live().await, "5-0");
    stage.redis.xadd(KEY, "6-0", "next").await;
    staying.expect_event("6-0", "next").await;
    back.expect_event("6-0", "next").await;
    assert_eq!(stage.api.calls().len(), 1);
}

#[tokio::test]
async fn s10g_the_socket_drops_between_resync_and_snapshot() {
    let stage = stage().await;
    stage.redis.xadd(KEY, "1-0", "one").await;
    let mut client = stage.live().await;
    stage.api.close_gate();
    stage.redis.transaction(&burst(2, 51, 10)).await;
    client.expect_resync("trimmed").await;
    let cursor = client.cursor();
    assert_eq!(cursor, "1-0", "a resync brings no cursor");
    client.vanish();

    stage.api.open_gate();
    let mut client = stage.relay.upgrade(JOB).cursor(&cursor).open().await;
    client.expect_fresh_start("trimmed").await;
}

#[tokio::test]
async fn s10h_a_declared_cursor_that_cannot_be_used() {
    let stage = stage().await;
    stage.redis.fill(KEY, 1, 10, 10).await;
    stage.redis.run(&format!("XTRIM {KEY} MAXLEN 5")).await;
    for (index, declared) in ["20-0", "2-0", "nonsense"].iter().enumerate() {
        let reply = Reply::json(&state()).header("relay-cursor", declared);
        stage.api.answer(reply);
        let mut client = stage.live().await;
        assert_eq!(client.cursor(), "10-0", "{declared}");
        client.expect_silence(Duration::from_millis(300)).await;
        assert_eq!(stage.api.calls().len(), index + 1, "{declared}: no loop");
        let counted = f64::from(u32::try_from(index + 1).unwrap());
        let name = "relay_snapshot_cursors_ignored_total";
        stage
            .relay
            .metric_reaches(name, &[("route", "job")], counted)
            .await;
    }
    let metrics = stage.relay.metrics().await;
    let name = "relay_snapshot_cursors_ignored_total";
    assert_eq!(metrics.label_values(name, "reason").len(), 3);
}

#[tokio::test]
async fn resyncs_have_a_distance() {
    let stage = stage().await;
    stage.redis.xadd(KEY, "1-0", "one").await;
    let mut client = stage.live().await;
    stage.redis.transaction(&burst(2, 51, 10)).await;
    client.expect_fresh_start("trimmed").await;
    let first = Instant::now();
    stage.redis.transaction(&burst(52, 101, 10)).await;
    client.expect_fresh_start("trimmed").await;
    let distance = first.elapsed();
    assert!(distance > Duration::from_secs(3), "{distance:?}");
    stage.redis.xadd(KEY, "102-0", "next").await;
    client.expect_event("102-0", "next").await;
}

#[tokio::test]
async fn a_resync_outlives_a_callback_that_fails() {
    let stage = stage().await;
    stage.redis.xadd(KEY, "1-0", "one").await;
    let mut client = stage.live().await;
    stage.api.answer(Reply::status(500));
    stage.redis.transaction(&burst(2, 51, 10)).await;
    client.expect_resync("trimmed").await;
    stage.api.called(3).await;
    client.send(r#"{"type":"ping"}"#).await;
    client.expect("pong").await;
    stage.api.answer(Reply::json(&state()));
    client.expect_snapshot("trimmed").await;
    client.expect_live().await;
}
