//! Requests that mean no good.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::api::FakeApi;
use crate::support::client::Received;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::token;
use crate::support::upgrade::{Answer, Refusal};
use crate::support::wait::{DEADLINE, eventually, within};
use crate::{JOB, KEY};

#[tokio::test]
async fn s25_hostile_paths_are_refused() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let relay = Relay::start(&Config::new(&redis).snapshot_from(&api)).await;
    let long = "a".repeat(10_000);
    let hostile = [
        "op1/../op2",
        "op1%2f..%2fop2",
        "..",
        "%2e%2e",
        "op1%0d%0aX:%20y",
        "op1%0a",
        "*",
        "%2a",
        "{x}",
        "%7bx%7d",
        "%00",
        "op1%00",
        "op1%20",
        "%ff",
        "%c3%28",
        "%",
        "%zz",
        "op1?x=1#y%",
        "",
        "%E2%80%AE",
        &long,
    ];
    for value in hostile {
        let harmless = value.starts_with("op1?");
        let answer = relay.upgrade(&format!("/ws/jobs/{value}")).send().await;
        match answer {
            Answer::Dropped => {}
            Answer::Status(response) => {
                assert!(
                    (400..=431).contains(&response.status),
                    "{value}: {response:?}"
                );
            }
            Answer::Upgraded(mut client) => match client.next().await {
                Received::Closed(code, _) => assert!([4400, 4404].contains(&code), "{value}"),
                Received::Text(_) if harmless => {}
                other => panic!("{value}: {other:?}"),
            },
        }
    }
    let calls = api.calls();
    assert!(
        calls
            .iter()
            .all(|call| call.path == "/internal/jobs/op1/state"),
        "{calls:?}"
    );
    let status = relay.statusz().await;
    let streams = status["streams"].as_array().unwrap().iter();
    let keys: Vec<_> = streams.map(|stream| stream["key"].clone()).collect();
    assert_eq!(keys, ["job:op1:updates"]);
    assert!(relay.open(JOB).await.frame().await["type"] == "snapshot");
}

#[tokio::test]
async fn s25_values_are_escaped_where_they_are_used() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis)
        .snapshot_from(&api)
        .route(r#"params = { job_id = "(?s).{1,64}" }"#);
    let relay = Relay::start(&config).await;
    let value = "a/../b?x=y&z#%{c} \u{e9}";
    let path = "/ws/jobs/a%2F..%2Fb%3Fx=y&z%23%25%7Bc%7D%20%C3%A9";
    let mut client = relay.open(path).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    let seen = &api.calls()[0].path;
    let raw = seen.strip_prefix("/internal/jobs/").unwrap();
    let raw = raw.strip_suffix("/state").unwrap();
    assert!(!raw.contains(['/', '?', '#', '&', ' ', '{']), "{seen}");
    redis
        .xadd(&format!("job:{value}:updates"), "1-0", "x")
        .await;
    client.expect_event("1-0", "x").await;
}

#[tokio::test]
async fn s25_one_job_never_sees_another() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).route("history = \"all\"")).await;
    for job in ["job-1", "job-11", "job-", "job-1x"] {
        redis.xadd(&format!("job:{job}:updates"), "1-0", job).await;
    }
    let mut client = relay.open("/ws/jobs/job-1").await;
    client.expect_event("1-0", "job-1").await;
    client.expect_live().await;
    for job in ["job-11", "job-", "job-1x", "job-1"] {
        redis.xadd(&format!("job:{job}:updates"), "2-0", job).await;
    }
    client.expect_event("2-0", "job-1").await;
    client.expect_silence(Duration::from_millis(300)).await;
}

#[tokio::test]
async fn s25_query_variables_are_checked_too() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).another_route(
        r#"
        name = "room"
        path = "/ws/room"
        streams = ["room:{query.room}"]
        message = { field = "data" }
        "#,
    );
    let relay = Relay::start(&config).await;
    let mut client = relay.upgrade("/ws/room").query("room", "blue").open().await;
    client.expect_live().await;
    redis.xadd("room:blue", "1-0", "x").await;
    client.expect_event("1-0", "x").await;
    for room in ["*", "a b", "a\r\nb", "{x}", "../b", ""] {
        let refusal = relay
            .upgrade("/ws/room")
            .query("room", room)
            .refused()
            .await;
        assert_eq!(refusal.code(), 4404, "{room:?}: {refusal:?}");
    }
    let refusal = relay.upgrade("/ws/room").refused().await;
    assert!([4400, 4404].contains(&refusal.code()), "{refusal:?}");
}

#[tokio::test]
async fn s26_origins_that_are_listed() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with(
        r#"[server]
        allowed_origins = ["https://app.example", "https://*.example.org"]"#,
    );
    let relay = Relay::start(&config).await;
    let from = |origin: &str| relay.upgrade(JOB).header("origin", origin);
    for origin in [
        "https://app.example",
        "https://a.example.org",
        "https://a.b.example.org",
    ] {
        from(origin).open().await.expect_live().await;
    }
    relay.open(JOB).await.expect_live().await;
    let others = [
        "https://evil.example",
        "http://app.example",
        "https://app.example.evil.example",
        "https://app.example:8443",
        "https://example.org",
        "https://evilexample.org",
        "https://x.example.org.evil.example",
        "null",
    ];
    for origin in others {
        let refusal = from(origin).refused().await;
        assert_eq!(refusal.code(), 4403, "{origin}: {refusal:?}");
    }
}

