//! Redis goes away, in every way it can, and comes back.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::support::api::{FakeApi, Reply};
use crate::support::config::Config;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::now;
use crate::support::upgrade::Refusal;
use crate::support::wait::{eventually, eventually_within};
use crate::{JOB, KEY};

/// Outages that are noticed, and said, sooner than by default.
const QUICK: &str = "[redis]\ncommand_timeout = \"500ms\"\ngrace = \"1s\"";
/// The reader asks for a sign of life every 5 s, and waits for it.
const NOTICED: Duration = Duration::from_secs(15);

async fn readyz_becomes(relay: &Relay, status: u16) -> Value {
    let what = format!("/readyz is {status}");
    eventually_within(NOTICED, &what, async || {
        let (seen, body) = relay.readyz().await;
        assert_eq!(relay.livez().await, 200, "/livez never depends on Redis");
        (seen == status).then_some(body)
    })
    .await
}

#[tokio::test]
async fn s20_killed_and_restarted_with_its_data() {
    let mut redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).with(QUICK)).await;
    redis.fill(KEY, 1, 5, 10).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    readyz_becomes(&relay, 200).await;
    redis.run("SAVE").await;

    redis.kill();
    client.expect_status("degraded").await;
    readyz_becomes(&relay, 503).await;
    relay.metric_reaches("relay_redis_up", &[], 0.0).await;
    assert_eq!(relay.livez().await, 200);

    redis.start_again().await;
    redis.fill(KEY, 6, 8, 10).await;
    // Before or after the entries: continuity is proven by the pull that brings them.
    let mut kinds = Vec::new();
    let mut next = 6;
    while kinds.is_empty() || next <= 8 {
        let frame = client.frame().await;
        if frame["type"] == "status" {
            assert_eq!(frame["state"], "ok");
            kinds.push(frame);
        } else {
            assert_eq!(frame["id"], format!("{next}-0"), "{frame}");
            next += 1;
        }
    }
    readyz_becomes(&relay, 200).await;
    redis.fill(KEY, 9, 9, 10).await;
    client.expect_events(9, 9).await;
}

#[tokio::test]
async fn s20_restarted_empty() {
    let (mut redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api).with(QUICK);
    let relay = Relay::start(&config).await;
    redis.fill(KEY, 1, 5, 10).await;
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;

    redis.kill();
    client.expect_status("degraded").await;
    redis.start_again().await;
    client.expect_resync("deleted").await;
    client.expect_snapshot("deleted").await;
    // Not before: until the snapshot what the client shows is old.
    client.expect_status("ok").await;
    client.expect_live().await;
    redis.xadd(KEY, "1-0", "anew").await;
    client.expect_event("1-0", "anew").await;
}

#[tokio::test]
async fn s20_restarted_with_older_data() {
    let (mut redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api).with(QUICK);
    let relay = Relay::start(&config).await;
    redis.fill(KEY, 1, 5, 10).await;
    redis.run("SAVE").await;
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    redis.fill(KEY, 6, 7, 10).await;
    client.expect_events(6, 7).await;
    client.ignore("status");

    redis.kill();
    redis.start_again().await;
    client.expect_fresh_start("rolled_back").await;
    redis.xadd(KEY, "8-0", "next").await;
    client.expect_event("8-0", "next").await;
}

#[tokio::test]
async fn s20_paused() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).with(QUICK)).await;
    redis.fill(KEY, 1, 5, 10).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;

    redis.pause();
    client.expect_status("degraded").await;
    readyz_becomes(&relay, 503).await;
    redis.resume();
    client.expect_status("ok").await;
    readyz_becomes(&relay, 200).await;
    redis.fill(KEY, 6, 8, 10).await;
    client.expect_events(6, 8).await;
}

/// What a client shows is as of then: milliseconds since the Unix epoch, not long ago.
fn assert_as_of(frame: &Value) {
    let as_of = frame["as_of"].as_u64();
    let as_of = as_of.unwrap_or_else(|| panic!("{frame}"));
    let now = now() * 1_000;
    assert!((now - 60_000..now + 2_000).contains(&as_of), "{frame}");
}

#[tokio::test]
async fn s20_a_status_says_as_of_when() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let proxy = Proxy::start(redis.address()).await;
    let config = Config::through(&proxy)
        .with(QUICK)
        .snapshot_from(&api)
        .route("[snapshot]\non_error = \"stream\"");
    let relay = Relay::start(&config).await;
    api.answer(Reply::status(500));
    let mut client = relay.open(JOB).await;
    let no_snapshot = client.expect_status("no_snapshot").await;
    client.expect_live().await;
    proxy.cut();
    assert_as_of(&client.expect_status("degraded").await);
    proxy.restore();
    assert_as_of(&client.expect_status("ok").await);
    assert_as_of(&no_snapshot);
}

