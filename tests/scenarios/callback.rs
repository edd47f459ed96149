//! The API is asked for the state, and may say no.

use std::time::Duration;

use serde_json::json;

use crate::support::api::{FakeApi, Reply, state};
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::token;
use crate::{JOB, KEY};

/// A relay whose callback has these settings beside its URL.
async fn stage(settings: &str) -> (Redis, FakeApi, Relay) {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis)
        .snapshot_from(&api)
        .route(&format!("[snapshot]\n{settings}"));
    let relay = Relay::start(&config).await;
    (redis, api, relay)
}

#[tokio::test]
async fn s24_the_api_refuses() {
    let (_redis, api, relay) = stage(r#"on_error = "stream""#).await;
    for (status, code) in [(401, 4401), (403, 4403), (404, 4404)] {
        api.answer(Reply::status(status));
        let refusal = relay.upgrade(JOB).refused().await;
        assert_eq!(refusal.code(), code, "{refusal:?}");
        assert!(!refusal.reason().is_empty());
    }
    assert_eq!(api.calls().len(), 3, "a refusal is not tried again");
}

/// Everything that is no snapshot.
fn failures() -> Vec<(&'static str, Reply)> {
    vec![
        ("500", Reply::status(500)),
        ("503", Reply::status(503)),
        ("400", Reply::status(400)),
        (
            "a timeout",
            Reply::json(&state()).delay(Duration::from_secs(3)),
        ),
        (
            "2 MiB",
            Reply::text(200, format!("\"{}\"", "x".repeat(2 * 1024 * 1024))),
        ),
        ("broken JSON", Reply::text(200, r#"{"state":"#)),
        ("no JSON", Reply::text(200, "<html>")),
        ("nothing", Reply::text(200, "")),
        (
            "a redirect",
            Reply::status(302).header("location", "/elsewhere"),
        ),
    ]
}

#[tokio::test]
async fn s24_a_failure_closes() {
    let (_redis, api, relay) = stage("retries = 0\ntimeout = \"500ms\"").await;
    for (name, reply) in failures() {
        let calls = api.calls().len();
        api.answer(reply);
        let refusal = relay.upgrade(JOB).refused().await;
        assert_eq!(refusal.code(), 1011, "{name}: {refusal:?}");
        assert!(!refusal.reason().is_empty(), "{name}");
        assert_eq!(api.calls().len(), calls + 1, "{name}");
    }
    assert!(api.calls().iter().all(|call| call.path != "/elsewhere"));
}

#[tokio::test]
async fn s24_a_failure_streams_and_says_so() {
    let settings = "retries = 0\ntimeout = \"500ms\"\non_error = \"stream\"";
    let (redis, api, relay) = stage(settings).await;
    let mut number = 0;
    for (name, reply) in failures() {
        number += 1;
        api.answer(reply);
        let mut client = relay.open(JOB).await;
        client.expect_status("no_snapshot").await;
        client.expect_live().await;
        redis.fill(KEY, number, number, 10).await;
        client.expect_events(number, number).await;
        assert_eq!(client.cursor(), format!("{number}-0"), "{name}");
    }
}

#[tokio::test]
async fn s24_an_api_that_is_not_there() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api);
    drop(api);
    let relay = Relay::start(&config).await;
    assert_eq!(relay.upgrade(JOB).refused().await.code(), 1011);
    let metrics = relay.metrics().await;
    let outcomes = metrics.label_values("relay_snapshot_requests_total", "outcome");
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
}

#[tokio::test]
async fn s24_tried_again_where_that_helps() {
    let (_redis, api, relay) = stage("retries = 2").await;
    for status in [503, 502] {
        api.answer_once(Reply::status(status));
    }
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    assert_eq!(api.calls().len(), 3);

    api.answer(Reply::status(504));
    assert_eq!(relay.upgrade(JOB).refused().await.code(), 1011);
    assert_eq!(api.calls().len(), 6);
    api.answer(Reply::status(500));
    assert_eq!(relay.upgrade(JOB).refused().await.code(), 1011);
    assert_eq!(api.calls().len(), 7, "a 500 is not tried again");
}

#[tokio::test]
async fn the_api_sees_who_asks() {
    let settings = r#"headers = { x-relay-subject = "{claims.sub}", x-job = "{job_id}" }"#;
    let (_redis, api, relay) = stage(settings).await;
    let authorization = format!("Bearer {}", token("alice"));
    let upgrade = relay
        .upgrade(JOB)
        .no_token()
        .header("authorization", &authorization)
        .header("cookie", "a=b")
        .header("x-request-id", "r-1")
        .header("x-relay-subject", "mallory")
        .header("x-secret", "not forwarded");
    upgrade.open().await.expect_snapshot("connect").await;

    let call = &api.calls()[0];
    assert_eq!(call.method, "GET");
    assert_eq!(call.path, "/internal/jobs/42/state");
    let seen = |name: &str| {
        let values = call.headers.get_all(name).iter();
        let values: Vec<_> = values.map(|value| value.to_str().unwrap()).collect();
        values.join(", ")
    };
    assert_eq!(seen("authorization"), authorization);
    assert_eq!(seen("cookie"), "a=b");
    assert_eq!(seen("x-request-id"), "r-1");
    assert_eq!(seen("x-relay-subject"), "alice");
    assert_eq!(seen("x-job"), "42");
    assert_eq!(seen("x-secret"), "");
    assert_eq!(seen("upgrade"), "");
    assert_eq!(seen("sec-websocket-key"), "");
}

#[tokio::test]
async fn a_snapshot_is_forwarded_as_it_is() {
    let (_redis, api, relay) = stage("").await;
    let body = r#"{ "b":1.50, "a":[ ], "b":2, "big":12345678901234567890123 }"#;
    api.answer(Reply::text(200, body));
    let text = relay.open(JOB).await.text().await;
    assert!(text.contains(body), "{text}");
}

#[tokio::test]
async fn callbacks_wait_for_their_turn() {
    let settings = "max_in_flight = 1\nqueue = \"300ms\"\ntimeout = \"5s\"";
    let (_redis, api, relay) = stage(settings).await;
    api.close_gate();
    let first = relay.open(JOB);
    let second = async {
        api.called(1).await;
        let refusal = relay.upgrade("/ws/jobs/43").refused().await;
        api.open_gate();
        refusal
    };
    let (mut first, refusal) = tokio::join!(first, second);
    assert_eq!(refusal.code(), 1013, "{refusal:?}");
    first.expect_snapshot("connect").await;
    assert_eq!(api.calls().len(), 1);
}

#[tokio::test]
async fn the_position_is_noted_when_the_callback_is_sent() {
    let settings = "max_in_flight = 1\ntimeout = \"5s\"";
    let (redis, api, relay) = stage(settings).await;
    redis.xadd(KEY, "1-0", "before").await;
    // A client that comes back needs no snapshot: it shows what the relay has read.
    let mut watcher = relay.upgrade(JOB).cursor("1-0").open().await;
    watcher.expect_live().await;

    api.close_gate();
    let answer = async {
        api.called(1).await;
        redis.xadd(KEY, "2-0", "one sent, one queued").await;
        watcher.expect_event("2-0", "one sent, one queued").await;
        api.open_gate();
    };
    let (mut one, mut other, ()) = tokio::join!(relay.open(JOB), relay.open(JOB), answer);
    let mut cursors = Vec::new();
    for client in [&mut one, &mut other] {
        client.expect_snapshot("connect").await;
        cursors.push(client.cursor());
    }
    cursors.sort();
    assert_eq!(cursors, ["1-0", "2-0"]);
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_back() {
    let settings = "max_in_flight = 1\ntimeout = \"9s\"\nqueue = \"9s\"";
    let (_redis, api, relay) = stage(settings).await;
    api.close_gate();
    {
        let leaving = relay.open(JOB);
        tokio::select! {
            client = leaving => panic!("served without a snapshot: {client:?}"),
            () = api.called(1) => {}
        }
    }
    let answer = async {
        api.called(2).await;
        api.answer(Reply::json(&json!("for the second")));
        api.open_gate();
    };
    let (mut second, ()) = tokio::join!(relay.open(JOB), answer);
    assert_eq!(second.expect_snapshot("connect").await, "for the second");
    relay
        .metric_reaches("relay_snapshot_in_flight", &[("route", "job")], 0.0)
        .await;
}
