//! What operators see: metrics, status, logs. And what they must not see.

use serde_json::json;

use crate::support::api::FakeApi;
use crate::support::config::Config;
use crate::support::http::get;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{now, token, token_with};
use crate::{JOB, KEY};

#[tokio::test]
async fn metrics_are_there() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let relay = Relay::start(&Config::new(&redis).snapshot_from(&api)).await;
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    let id = redis.xadd(KEY, "*", "x").await;
    client.expect_event(&id, "x").await;
    relay
        .metric_reaches("relay_sessions", &[("route", "job")], 1.0)
        .await;
    relay.metric_reaches("relay_feeds", &[], 1.0).await;

    let metrics = relay.metrics().await;
    let at_least = [
        ("relay_build_info", 1.0),
        ("relay_connects_total", 1.0),
        ("relay_frames_sent_total", 3.0),
        ("relay_bytes_sent_total", 100.0),
        ("relay_delivery_latency_seconds_count", 1.0),
        ("relay_snapshot_requests_total", 1.0),
        ("relay_snapshot_duration_seconds_count", 1.0),
        ("relay_redis_up", 1.0),
        ("relay_redis_tracking", 1.0),
        ("relay_redis_commands_total", 2.0),
        ("relay_feeds", 1.0),
        ("relay_ring_bytes", 1.0),
    ];
    for (name, value) in at_least {
        let seen = metrics.value(name, &[]);
        assert!(seen >= value, "{name} is {seen}");
    }
    let secrets = ["alice", "job:42", "127.0.0.1"];
    for line in metrics.text().lines() {
        assert!(
            line.starts_with("# ") || line.is_empty() || line.starts_with("relay_"),
            "{line}"
        );
        assert!(
            secrets.iter().all(|secret| !line.contains(secret)),
            "{line}"
        );
    }
}

#[tokio::test]
async fn every_metric_is_described() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    relay.open(JOB).await.expect_live().await;
    let metrics = relay.metrics().await;
    let text = metrics.text();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names: Vec<_> = types.filter_map(|line| line.split(' ').next()).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
    }
}

#[tokio::test]
async fn status_and_readiness() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    redis.xadd(KEY, "1-0", "x").await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    let (status, body) = relay.readyz().await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(relay.livez().await, 200);
    let own = get(relay.admin_address(), "/readyz?scope=self").await;
    assert_eq!(own.status, 200);
    let status = relay.statusz().await;
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status.to_string().contains(KEY), "{status}");
    assert_eq!(get(relay.admin_address(), JOB).await.status, 404);
}

#[tokio::test]
async fn readiness_of_the_process_alone() {
    let mut redis = Redis::start().await;
    let config = Config::new(&redis).with("[redis]\ngrace = \"100ms\"");
    redis.kill();
    let relay = Relay::start(&config).await;
    let (status, body) = relay.readyz().await;
    assert_eq!(status, 503, "{body}");
    let own = get(relay.admin_address(), "/readyz?scope=self").await;
    assert_eq!(own.status, 200, "{}", own.text());
    assert_eq!(relay.livez().await, 200);
    redis.start_again().await;
    let up = crate::support::wait::eventually("/readyz is 200", async || {
        (relay.readyz().await.0 == 200).then_some(())
    });
    up.await;
}

#[tokio::test]
async fn no_secret_reaches_the_log() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    redis
        .run("ACL SETUSER relay on >a-password-of-redis ~* +@all")
        .await;
    let config = Config::new(&redis).snapshot_from(&api).with(
        r#"
        [server]
        allowed_origins = ["https://app.example"]
        [redis]
        username = "relay"
        password = "a-password-of-redis"
        [auth]
        token_from = ["header", "subprotocol:bearer.", "cookie:session", "query:token"]
        [log]
        level = "trace"
        "#,
    );
    let relay = Relay::start(&config).await;
    let good = token("alice");
    let expired = token_with("alice", json!({ "exp": now() - 3_000 }));
    for token in [&good, &expired] {
        let bare = || relay.upgrade(JOB).no_token();
        let upgrades = [
            bare().token(token),
            bare()
                .protocol("relay.v1")
                .protocol(&format!("bearer.{token}")),
            bare().header("cookie", &format!("session={token}")),
            bare()
                .query("token", token)
                .query("marker", "a-query-value"),
            bare().query("token", token).cursor("a-cursor-of-nonsense"),
        ];
        for upgrade in upgrades {
            let mut client = upgrade.open().await;
            client.next().await;
        }
    }
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    redis.xadd(KEY, "1-0", "a-payload-of-an-entry").await;
    client.expect_event("1-0", "a-payload-of-an-entry").await;
    client
        .send(r#"{"type":"auth","token":"a-token-in-a-message"}"#)
        .await;
    client.send(r#"{"type":"ping"}"#).await;
    client.next().await;

    assert!(relay.log_lines().len() > 5, "there is a log");
    let mut secrets = vec![
        "a-password-of-redis",
        crate::support::token::SECRET,
        "a-query-value",
        "a-cursor-of-nonsense",
        "a-payload-of-an-entry",
        "a-token-in-a-message",
    ];
    // The signature alone would do for the rest of a token.
    secrets.extend([&good, &expired].map(|token| token.rsplit('.').next().unwrap()));
    secrets.extend([&good, &expired].map(|token| token.split('.').nth(1).unwrap()));
    for secret in secrets {
        assert!(!relay.log_contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn the_log_is_json_lines() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    relay.open(JOB).await.expect_live().await;
    for line in relay.log_lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(&line);
        assert!(parsed.is_ok_and(|line| line.is_object()), "{line}");
    }
}