#[tokio::test]
async fn s26_without_a_list_only_the_own_host() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    let from = |origin: &str| relay.upgrade(JOB).header("origin", origin);
    for origin in ["http://127.0.0.1", "https://127.0.0.1:3000"] {
        from(origin).open().await.expect_live().await;
    }
    for origin in ["http://localhost", "https://evil.example", "null"] {
        assert_eq!(from(origin).refused().await.code(), 4403, "{origin}");
    }
}

#[tokio::test]
async fn s26_a_foreign_origin_by_status() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).with("[auth]\nreject = \"http\"")).await;
    let upgrade = relay.upgrade(JOB).header("origin", "https://evil.example");
    let Refusal::Status(403, body) = upgrade.refused().await else {
        panic!("not refused with 403");
    };
    assert!(body["error"].is_string(), "{body}");
}

#[tokio::test]
async fn s27_heads_that_never_end() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with("[server]\nhandshake_timeout = \"1s\"");
    let relay = Relay::start(&config).await;
    let mut client = relay.open(JOB).await;
    client.expect_live().await;
    let mut slow = TcpStream::connect(relay.address()).await.unwrap();
    slow.write_all(b"GET /ws/jobs/42 HTTP/1.1\r\nhost: x\r\n")
        .await
        .unwrap();
    let mut silent = TcpStream::connect(relay.address()).await.unwrap();
    for stream in [&mut slow, &mut silent] {
        let mut answer = Vec::new();
        let end = within(DEADLINE, "the end", stream.read_to_end(&mut answer));
        // Cut, or told so; both are an end.
        end.await.ok();
    }
    redis.xadd(KEY, "1-0", "unharmed").await;
    client.expect_event("1-0", "unharmed").await;
    relay.metric_reaches("relay_connections", &[], 1.0).await;
}

#[tokio::test]
async fn s27_heads_that_are_too_large() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    let upgrade = relay.upgrade(JOB).header("x-filler", &"x".repeat(40_000));
    match upgrade.send().await {
        Answer::Dropped => {}
        Answer::Status(response) => assert!((400..500).contains(&response.status)),
        Answer::Upgraded(_) => panic!("a head of 40 kB was taken"),
    }
    relay.open(JOB).await.expect_live().await;
}

#[tokio::test]
async fn s27_connections_have_a_limit() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with("[server]\nmax_connections = 3");
    let relay = Relay::start(&config).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = relay.open(JOB).await;
        client.expect_live().await;
        clients.push(client);
    }
    // Refused, or left to wait; not served.
    let fourth = relay.upgrade(JOB).send();
    match tokio::time::timeout(Duration::from_secs(1), fourth).await {
        Ok(Answer::Upgraded(mut client)) => assert_ne!(client.expect_close(4429).await, ""),
        Ok(Answer::Status(response)) => assert!([429, 503].contains(&response.status)),
        Ok(Answer::Dropped) | Err(_) => {}
    }
    redis.xadd(KEY, "1-0", "unharmed").await;
    for client in &mut clients {
        client.expect_event("1-0", "unharmed").await;
    }
    clients.pop().unwrap().vanish();
    eventually("there is room again", async || {
        match relay.upgrade(JOB).send().await {
            Answer::Upgraded(mut client) => {
                matches!(client.next().await, Received::Text(_)).then_some(())
            }
            Answer::Status(_) | Answer::Dropped => None,
        }
    })
    .await;
}

#[tokio::test]
async fn s27_messages_without_end() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    let mut other = relay.upgrade(JOB).token(token("bob")).open().await;
    other.expect_live().await;

    let mut large = relay.open(JOB).await;
    large.expect_live().await;
    large.send("x".repeat(1024 * 1024)).await;
    large.expect_close(1009).await;

    let mut endless = relay.open(JOB).await;
    endless.expect_live().await;
    endless.send_fragment("0123456789abcdef", true).await;
    for _ in 0..2_000 {
        endless.send_fragment("0123456789abcdef", false).await;
    }
    let Received::Closed(code, _) = endless.next().await else {
        panic!("fragments without end are taken");
    };
    assert!([1009, 4429].contains(&code), "{code}");

    let mut flood = relay.open(JOB).await;
    flood.expect_live().await;
    for _ in 0..100 {
        flood.send(r#"{"type":"ping"}"#).await;
    }
    let (_, end) = flood.drain().await;
    assert!(matches!(end, Received::Closed(4429, _)), "{end:?}");

    redis.xadd(KEY, "1-0", "unharmed").await;
    other.expect_event("1-0", "unharmed").await;
}
