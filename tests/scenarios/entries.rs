//! Formats, and entries that don't fit them.

use serde_json::json;

use crate::support::api::{FakeApi, Reply};
use crate::support::client::Client;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::wait::eventually;
use crate::{JOB, KEY};

async fn stage(message: &str) -> (Redis, Relay, Client) {
    let redis = Redis::start().await;
    let config = Config::new(&redis).route(&format!("[message]\n{message}"));
    let relay = Relay::start(&config).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    (redis, relay, client)
}

async fn omitted(relay: &Relay, reasons: &[&str]) {
    for reason in reasons {
        let labels = [("reason", *reason)];
        relay
            .metric_reaches("relay_entries_omitted_total", &labels, 1.0)
            .await;
    }
}

/// Of more than the megabyte that a payload may have.
fn two_mebibytes() -> String {
    "x".repeat(2 * 1024 * 1024)
}

const NOT_TEXT: &[u8] = &[0xff, 0xfe, 0x00, 0x80];

#[tokio::test]
async fn s30_envelope() {
    let (redis, relay, mut client) = stage("format = \"envelope\"").await;
    redis.xadd_fields(KEY, "1-0", &[("other", b"x")]).await;
    redis.xadd(KEY, "2-0", "{\"broken\":").await;
    redis.xadd(KEY, "3-0", two_mebibytes()).await;
    redis.xadd_fields(KEY, "4-0", &[("data", NOT_TEXT)]).await;
    redis
        .xadd(KEY, "5-0", json!({ "fine": [1, "\u{e9}", null] }))
        .await;

    let omission = |frame: serde_json::Value| (frame["data"].clone(), frame["omitted"].clone());
    let no_field = client.expect("event").await;
    assert_eq!(no_field["id"], "1-0");
    assert_eq!(omission(no_field), (json!(null), json!("no_field")));
    client.expect_event("2-0", "{\"broken\":").await;
    let too_large = client.expect("event").await;
    assert_eq!(too_large["cursor"], "3-0");
    assert_eq!(omission(too_large), (json!(null), json!("too_large")));
    let not_text = client.expect("event").await;
    assert_eq!(omission(not_text), (json!(null), json!("not_text")));
    let fine = client
        .expect_event("5-0", json!({ "fine": [1, "\u{e9}", null] }))
        .await;
    assert!(fine.get("omitted").is_none(), "{fine}");
    omitted(&relay, &["no_field", "too_large", "not_text"]).await;
}

#[tokio::test]
async fn s30_verbatim() {
    let (redis, relay, mut client) = stage("format = \"verbatim\"").await;
    redis.xadd_fields(KEY, "1-0", &[("other", b"x")]).await;
    redis.xadd(KEY, "2-0", two_mebibytes()).await;
    redis.xadd_fields(KEY, "3-0", &[("data", NOT_TEXT)]).await;
    redis.xadd(KEY, "4-0", "{\"broken\": ").await;
    assert_eq!(client.text().await, "{\"broken\": ");
    omitted(&relay, &["no_field", "too_large", "not_text"]).await;
}

#[tokio::test]
async fn s30_merge() {
    let (redis, relay, mut client) = stage("format = \"merge\"").await;
    redis.xadd_fields(KEY, "1-0", &[("other", b"x")]).await;
    redis.xadd(KEY, "2-0", "{\"broken\":").await;
    redis.xadd(KEY, "3-0", two_mebibytes()).await;
    redis.xadd_fields(KEY, "4-0", &[("data", NOT_TEXT)]).await;
    redis.xadd(KEY, "5-0", json!({ "fine": true })).await;
    let event = client.frame().await;
    assert_eq!(event, json!({ "id": "5-0", "fine": true }));
    omitted(
        &relay,
        &["no_field", "not_an_object", "too_large", "not_text"],
    )
    .await;
}

#[tokio::test]
async fn s30_a_payload_of_the_largest_size_passes() {
    let (redis, _relay, mut client) = stage("max_bytes = \"1KiB\"").await;
    let largest = "x".repeat(1024);
    redis.xadd(KEY, "1-0", &largest).await;
    redis.xadd(KEY, "2-0", format!("{largest}x")).await;
    client.expect_event("1-0", largest).await;
    let event = client.expect_event("2-0", json!(null)).await;
    assert_eq!(event["omitted"], "too_large");
}

#[tokio::test]
async fn all_fields_as_an_object() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).route_without("message");
    let relay = Relay::start(&config).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    let fields: [(&str, &[u8]); 3] = [("a", b"1"), ("b", b"{\"c\":2}"), ("d\"", b"\"")];
    redis.xadd_fields(KEY, "1-0", &fields).await;
    client
        .expect_event("1-0", json!({ "a": "1", "b": "{\"c\":2}", "d\"": "\"" }))
        .await;
}