#[tokio::test]
async fn s20_stalled_by_the_network() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let relay = Relay::start(&Config::through(&proxy).with(QUICK)).await;
    redis.fill(KEY, 1, 5, 10).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;

    proxy.stall();
    redis.fill(KEY, 6, 7, 10).await;
    client.expect_status("degraded").await;
    redis.fill(KEY, 8, 9, 10).await;
    proxy.restore();
    client.ignore("status");
    client.expect_events(6, 9).await;
    client.expect_silence(Duration::from_millis(300)).await;
}

/// What was written at once arrives in pieces of one to seven bytes: replies, pushes and commands
/// between relay and Redis, and handshakes and frames between relay and client.
#[tokio::test]
async fn s20_bytes_in_small_pieces() {
    let redis = Redis::start().await;
    let (behind, before) = (
        Proxy::start(redis.address()).await,
        Proxy::start("127.0.0.1:1").await,
    );
    let config = Config::through(&behind).with("[redis]\nsweep = \"1h\"");
    behind.split(5);
    let relay = Relay::start(&config.route("history = \"all\"")).await;
    before.retarget(relay.address().to_string());
    before.split(5);
    redis.fill(KEY, 1, 20, 10).await;
    let mut client = relay.upgrade(JOB).through(before.address()).open().await;
    client.expect_events(1, 20).await;
    assert_eq!(client.expect_live().await, "20-0");
    for first in (21..=50).step_by(3) {
        redis.fill(KEY, first, first + 2, 10).await;
        client.expect_events(first, first + 2).await;
    }
    client.send(r#"{"type":"ping"}"#).await;
    client.expect("pong").await;
    let resumed = relay.upgrade(JOB).through(before.address()).cursor("45-0");
    let mut resumed = resumed.open().await;
    resumed.expect_events(46, 50).await;
    assert_eq!(resumed.expect_live().await, "50-0");
    let metrics = relay.metrics().await;
    assert!(metrics.value("relay_redis_tracking", &[]) > 0.0);
    for name in ["relay_redis_reconnects_total", "relay_resyncs_total"] {
        assert!(metrics.value(name, &[]).abs() < f64::EPSILON, "{name}");
    }
}

#[tokio::test]
async fn s20_cut_by_the_network() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let relay = Relay::start(&Config::through(&proxy).with(QUICK)).await;
    let mut clients = Vec::new();
    for job in 0..50 {
        redis.fill(&format!("job:{job}:updates"), 1, 300, 10).await;
        let mut client = relay.open(&format!("/ws/jobs/{job}")).await;
        client.expect_live().await;
        client.ignore("status");
        clients.push(client);
    }
    for round in 0..3 {
        proxy.cut();
        let first = 301 + 2 * round;
        for job in 0..50 {
            let key = format!("job:{job}:updates");
            redis.fill(&key, first, first + 1, 10).await;
        }
        proxy.restore();
        for client in &mut clients {
            client.expect_events(first, first + 1).await;
        }
    }
    let metrics = relay.metrics().await;
    assert!(metrics.value("relay_redis_reconnects_total", &[]) >= 3.0);
    assert!(metrics.value("relay_resyncs_total", &[]).abs() < f64::EPSILON);
}

#[tokio::test]
async fn s20_cut_while_entries_gather() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let config = Config::through(&proxy).with("[redis]\nhold = \"3s\"");
    let relay = Relay::start(&config).await;
    let mut client = relay.open(JOB).await;
    let mut other = relay.open("/ws/jobs/43").await;
    client.expect_live().await;
    other.expect_live().await;
    redis.fill(KEY, 1, 1, 10).await;
    client.expect_events(1, 1).await;
    // This one is held back, which is so as soon as the other stream's has come.
    redis.fill(KEY, 2, 2, 10).await;
    redis.fill("job:43:updates", 1, 1, 10).await;
    other.expect_events(1, 1).await;

    proxy.cut();
    proxy.restore();
    client.ignore("status");
    client.expect_events(2, 2).await;
    redis.fill(KEY, 3, 3, 10).await;
    client.expect_events(3, 3).await;
}

#[tokio::test]
async fn s20_the_processor_rests_while_redis_is_away() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let relay = Relay::start(&Config::through(&proxy).with(QUICK)).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    proxy.cut();
    client.expect_status("degraded").await;
    let before = relay.cpu_time();
    client.expect_silence(Duration::from_secs(4)).await;
    let used = relay.cpu_time() - before;
    assert!(used < Duration::from_millis(400), "{used:?} in 4 s");
    proxy.restore();
    client.expect_status("ok").await;
}

