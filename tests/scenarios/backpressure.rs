//! Clients that read slowly, or not at all: they cost nobody anything.

use serde_json::Value;

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
    // The reader may have had some entries before it when the snapshot was asked for.
    let cursor = client.cursor();
    let noted: u64 = cursor.trim_end_matches("-0").parse().expect("our ids");
    assert!(noted >= next, "nothing was skipped");
    redis.xadd(KEY, "3001-0", "now").await;
    client.expect_events_around_live(noted + 1, 3_001).await;
    assert_eq!(api.calls().len(), 2);
}

/// What a client that lags reads: the events and what was left out of them, up to an id.
async fn read_conflated(client: &mut Client, last: &str) -> (Vec<Value>, u64) {
    let (mut events, mut folded) = (Vec::<Value>::new(), 0);
    while events.last().is_none_or(|event| event["id"] != last) {
        let frame = client.frame().await;
        match frame["type"].as_str() {
            Some("conflated") => {
                assert_eq!(frame["stream"], KEY);
                folded += frame["folded"].as_u64().expect("a number");
            }
            Some("event") => events.push(frame),
            _ => panic!("{frame}"),
        }
    }
    let ms = |event: &Value| -> u64 {
        let id = event["id"].as_str().expect("an id");
        id.trim_end_matches("-0").parse().expect("our ids")
    };
    assert!(events.is_sorted_by(|a, b| ms(a) < ms(b)), "not ascending");
    assert!(events.iter().all(|event| event["cursor"] == event["id"]));
    (events, folded)
}

/// Adds entries of one KiB whose keys take turns; the one in the middle has none.
async fn fill_with_keys(redis: &Redis, entries: u64, keys: u64) {
    let pad = "x".repeat(KIB);
    let data = |number| match number == entries / 2 {
        true => format!(r#"{{"pad":"{pad}"}}"#),
        false => format!(r#"{{"quote":{{"id":{}}},"pad":"{pad}"}}"#, number % keys),
    };
    redis.fill_with(KEY, 1, entries, data).await;
}

#[tokio::test]
async fn s15_a_client_that_lags_gets_the_newest_entry_of_each_key() {
    const ENTRIES: u64 = 10_000;
    const KEYS: u64 = 7;
    let redis = Redis::start().await;
    let config = Config::new(&redis).route(
        "[slow]\nmax_lag = 50\nthen = \"conflate\"\nconflate_by = \"/quote/id\"\nwrite_timeout = \"5m\"",
    );
    let relay = Relay::start(&config).await;
    let mut client = slow_client(&relay).await;
    fill_with_keys(&redis, ENTRIES, KEYS).await;

    let last = format!("{ENTRIES}-0");
    let (events, folded) = read_conflated(&mut client, &last).await;
    assert_eq!(
        events.len() as u64 + folded,
        ENTRIES,
        "left out without a word"
    );
    assert!(folded > ENTRIES / 2, "{folded} of {ENTRIES}");
    let without_a_key = format!("{}-0", ENTRIES / 2);
    assert!(events.iter().any(|event| event["id"] == *without_a_key));
    // Whatever was left out: of each key the newest has come.
    for number in ENTRIES - KEYS + 1..=ENTRIES {
        let id = format!("{number}-0");
        assert!(events.iter().any(|event| event["id"] == *id), "{id}");
    }
    let labels = [("route", "job")];
    relay
        .metric_reaches("relay_entries_conflated_total", &labels, folded as f64)
        .await;

    // It has caught up, and gets everything again.
    for number in ENTRIES + 1..=ENTRIES + 3 {
        let data = r#"{"quote":{"id":1}}"#;
        redis.xadd(KEY, &format!("{number}-0"), data).await;
    }
    client.expect_events(ENTRIES + 1, ENTRIES + 3).await;

    // Who resumes within what was folded gets what comes after its cursor, whole or folded.
    let cursor = events[2]["cursor"].as_str().expect("a cursor");
    let mut again = relay.upgrade(JOB).cursor(cursor).open().await;
    let first: u64 = cursor.trim_end_matches("-0").parse().expect("our ids");
    again.expect_events(first + 1, ENTRIES + 3).await;
}

#[tokio::test]
async fn s15_a_burst_is_conflated_without_control_frames_too() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).route(
        "[message]\nformat = \"merge\"\nfield = \"data\"\ncontrol = false\n[slow]\nmax_lag = 50\nthen = \"conflate\"",
    );
    let relay = Relay::start(&config).await;
    let mut client = relay.open(JOB).await;
    redis.xadd(KEY, "1-0", r#"{"id":"x"}"#).await;
    assert_eq!(client.frame().await["id"], "1-0");
    let burst = (2..=200).map(|number| {
        format!(
            r#"XADD {KEY} {number}-0 data {{"id":"{}","n":{number}}}"#,
            number % 2
        )
    });
    redis.transaction(&burst.collect::<Vec<_>>()).await;
    assert_eq!(client.frame().await["n"], 199);
    assert_eq!(client.frame().await["n"], 200);
}

#[tokio::test]
async fn s15_a_burst_is_not_lagging() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).route("[slow]\nmax_lag = 50")).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    let burst = (1..=300).map(|number| format!("XADD {KEY} {number}-0 data {number}"));
    redis.transaction(&burst.collect::<Vec<_>>()).await;
    client.expect_events(1, 300).await;
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

#[tokio::test]
async fn a_client_that_stalls_within_a_resync_keeps_no_turn_at_the_api() {
    let redis = Redis::start().await;
    let api = FakeApi::start().await;
    let config = Config::new(&redis)
        .with("[server]\nsend_buffer = \"4KiB\"\n[client]\nmax_messages_per_second = 100_000")
        .snapshot_from(&api)
        .route("[snapshot]\nmax_in_flight = 1\ntimeout = \"1m\"\nqueue = \"1m\"\n[slow]\nwrite_timeout = \"1m\"");
    let relay = Relay::start(&config).await;
    redis.xadd(KEY, "1-0", "one").await;
    let mut stalled = relay.upgrade(JOB).receive_buffer(4 * KIB).open().await;
    stalled.expect_snapshot("connect").await;
    stalled.expect_live().await;
    api.close_gate();
    redis.run(&format!("DEL {KEY}")).await;
    api.called(2).await;
    // Their answers are more than the kernels take.
    let ping = [&[0x89, 0xfd, 0, 0, 0, 0][..], &[b'x'; 125]].concat();
    stalled.send_bytes(&ping.repeat(80_000)).await;
    stalled.send("this comes last").await;
    relay
        .metric_reaches("relay_client_messages_total", &[], 1.0)
        .await;
    api.open_gate();
    let mut other = relay.open(JOB).await;
    other.expect_snapshot("connect").await;
}
