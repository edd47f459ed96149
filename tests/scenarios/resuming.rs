//! Coming back with a cursor.

use tokio::task::JoinSet;

use crate::support::api::FakeApi;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::{JOB, KEY};

#[tokio::test]
async fn s08_the_cursor_of_any_frame_resumes_after_it() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api);
    let relay = Relay::start(&config.route(r#"history = "all""#)).await;
    redis.fill(KEY, 1, 10, 10).await;

    for read in 0..=10 {
        let mut client = relay.open(JOB).await;
        client.expect_snapshot("connect").await;
        client.expect_events(1, read).await;
        let cursor = client.cursor();
        client.vanish();

        let mut client = relay.upgrade(JOB).cursor(&cursor).open().await;
        client.expect_events(read + 1, 10).await;
        assert_eq!(client.expect_live().await, "10-0");
        client.vanish();
    }
    // No snapshot for those who came back.
    assert_eq!(api.calls().len(), 11);
}

/// Frames from Redis, from the ring, at their seam, and `live`.
#[tokio::test]
async fn s08_the_cursor_of_a_frame_that_was_paged_in() {
    const ENTRIES: u64 = 300;
    let redis = Redis::start().await;
    let config = Config::new(&redis).with("[redis]\nring_entries = 16");
    let relay = Relay::start(&config.route(r#"history = "all""#)).await;
    let mut first = relay.open(JOB).await;
    first.expect_live().await;
    for number in 1..=ENTRIES {
        redis.fill(KEY, number, number, 10).await;
        first.expect_events(number, number).await;
    }
    for read in (1..=ENTRIES).step_by(23).chain(280..=ENTRIES) {
        let mut client = relay.open(JOB).await;
        client.expect_events(1, read).await;
        let mut cursor = client.cursor();
        if read == ENTRIES {
            cursor = client.expect_live().await;
        }
        client.vanish();
        let mut client = relay.upgrade(JOB).cursor(&cursor).open().await;
        client.expect_events(read + 1, ENTRIES).await;
        assert_eq!(client.expect_live().await, format!("{ENTRIES}-0"));
    }
}

#[tokio::test]
async fn s08_a_cursor_is_used_many_times_while_entries_come() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    let mut client = relay.open(JOB).await;
    let mut cursor = client.expect_live().await;
    for number in 1..=50 {
        client.vanish();
        redis.fill(KEY, 2 * number - 1, 2 * number, 10).await;
        client = relay.upgrade(JOB).cursor(&cursor).open().await;
        client
            .expect_events_around_live(2 * number - 1, 2 * number)
            .await;
        cursor = client.cursor();
    }
}

#[tokio::test]
async fn s08_last_event_id_wins_over_the_query() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    redis.fill(KEY, 1, 5, 10).await;
    let upgrade = relay.upgrade(JOB).cursor("1-0");
    let mut client = upgrade.header("last-event-id", "4-0").open().await;
    client.expect_events(5, 5).await;
    client.expect_live().await;
}

#[tokio::test]
async fn s09_malformed_cursors_are_none() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api);
    let relay = Relay::start(&config).await;
    redis.fill(KEY, 1, 3, 10).await;
    relay.open(JOB).await.expect_snapshot("connect").await;
    let errors = redis.info("stats", "total_error_replies").await;

    let digits = "1".repeat(10_000);
    let malformed = [
        "undefined",
        "-1",
        "abc-xyz",
        "1607477697866-",
        "1-0-0",
        "18446744073709551616-0",
        "1-18446744073709551616",
        "+1-0",
        "01-0",
        "$",
        "abcdef~1-0,2-0",
        &digits,
    ];
    for (index, cursor) in malformed.iter().enumerate() {
        let mut client = relay.upgrade(JOB).cursor(cursor).open().await;
        client.expect_snapshot("connect").await;
        assert_eq!(client.expect_live().await, "3-0", "{cursor}");
        let counted = u32::try_from(index + 1).unwrap();
        relay
            .metric_reaches("relay_cursors_malformed_total", &[], f64::from(counted))
            .await;
    }
    let mut client = relay.upgrade(JOB).cursor("").open().await;
    client.expect_snapshot("connect").await;
    let metrics = relay.metrics().await;
    let counted = u32::try_from(malformed.len()).unwrap();
    let seen = metrics.value("relay_cursors_malformed_total", &[("route", "job")]);
    assert!(
        (seen - f64::from(counted)).abs() < f64::EPSILON,
        "an empty one is none: {seen}"
    );
    assert_eq!(redis.info("stats", "total_error_replies").await, errors);
}