#[tokio::test]
async fn s21_redis_never_answers() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    proxy.stall();
    let relay = Relay::start(&Config::through(&proxy).with(QUICK)).await;
    readyz_becomes(&relay, 503).await;
    let start = Instant::now();
    let refusal = relay.upgrade(JOB).refused().await;
    assert_eq!(refusal, Refusal::closed(1013, "redis_unavailable"));
    assert!(start.elapsed() < Duration::from_secs(4));
    proxy.restore();
    readyz_becomes(&relay, 200).await;
    let mut client = eventually("the relay serves", async || {
        let mut client = relay.open(JOB).await;
        let first = client.next().await;
        format!("{first:?}").contains("live").then_some(client)
    })
    .await;
    redis.xadd(KEY, "1-0", "at last").await;
    client.expect_event("1-0", "at last").await;
}

/// The stall begins while a client is in the middle of its backlog, which is asked for page by
/// page, and another comes back with a cursor that is older than the ring.
#[tokio::test]
async fn s21_a_stall_in_the_middle_of_a_backlog() {
    const ENTRIES: u64 = 5_000;
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let config = Config::through(&proxy).with(QUICK);
    let relay = Relay::start(&config.route("history = \"all\"")).await;
    redis.fill(KEY, 1, ENTRIES, 1024).await;
    let mut reading = relay.upgrade(JOB).receive_buffer(4 * 1024).open().await;
    reading.expect_events(1, 10).await;

    proxy.stall();
    let mut next = 11;
    loop {
        let frame = reading.frame().await;
        if frame["type"] == "status" {
            assert_eq!(frame["state"], "degraded");
            break;
        }
        assert_eq!(frame["id"], format!("{next}-0"));
        next += 1;
    }
    assert!(next < ENTRIES, "all was read before the stall");
    let mut resumed = relay.upgrade(JOB).cursor("1000-0").open().await;
    resumed.expect_status("degraded").await;
    readyz_becomes(&relay, 503).await;

    redis.fill(KEY, ENTRIES + 1, ENTRIES + 3, 10).await;
    proxy.restore();
    for (client, first) in [(&mut reading, next), (&mut resumed, 1_001)] {
        client.ignore("status");
        client.expect_events_around_live(first, ENTRIES + 3).await;
    }
    readyz_becomes(&relay, 200).await;
    let resyncs = relay.metrics().await.value("relay_resyncs_total", &[]);
    assert!(resyncs.abs() < f64::EPSILON, "{resyncs} resyncs");
}

#[tokio::test]
async fn s21_a_stalled_redis_keeps_no_relay_from_ending() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let drain = "[drain]\ndelay = \"0s\"\nwindow = \"200ms\"\ngrace = \"500ms\"";
    let config = Config::through(&proxy).with(QUICK).with(drain);
    let mut relay = Relay::start(&config).await;
    redis.fill(KEY, 1, 3, 10).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    proxy.stall();
    // In the middle of an attach, and with a client that waits for entries.
    let attaching = relay.upgrade("/ws/jobs/43");
    let (refusal, ()) = tokio::join!(attaching.refused(), async {
        relay.metric_reaches("relay_connections", &[], 2.0).await;
        relay.sigterm();
    });
    assert_eq!(refusal, Refusal::status(503, "draining"));
    let status = relay.wait_exit(Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn s21_a_client_that_comes_while_redis_is_away() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let proxy = Proxy::start(redis.address()).await;
    let config = Config::through(&proxy).snapshot_from(&api).with(QUICK);
    let relay = Relay::start(&config).await;
    redis.fill(KEY, 1, 5, 10).await;
    let mut first = relay.open(JOB).await;
    first.expect_snapshot("connect").await;
    first.expect_live().await;
    proxy.cut();
    first.expect_status("degraded").await;

    // Of a stream that is known: served, and told.
    let mut known = relay.open(JOB).await;
    known.expect_snapshot("connect").await;
    let mut kinds = [known.frame().await, known.frame().await];
    kinds.sort_by_key(|frame| frame["type"].to_string());
    assert_eq!(kinds[0]["type"], "live");
    assert_eq!(kinds[0]["cursor"], "5-0");
    assert_eq!(kinds[1]["state"], "degraded");

    // Of one that is not: refused, soon.
    let start = Instant::now();
    let refusal = relay.upgrade("/ws/jobs/unknown").refused().await;
    assert_eq!(refusal, Refusal::closed(1013, "redis_unavailable"));
    assert!(start.elapsed() < Duration::from_secs(4));

    redis.fill(KEY, 6, 6, 10).await;
    proxy.restore();
    for client in [&mut first, &mut known] {
        client.ignore("status");
        client.expect_events(6, 6).await;
    }
}
