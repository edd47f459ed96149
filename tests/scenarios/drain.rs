//! The pod goes: nobody misses anything.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::api::FakeApi;
use crate::support::client::{Client, Received};
use crate::support::command::Running;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::upgrade::Refusal;
use crate::support::wait::{DEADLINE, eventually};
use crate::{JOB, KEY};

const CLIENTS: usize = 200;
const WINDOW: Duration = Duration::from_secs(3);
const SHORT: &str = "[drain]\ndelay = \"300ms\"\nwindow = \"3s\"\ngrace = \"1s\"";

/// How the relay has let a client go.
#[derive(Debug)]
struct End {
    at: Instant,
    cursor: String,
    seen: u64,
}

/// Reads events up to the goaway and the close that follows.
async fn read_to_the_end(mut client: Client) -> End {
    let mut seen = 0;
    loop {
        let frame = client.frame().await;
        if frame["type"] == "goaway" {
            assert_eq!(frame["reason"], "drain");
            assert!(frame["retry_after_ms"].is_u64(), "{frame}");
            break;
        }
        seen += 1;
        assert_eq!(frame["id"], format!("{seen}-0"), "{frame}");
    }
    let at = Instant::now();
    client.expect_close(1012).await;
    End {
        at,
        cursor: client.cursor(),
        seen,
    }
}

/// Adds entries, one every few milliseconds, until it is told to stop; says how many.
async fn publish_until(redis: &Redis, stop: impl Future<Output = ()>) -> u64 {
    let mut number = 0;
    let mut stop = std::pin::pin!(stop);
    let mut beat = tokio::time::interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            () = &mut stop => return number,
            _ = beat.tick() => {
                number += 1;
                redis.fill(KEY, number, number, 10).await;
            }
        }
    }
}

fn assert_spread(ends: &[End], start: Instant) {
    let tenth = WINDOW / 10;
    let mut tenths = [0; 12];
    for end in ends {
        let into = end.at.duration_since(start).as_millis() / tenth.as_millis();
        tenths[usize::try_from(into).unwrap().min(11)] += 1;
    }
    let quarter = ends.len() / 4;
    assert!(tenths.iter().all(|count| *count <= quarter), "{tenths:?}");
}

#[tokio::test]
async fn s28_sigterm() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with(SHORT);
    let (mut going, staying) = (Relay::start(&config).await, Relay::start(&config).await);
    let mut reading = JoinSet::new();
    for client in going.open_live(JOB, CLIENTS).await {
        reading.spawn(read_to_the_end(client));
    }

    going.sigterm();
    let start = Instant::now();
    eventually("/readyz is 503", async || {
        let (status, body) = going.readyz().await;
        (status == 503 && body.to_string().contains("drain")).then_some(())
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(1), "at once");
    assert_eq!(going.livez().await, 200);

    let mut ends = Vec::new();
    let collect = async { ends = reading.join_all().await };
    let last = publish_until(&redis, collect).await;
    assert_eq!(ends.len(), CLIENTS);
    assert_spread(&ends, start + Duration::from_millis(300));
    let status = going.wait_exit(DEADLINE).await;
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(6), "in time");

    for end in ends.iter().step_by(10) {
        let mut client = staying.upgrade(JOB).cursor(&end.cursor).open().await;
        client.expect_events_around_live(end.seen + 1, last).await;
    }
}