/// Moves from relay to relay with its cursor, until it has had this many entries.
async fn wander(relays: &[Relay; 3], first: usize, every: usize, total: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    let mut cursor = "0-0".to_owned();
    for relay in relays.iter().cycle().skip(first) {
        let mut client = relay.upgrade(JOB).cursor(&cursor).open().await;
        let mut here = 0;
        while here < every {
            let frame = client.frame().await;
            if frame["type"] == "event" {
                let id = frame["id"].as_str().unwrap();
                seen.push(id.strip_suffix("-0").unwrap().parse().unwrap());
                here += 1;
                if seen.last() == Some(&total) {
                    return seen;
                }
            } else {
                assert_eq!(frame["type"], "live", "{frame}");
            }
        }
        cursor = client.cursor();
    }
    unreachable!("a cycle does not end")
}

#[tokio::test]
async fn s11_another_replica() {
    const TOTAL: u64 = 10_000;
    let redis = Redis::start().await;
    let config = Config::new(&redis);
    let relays = [
        Relay::start(&config).await,
        Relay::start(&config).await,
        Relay::start(&config).await,
    ];
    let publish = async {
        for first in (1..=TOTAL).step_by(50) {
            redis.fill(KEY, first, first + 49, 50).await;
        }
    };
    let ((), one, two) = tokio::join!(
        publish,
        wander(&relays, 0, 170, TOTAL),
        wander(&relays, 1, 230, TOTAL)
    );
    let all: Vec<u64> = (1..=TOTAL).collect();
    assert_eq!(one, all);
    assert_eq!(two, all);
    let groups: Vec<String> = redis.query(&format!("XINFO GROUPS {KEY}")).await;
    assert_eq!(groups, Vec::<String>::new());
}

#[tokio::test]
async fn s11_a_relay_is_killed() {
    let redis = Redis::start().await;
    let config = Config::new(&redis);
    let (mut first, second) = (Relay::start(&config).await, Relay::start(&config).await);
    let mut client = first.open(JOB).await;
    client.expect_live().await;
    redis.fill(KEY, 1, 20, 10).await;
    client.expect_events(1, 10).await;
    first.kill();
    redis.fill(KEY, 21, 30, 10).await;
    let cursor = client.cursor();
    let mut client = second.upgrade(JOB).cursor(&cursor).open().await;
    client.expect_events(11, 30).await;
    client.expect_live().await;
}

/// So many clients that connect at once with this cursor, and get these entries.
async fn storm(relay: &Relay, clients: usize, cursor: &str, first: u64, last: u64) {
    let mut storm = JoinSet::new();
    for _ in 0..clients {
        let upgrade = relay.upgrade(JOB).cursor(cursor);
        storm.spawn(async move {
            let mut client = upgrade.open().await;
            client.expect_events(first, last).await;
            client.expect_live().await;
            client
        });
    }
    assert_eq!(storm.join_all().await.len(), clients);
}

#[tokio::test]
async fn s12_the_storm_leaves_nothing_behind() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    redis.fill(KEY, 1, 3, 10).await;
    storm(&relay, 100, "1-0", 2, 3).await;
    relay
        .metric_reaches("relay_sessions", &[("route", "job")], 0.0)
        .await;
    relay.metric_reaches("relay_connections", &[], 0.0).await;
}
