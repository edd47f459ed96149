//! How many connections a client may have, and how many may come.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::JOB;
use crate::support::api::{FakeApi, Reply};
use crate::support::client::{Client, Received};
use crate::support::config::Config;
use crate::support::http::get;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{token, token_with};
use crate::support::upgrade::{Answer, Refusal, Upgrade};
use crate::support::wait::eventually;

const PER_IP: &str = "too_many_connections_per_ip";
const PER_SUBJECT: &str = "too_many_connections_per_subject";

async fn stage(server: &str) -> (Redis, Relay) {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).with(&format!("[server]\n{server}"))).await;
    (redis, relay)
}

async fn live(upgrade: Upgrade) -> Client {
    let mut client = upgrade.open().await;
    client.expect_live().await;
    client
}

/// Waits until there is room for one more.
async fn has_room(upgrade: Upgrade) -> Client {
    eventually("there is room", async || {
        let Answer::Upgraded(mut client) = upgrade.clone().send().await else {
            return None;
        };
        matches!(client.next().await, Received::Text(_)).then_some(*client)
    })
    .await
}

#[tokio::test]
async fn an_address_has_its_share() {
    let (_redis, relay) = stage("max_connections_per_ip = 2").await;
    let first = live(relay.upgrade(JOB)).await;
    let _second = live(relay.upgrade(JOB)).await;
    let refusal = relay.upgrade(JOB).refused().await;
    assert_eq!(refusal, Refusal::closed(4429, PER_IP));
    let plain = get(relay.address(), JOB).await;
    assert_eq!(
        (plain.status, plain.json()),
        (429, json!({ "error": PER_IP }))
    );
    let _other = live(relay.upgrade(JOB).from("127.0.0.2")).await;
    let outcome = [("outcome", PER_IP)];
    relay
        .metric_reaches("relay_connects_total", &outcome, 2.0)
        .await;
    first.vanish();
    let _third = has_room(relay.upgrade(JOB)).await;
    assert_eq!(
        relay.upgrade(JOB).refused().await,
        Refusal::closed(4429, PER_IP)
    );
}