#[tokio::test]
async fn data_is_json_if_it_is_json() {
    let (redis, _relay, mut client) = stage("format = \"envelope\"").await;
    let cases = [
        ("42", json!(42)),
        ("null", json!(null)),
        ("\"text\"", json!("text")),
        ("text", json!("text")),
        ("", json!("")),
        (" [1] ", json!([1])),
        ("{} {}", json!("{} {}")),
        ("NaN", json!("NaN")),
        ("a\nb\u{0}\u{2028}", json!("a\nb\u{0}\u{2028}")),
    ];
    for (index, (payload, data)) in cases.into_iter().enumerate() {
        let id = format!("{}-0", index + 1);
        redis
            .xadd_fields(KEY, &id, &[("data", payload.as_bytes())])
            .await;
        client.expect_event(&id, data).await;
    }
}

#[tokio::test]
async fn merge_names_the_key_of_the_id() {
    let (redis, relay, mut client) = stage("format = \"merge\"\nid_key = \"cursor\"").await;
    redis.xadd(KEY, "1-0", "{}").await;
    assert_eq!(client.frame().await, json!({ "cursor": "1-0" }));
    redis.xadd(KEY, "2-0", json!({ "a": { "b": 1 } })).await;
    let event = client.frame().await;
    assert_eq!(event, json!({ "cursor": "2-0", "a": { "b": 1 } }));
    let mut client = relay.upgrade(JOB).cursor("1-0").open().await;
    assert_eq!(client.frame().await, event);
}

#[tokio::test]
async fn verbatim_with_a_snapshot() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis)
        .snapshot_from(&api)
        .route("[message]\nformat = \"verbatim\"\ncontrol = false");
    let relay = Relay::start(&config).await;
    api.answer(Reply::text(200, "{ \"as\":\"it is\" }"));
    redis.xadd(KEY, "1-0", "before").await;
    let mut client = relay.open(JOB).await;
    assert_eq!(client.text().await, "{ \"as\":\"it is\" }");
    redis.xadd(KEY, "2-0", "after").await;
    assert_eq!(client.text().await, "after");
}

#[tokio::test]
async fn snapshot_template() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api).route(
        r#"
        [message]
        format = "merge"
        control = false
        snapshot_template = '{"kind":"{reason}","id":"{cursor}","body":{body}}'
        "#,
    );
    let relay = Relay::start(&config).await;
    // What is put in is not looked at again.
    api.answer(Reply::text(200, r#"{"a":"{cursor}"}"#));
    redis.xadd(KEY, "1-0", "{}").await;
    let mut client = relay.open(JOB).await;
    assert_eq!(
        client.text().await,
        r#"{"kind":"connect","id":"1-0","body":{"a":"{cursor}"}}"#
    );
    redis.xadd(KEY, "2-0", "{}").await;
    assert_eq!(client.frame().await, json!({ "id": "2-0" }));
}

#[tokio::test]
async fn without_control_frames_a_gap_is_a_snapshot() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis)
        .snapshot_from(&api)
        .route("[message]\ncontrol = false");
    let relay = Relay::start(&config).await;
    redis.xadd(KEY, "1-0", "one").await;
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    lose_entries(&redis).await;
    client.expect_snapshot("trimmed").await;
    redis.xadd(KEY, "52-0", "next").await;
    client.expect_event("52-0", "next").await;
}

#[tokio::test]
async fn without_control_frames_and_snapshot_a_gap_is_the_end() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).route("[message]\ncontrol = false");
    let relay = Relay::start(&config).await;
    redis.xadd(KEY, "1-0", "one").await;
    let mut client = relay.open(JOB).await;
    eventually("it is served", async || {
        let sessions = relay.metrics().await.value("relay_sessions", &[]);
        (sessions > 0.0).then_some(())
    })
    .await;
    redis.xadd(KEY, "2-0", "two").await;
    client.expect_event("2-0", "two").await;
    lose_entries(&redis).await;
    let reason = client.expect_close(4409).await;
    assert!(!reason.is_empty());

    let refusal = relay.upgrade(JOB).cursor("1-0").refused().await;
    assert_eq!(refusal.code(), 4409);
}

async fn lose_entries(redis: &Redis) {
    let lines: Vec<String> = (3..=51)
        .map(|number| format!("XADD {KEY} MAXLEN 5 {number}-0 data {number}"))
        .collect();
    redis.transaction(&lines).await;
}
