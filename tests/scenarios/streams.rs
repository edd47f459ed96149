//! Routes with several streams.

use serde_json::{Value, json};

use crate::JOB;
use crate::support::api::{FakeApi, Reply, state};
use crate::support::client::Client;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;

const UPDATES: &str = "job:42:updates";
const LOGS: &str = "job:42:logs";
const BOTH: &str = r#"streams = ["job:{job_id}:updates", "job:{job_id}:logs"]"#;

/// The next events, parted by stream: order holds within each.
async fn events(client: &mut Client, count: usize) -> [Vec<String>; 2] {
    let mut seen = [Vec::new(), Vec::new()];
    for _ in 0..count {
        let frame = client.expect("event").await;
        let id = frame["id"].as_str().unwrap().to_owned();
        let index = [UPDATES, LOGS]
            .iter()
            .position(|key| frame["stream"] == *key);
        seen[index.unwrap()].push(id);
    }
    seen
}

fn ids(first: u64, last: u64) -> Vec<String> {
    (first..=last).map(|number| format!("{number}-0")).collect()
}

fn positions(cursor: &str) -> Vec<&str> {
    let (hash, ids) = cursor.split_once('~').expect("H~id,id");
    assert_eq!(hash.len(), 6, "{cursor}");
    ids.split(',').collect()
}

#[tokio::test]
async fn several_streams_have_one_cursor() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).route(BOTH).route("history = \"all\"");
    let relay = Relay::start(&config).await;
    redis.fill(UPDATES, 1, 4, 10).await;
    redis.fill(LOGS, 101, 105, 10).await;
    let mut cursors = Vec::new();
    let mut client = relay.open(JOB).await;
    for _ in 0..9 {
        client.expect("event").await;
        cursors.push(client.cursor());
    }
    let live = client.expect_live().await;
    assert_eq!(positions(&live), ["4-0", "105-0"]);
    assert_eq!(cursors.last(), Some(&live));

    for (index, cursor) in cursors.iter().enumerate() {
        let had = positions(cursor);
        let number = |id: &str| id.strip_suffix("-0").unwrap().parse::<u64>().unwrap();
        let mut client = relay.upgrade(JOB).cursor(cursor).open().await;
        let [updates, logs] = events(&mut client, 9 - index - 1).await;
        let (first, second) = (number(had[0]), number(had[1]).max(100));
        assert_eq!(updates, ids(first + 1, 4), "{cursor}");
        assert_eq!(logs, ids(second + 1, 105), "{cursor}");
        client.expect_live().await;
    }
}

#[tokio::test]
async fn a_cursor_for_other_streams_is_none() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).route(BOTH);
    let relay = Relay::start(&config).await;
    redis.fill(UPDATES, 1, 3, 10).await;
    redis.fill(LOGS, 1, 3, 10).await;
    let mut client = relay.open(JOB).await;
    let cursor = client.expect_live().await;
    let (hash, _) = cursor.split_once('~').unwrap();
    let other = relay.open("/ws/jobs/43").await.expect_live().await;
    let others = [
        other,
        "1-0,1-0".to_owned(),
        "1-0".to_owned(),
        format!("{hash}~1-0"),
        format!("{hash}~1-0,1-0,1-0"),
        format!("{hash}~1-0,x"),
    ];
    for (index, cursor) in others.iter().enumerate() {
        let mut client = relay.upgrade(JOB).cursor(cursor).open().await;
        let live = client.expect_live().await;
        assert_eq!(positions(&live), ["3-0", "3-0"], "{cursor}");
        let counted = f64::from(u32::try_from(index + 1).unwrap());
        relay
            .metric_reaches("relay_cursors_malformed_total", &[], counted)
            .await;
    }
}

#[tokio::test]
async fn a_busy_stream_does_not_starve_a_quiet_one() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).route(BOTH).route("history = \"all\"");
    let relay = Relay::start(&config).await;
    redis.fill(UPDATES, 1, 5_000, 100).await;
    redis.fill(LOGS, 1, 5, 10).await;
    let mut client = relay.open(JOB).await;
    let mut before_logs = 0;
    let mut logs = 0;
    while logs < 5 {
        let frame = client.expect("event").await;
        if frame["stream"] == LOGS {
            logs += 1;
        } else {
            before_logs += 1;
        }
    }
    assert!(
        before_logs < 4_000,
        "{before_logs} entries of the busy one came first"
    );
}

/// A stream loses what its readers had not read.
async fn lose_logs(redis: &Redis) {
    let lines: Vec<String> = (4..=51)
        .map(|number| format!("XADD {LOGS} MAXLEN 5 {number}-0 data {number}"))
        .collect();
    redis.transaction(&lines).await;
}