#[tokio::test]
async fn s28_drain_and_wait_then_sigterm_is_one_drain() {
    let redis = Redis::start().await;
    let mut relay = Relay::start(&Config::new(&redis).with(SHORT)).await;
    let clients = relay.open_live(JOB, 20).await;
    let admin = relay.admin_address().to_string();
    let config = relay.config_file().display().to_string();
    let start = Instant::now();
    let arguments = ["drain", "--wait", "--config", &config, "--admin", &admin];
    let mut command = Running::start(&arguments);
    eventually("/readyz is 503", async || {
        (relay.readyz().await.0 == 503).then_some(())
    })
    .await;
    assert!(command.is_running(), "it waits for the sessions");
    let mut reading = JoinSet::new();
    for client in clients {
        reading.spawn(read_to_the_end(client));
    }
    assert_eq!(reading.join_all().await.len(), 20);
    let finished = command.finish(Duration::from_secs(5)).await;
    assert_eq!(finished.code, Some(0), "{}", finished.output);
    assert!(start.elapsed() < Duration::from_secs(6));

    // The process stays, not ready and refusing, until a signal.
    assert_eq!(relay.readyz().await.0, 503);
    assert_eq!(relay.livez().await, 200);
    let signalled = Instant::now();
    relay.sigterm();
    let status = relay.wait_exit(DEADLINE).await;
    assert!(status.success(), "{status}");
    assert!(
        signalled.elapsed() < Duration::from_secs(2),
        "it had drained"
    );
}

#[tokio::test]
async fn s28_sigterm_during_a_drain_joins_it() {
    let redis = Redis::start().await;
    let mut relay = Relay::start(&Config::new(&redis).with(SHORT)).await;
    let clients = relay.open_live(JOB, 20).await;
    let admin = relay.admin_address().to_string();
    let config = relay.config_file().display().to_string();
    let start = Instant::now();
    let command = Running::start(&["drain", "--wait", "--config", &config, "--admin", &admin]);
    eventually("/readyz is 503", async || {
        (relay.readyz().await.0 == 503).then_some(())
    })
    .await;
    relay.sigterm();
    let mut reading = JoinSet::new();
    for client in clients {
        reading.spawn(read_to_the_end(client));
    }
    assert_eq!(reading.join_all().await.len(), 20);
    assert!(relay.wait_exit(DEADLINE).await.success());
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "one drain, not two"
    );
    let finished = command.finish(DEADLINE).await;
    assert_eq!(finished.code, Some(0), "{}", finished.output);
}

#[tokio::test]
async fn s28_abort_sends_no_close_frame() {
    let redis = Redis::start().await;
    let config = Config::new(&redis)
        .with(SHORT)
        .with("[drain]\nmode = \"abort\"");
    let mut relay = Relay::start(&config).await;
    let clients = relay.open_live(JOB, 20).await;
    redis.xadd(KEY, "1-0", "written before the end").await;
    relay.sigterm();
    for client in clients {
        let (texts, end) = client.drain().await;
        assert_eq!(end, Received::Cut);
        assert!(texts[0].contains("written before the end"), "{texts:?}");
    }
    assert!(relay.wait_exit(DEADLINE).await.success());
}

#[tokio::test]
async fn s28_a_second_signal_cuts() {
    let redis = Redis::start().await;
    let long = "[drain]\ndelay = \"1m\"\nwindow = \"1m\"\ngrace = \"1m\"";
    let mut relay = Relay::start(&Config::new(&redis).with(long)).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    relay.sigterm();
    eventually("/readyz is 503", async || {
        (relay.readyz().await.0 == 503).then_some(())
    })
    .await;
    // Announced: still served, and still accepting.
    redis.xadd(KEY, "1-0", "served").await;
    client.expect_event("1-0", "served").await;
    relay.open(JOB).await.expect_live().await;
    relay.sigterm();
    relay.wait_exit(Duration::from_secs(5)).await;
    client.drain().await;
}

#[tokio::test]
async fn s28_requests_that_wait_are_told() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis)
        .with(SHORT)
        .snapshot_from(&api)
        .route("[snapshot]\ntimeout = \"30s\"");
    let mut relay = Relay::start(&config).await;
    api.close_gate();
    let waiting = relay.upgrade(JOB).refused();
    let draining = async {
        api.called(1).await;
        relay.sigterm();
    };
    let (refusal, ()) = tokio::join!(waiting, draining);
    let told = [
        Refusal::closed(1013, "draining"),
        Refusal::status(503, "draining"),
    ];
    assert!(told.contains(&refusal), "{refusal:?}");
    assert!(relay.wait_exit(DEADLINE).await.success());
}