#[tokio::test]
async fn a_refusal_by_status_says_when_to_come_back() {
    let redis = Redis::start().await;
    let config = "[auth]\nreject = \"http\"\n[server]\nmax_connections_per_ip = 1";
    let relay = Relay::start(&Config::new(&redis).with(config)).await;
    let _first = live(relay.upgrade(JOB)).await;
    let Answer::Status(response) = relay.upgrade(JOB).send().await else {
        panic!("not refused by status");
    };
    assert_eq!(
        (response.status, response.json()),
        (429, json!({ "error": PER_IP }))
    );
    let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((2..=10).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn a_full_relay_answers_by_status() {
    let (_redis, relay) = stage("max_connections = 1").await;
    let _first = live(relay.upgrade(JOB)).await;
    let Answer::Status(response) = relay.upgrade(JOB).send().await else {
        panic!("not refused by status");
    };
    assert_eq!(
        (response.status, response.json()),
        (429, json!({ "error": "too_many_connections" }))
    );
    assert!(response.header("retry-after").is_some());
}

#[tokio::test]
async fn the_limit_that_holds_is_a_metric() {
    let (redis, relay) = stage("max_connections = 700").await;
    relay
        .metric_reaches("relay_connections_limit", &[], 700.0)
        .await;

    let config = Config::new(&redis).with("[server]\nmax_connections = 700");
    let relay = Relay::start_limited(&config, 1024).await;
    // Half of the files at most are for other things.
    relay
        .metric_reaches("relay_connections_limit", &[], 512.0)
        .await;
}

#[tokio::test]
async fn s27_slow_handshakes_count_for_their_address() {
    let (_redis, relay) = stage("max_connections_per_ip = 3\nhandshake_timeout = \"2s\"").await;
    let _client = live(relay.upgrade(JOB)).await;
    let mut slow = TcpStream::connect(relay.address()).await.unwrap();
    slow.write_all(b"GET /ws/jobs/42 HTTP/1.1\r\n")
        .await
        .unwrap();
    let _silent = TcpStream::connect(relay.address()).await.unwrap();
    relay.metric_reaches("relay_connections", &[], 3.0).await;
    assert_eq!(
        relay.upgrade(JOB).refused().await,
        Refusal::closed(4429, PER_IP)
    );
    let _other = live(relay.upgrade(JOB).from("127.0.0.2")).await;
    // They are cut, and their places are free again.
    let _second = has_room(relay.upgrade(JOB)).await;
}

#[tokio::test]
async fn a_trusted_proxy_says_for_whom_it_asks() {
    let server = "max_connections_per_ip = 2\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]";
    let (_redis, relay) = stage(server).await;
    let of = |list: &str| relay.upgrade(JOB).header("x-forwarded-for", list);
    let first = live(of("192.0.2.7")).await;
    let _second = live(of("203.0.113.9, 192.0.2.7:4711, 10.1.2.3")).await;
    // Two header lines are one list.
    let third = of("192.0.2.7").header("x-forwarded-for", "10.1.2.3");
    assert_eq!(third.refused().await, Refusal::closed(4429, PER_IP));
    assert_eq!(
        of("198.51.100.1, ::ffff:192.0.2.7").refused().await,
        Refusal::closed(4429, PER_IP),
        "what stands further left is the client's own"
    );
    let _other = live(of("192.0.2.7, 192.0.2.8")).await;
    first.vanish();
    let _again = has_room(of("192.0.2.7")).await;

    let _v6 = [
        live(of("2001:db8:1:2::1")).await,
        live(of("[2001:db8:1:2:ffff::]:443")).await,
    ];
    assert_eq!(
        of("2001:db8:1:2:3::4").refused().await,
        Refusal::closed(4429, PER_IP)
    );
    let _neighbour = live(of("2001:db8:1:3::1")).await;
    assert!(relay.log_contains("192.0.2.7"), "the log names the client");

    // Connections that have not said for whom they are belong to nobody.
    for _ in 0..5 {
        drop(TcpStream::connect(relay.address()).await.unwrap());
    }
    let _eighth = live(of("192.0.2.9")).await;
}

#[tokio::test]
async fn nobody_else_is_believed() {
    let server = "max_connections_per_ip = 1\ntrusted_proxies = [\"127.0.0.1\"]";
    let (_redis, relay) = stage(server).await;
    let of = |list: &str| {
        let upgrade = relay.upgrade(JOB).from("127.0.0.2");
        upgrade.header("x-forwarded-for", list)
    };
    let _first = live(of("192.0.2.7")).await;
    assert_eq!(
        of("192.0.2.8").refused().await,
        Refusal::closed(4429, PER_IP)
    );
    let _other = live(relay.upgrade(JOB).header("x-forwarded-for", "192.0.2.7")).await;
}

#[tokio::test]
async fn a_subject_has_its_share() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis)
        .with("[server]\nmax_connections_per_subject = 1")
        .snapshot_from(&api)
        .another_route(
            r#"
            name = "open"
            path = "/ws/open"
            streams = ["open"]
            auth = "none"
            "#,
        );
    let relay = Relay::start(&config).await;
    let of = |subject: &str| relay.upgrade(JOB).token(token(subject));
    let mut alice = of("alice").open().await;
    alice.expect_snapshot("connect").await;
    assert_eq!(
        of("alice").from("127.0.0.2").refused().await,
        Refusal::closed(4429, PER_SUBJECT)
    );
    assert_eq!(api.calls().len(), 1, "the API is not asked for it");
    of("bob").open().await.expect_snapshot("connect").await;
    // Nobody's.
    let nobody = || {
        let claims = json!({ "sub": null });
        relay.upgrade(JOB).token(token_with("", claims))
    };
    for _ in 0..2 {
        nobody().open().await.expect_snapshot("connect").await;
        live(relay.upgrade("/ws/open").token(token("alice"))).await;
    }
    // Whom the API refuses has taken no place for long.
    api.answer(Reply::status(403));
    for _ in 0..3 {
        let refusal = of("carol").refused().await;
        assert_eq!(refusal.code(), 4403, "{refusal:?}");
    }
    alice.close(1000).await;
    eventually("there is room", async || {
        (of("alice").refused().await.code() == 4403).then_some(())
    })
    .await;
    let outcome = [("outcome", PER_SUBJECT)];
    assert!(
        relay
            .metrics()
            .await
            .value("relay_connects_total", &outcome)
            >= 1.0
    );
}