#[tokio::test]
async fn one_stream_is_lost_with_a_snapshot() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).route(BOTH).snapshot_from(&api);
    let relay = Relay::start(&config).await;
    redis.fill(UPDATES, 1, 3, 10).await;
    redis.fill(LOGS, 1, 3, 10).await;
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    lose_logs(&redis).await;
    let live = client.expect_fresh_start("trimmed").await;
    assert_eq!(positions(&live), ["3-0", "51-0"]);
    redis.fill(UPDATES, 4, 4, 10).await;
    redis.fill(LOGS, 52, 52, 10).await;
    assert_eq!(events(&mut client, 2).await, [ids(4, 4), ids(52, 52)]);
}

#[tokio::test]
async fn one_stream_is_lost_without_a_snapshot() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).route(BOTH)).await;
    redis.fill(UPDATES, 1, 3, 10).await;
    redis.fill(LOGS, 1, 3, 10).await;
    let mut client = relay.open(JOB).await;
    let cursor = client.expect_live().await;
    lose_logs(&redis).await;
    client.expect_resync("trimmed").await;
    // Only the lost one starts anew, from the oldest entry kept.
    assert_eq!(events(&mut client, 5).await, [Vec::new(), ids(47, 51)]);
    let live = client.expect_live().await;
    assert_eq!(positions(&live), ["3-0", "51-0"]);

    // The same for one who comes back: what is told comes before what follows the gap.
    redis.fill(UPDATES, 4, 5, 10).await;
    let mut client = relay.upgrade(JOB).cursor(&cursor).open().await;
    client.ignore("live");
    let (mut updates, mut logs, mut told) = (Vec::new(), Vec::new(), 0);
    while updates.len() + logs.len() + told < 2 + 5 + 1 {
        let frame = client.frame().await;
        let id = frame["id"].as_str().unwrap_or_default().to_owned();
        if frame["type"] == "resync" {
            assert_eq!((&frame["reason"], logs.len()), (&json!("trimmed"), 0));
            told += 1;
        } else if frame["stream"] == UPDATES {
            updates.push(id);
        } else {
            assert_eq!(told, 1, "{frame}");
            logs.push(id);
        }
    }
    assert_eq!((updates, logs), (ids(4, 5), ids(47, 51)));
}

#[tokio::test]
async fn declared_cursors_of_several_streams() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).route(BOTH).snapshot_from(&api);
    let relay = Relay::start(&config).await;
    redis.fill(UPDATES, 1, 5, 10).await;
    redis.fill(LOGS, 1, 5, 10).await;
    let updates = format!("{UPDATES}=2-0");
    let logs = format!("{LOGS}=4-0");

    let reply = Reply::json(&state());
    let both = reply.clone().header("relay-cursor", &updates);
    api.answer(both.header("relay-cursor", &logs));
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    assert_eq!(positions(&client.cursor()), ["2-0", "4-0"]);
    assert_eq!(events(&mut client, 4).await, [ids(3, 5), ids(5, 5)]);
    client.expect_live().await;

    // Those that are not named start at the position noted.
    api.answer(reply.clone().header("relay-cursor", &logs));
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    assert_eq!(positions(&client.cursor()), ["5-0", "4-0"]);
    assert_eq!(events(&mut client, 1).await, [Vec::new(), ids(5, 5)]);
    client.expect_live().await;

    // Keys that the route does not have, and no key at all, are of no use.
    for declared in ["job:43:logs=2-0", "2-0"] {
        api.answer(reply.clone().header("relay-cursor", declared));
        let mut client = relay.open(JOB).await;
        client.expect_snapshot("connect").await;
        assert_eq!(positions(&client.expect_live().await), ["5-0", "5-0"]);
    }
}

#[tokio::test]
async fn the_snapshot_of_several_streams_has_their_cursor() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).route(BOTH).snapshot_from(&api);
    let relay = Relay::start(&config).await;
    redis.fill(LOGS, 1, 5, 10).await;
    let mut client = relay.open(JOB).await;
    let snapshot: Value = client.expect("snapshot").await;
    assert_eq!(
        positions(snapshot["cursor"].as_str().unwrap()),
        ["0-0", "5-0"]
    );
    client.expect_live().await;
    redis.fill(UPDATES, 1, 1, 10).await;
    let event = client.expect("event").await;
    assert_eq!(positions(event["cursor"].as_str().unwrap()), ["1-0", "5-0"]);
}