/// A client leaves in this way; its place is free again.
async fn leaves(relay: &Relay, way: &str) {
    let head = |rest: &str| format!("GET {JOB} HTTP/1.1\r\nhost: x\r\n{rest}");
    let raw = async |bytes: &str| {
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    };
    match way {
        "silent" => drop(raw("").await),
        "half a head" => drop(raw(&head("")).await),
        "garbage" => drop(raw("\0\u{1}\r\n\r\n").await),
        "no upgrade" => assert_eq!(get(relay.address(), JOB).await.status, 426),
        "no route" => {
            assert_eq!(relay.upgrade("/none").refused().await.code(), 4404);
        }
        "no token" => {
            assert_eq!(relay.upgrade(JOB).no_token().refused().await.code(), 4401);
        }
        "gone before the answer" => {
            let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n\
                           sec-websocket-version: 13\r\n\
                           sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
            let token = token("alice");
            let bytes = head(&format!("{upgrade}authorization: Bearer {token}\r\n\r\n"));
            drop(raw(&bytes).await);
        }
        "vanishes" => live(relay.upgrade(JOB)).await.vanish(),
        "closes" => {
            let mut client = live(relay.upgrade(JOB)).await;
            client.close(1000).await;
            client.expect_close(1000).await;
        }
        "is closed" => {
            let mut client = live(relay.upgrade(JOB)).await;
            client.send("x".repeat(100_000)).await;
            client.expect_close(1009).await;
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_way_out_gives_the_place_back() {
    let server = "max_connections_per_ip = 1\nmax_connections_per_subject = 1";
    let (_redis, relay) = stage(server).await;
    for way in [
        "silent",
        "half a head",
        "garbage",
        "no upgrade",
        "no route",
        "no token",
        "gone before the answer",
        "vanishes",
        "closes",
        "is closed",
    ] {
        leaves(&relay, way).await;
        has_room(relay.upgrade(JOB)).await.vanish();
        relay.metric_reaches("relay_connections", &[], 0.0).await;
    }
}

#[tokio::test]
async fn more_connects_than_a_second_may_bring() {
    let (_redis, relay) = stage("connects_per_second = 5").await;
    let mut refused = 0;
    for _ in 0..40 {
        // Before the token: a wrong one costs nothing but its place.
        match relay.upgrade(JOB).token("wrong").send().await {
            Answer::Upgraded(mut client) => {
                client.expect_close(4401).await;
            }
            Answer::Status(response) => {
                let error = json!({ "error": "too_many_connects" });
                assert_eq!((response.status, response.json()), (503, error));
                let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
                assert!((2..=10).contains(&seconds), "{seconds}");
                refused += 1;
            }
            Answer::Dropped => panic!("dropped"),
        }
    }
    let metrics = relay.metrics().await;
    let outcome = [("route", "job"), ("outcome", "too_many_connects")];
    let counted = metrics.value("relay_connects_total", &outcome);
    assert!((counted - f64::from(refused)).abs() < f64::EPSILON);
    let verified = metrics.value("relay_token_rejections_total", &[]);
    assert!((verified - f64::from(40 - refused)).abs() < f64::EPSILON);
    assert!(refused >= 10, "{refused} of 40");
    has_room(relay.upgrade(JOB)).await;
    // What is no upgrade request does not count.
    for _ in 0..20 {
        assert_eq!(get(relay.address(), JOB).await.status, 426);
    }
    let mut client = has_room(relay.upgrade(JOB)).await;
    client.expect_silence(Duration::from_millis(100)).await;
}
