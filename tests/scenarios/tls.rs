//! The clients' port over TLS.

use std::time::Duration;

use rustls::version::TLS12;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::Client;
use crate::support::command::Running;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::tls::{Identity, Mount};
use crate::support::token::token;
use crate::support::wait::{DEADLINE, eventually, within};
use crate::{JOB, KEY};

const KIB: usize = 1024;

struct Stage {
    redis: Redis,
    identity: Identity,
    mount: Mount,
    relay: Relay,
}

async fn stage(more: &str) -> Stage {
    let redis = Redis::start().await;
    let identity = Identity::new();
    let mount = Mount::new(&identity);
    let config = Config::new(&redis).with(&mount.config()).with(more);
    let relay = Relay::start(&config).await;
    Stage {
        redis,
        identity,
        mount,
        relay,
    }
}

impl Stage {
    async fn open(&self) -> Client {
        let upgrade = self.relay.upgrade(JOB);
        let client = upgrade.open_tls(self.identity.trust()).await;
        client.unwrap_or_else(|error| panic!("no client: {error}"))
    }

    async fn live(&self) -> Client {
        let mut client = self.open().await;
        client.expect_live().await;
        client
    }

    async fn failures(&self, reason: &str, count: f64) {
        let labels = [("reason", reason)];
        self.relay
            .metric_reaches("relay_tls_handshake_failures_total", &labels, count)
            .await;
    }
}

#[tokio::test]
async fn events_pings_and_closes() {
    let stage = stage("[keepalive]\nping = \"200ms\"").await;
    let mut client = stage.live().await;
    stage.redis.xadd(KEY, "1-0", "x").await;
    client.expect_event("1-0", "x").await;
    client.send("ping").await;
    client.expect("pong").await;
    client.send_ping().await;
    client.expect_silence(Duration::from_secs(1)).await;
    assert!(client.pings() >= 2 && client.pongs() == 1, "{client:?}");
    client.send("x".repeat(17 * KIB)).await;
    client.expect_close(1009).await;

    let mut client = stage.live().await;
    client.close(1000).await;
    client.expect_close(1000).await;
    let refused = stage.relay.upgrade(JOB).token("wrong");
    let mut refused = refused.open_tls(stage.identity.trust()).await.unwrap();
    refused.expect_close(4401).await;
    let relay = &stage.relay;
    relay.metric_reaches("relay_connections", &[], 0.0).await;
}

#[tokio::test]
async fn a_cursor_goes_on_and_batches_are_whole() {
    const ENTRIES: u64 = 3_000;
    let stage = stage("").await;
    let mut client = stage.live().await;
    stage.redis.fill(KEY, 1, 10, 100).await;
    client.expect_events(1, 10).await;
    let cursor = client.cursor();
    client.vanish();
    stage.redis.fill(KEY, 11, ENTRIES, 4 * KIB).await;
    // Little is taken at a time: writes are short.
    let upgrade = stage.relay.upgrade(JOB).cursor(&cursor);
    let upgrade = upgrade.receive_buffer(4 * KIB);
    let mut client = upgrade.open_tls(stage.identity.trust()).await.unwrap();
    client.ignore("live");
    client.expect_events(11, ENTRIES).await;
    // Messages of many records, and pings between them.
    stage
        .redis
        .fill(KEY, ENTRIES + 1, ENTRIES + 60, 60 * KIB)
        .await;
    for number in ENTRIES + 1..=ENTRIES + 60 {
        client.expect_events(number, number).await;
        if number % 8 == 0 {
            client.send_ping().await;
        }
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_reset() {
    let redis = Redis::start().await;
    let identity = Identity::new();
    let mount = Mount::new(&identity);
    let config = Config::new(&redis)
        .with(&mount.config())
        .route("[slow]\nwrite_timeout = \"1s\"");
    let relay = Relay::start(&config).await;
    let upgrade = relay.upgrade(JOB).receive_buffer(4 * KIB);
    let mut stalled = upgrade.open_tls(identity.trust()).await.unwrap();
    stalled.expect_live().await;
    let mut reading = relay.upgrade(JOB).open_tls(identity.trust()).await.unwrap();
    reading.expect_live().await;
    tokio::join!(
        redis.fill(KEY, 1, 3_000, 4 * KIB),
        reading.expect_events(1, 3_000)
    );
    let labels = [("route", "job"), ("code", "4408")];
    relay
        .metric_reaches("relay_closes_total", &labels, 1.0)
        .await;
    relay.metric_reaches("relay_connections", &[], 1.0).await;
    redis.fill(KEY, 3_001, 3_001, 100).await;
    reading.expect_events(3_001, 3_001).await;
}

#[tokio::test]
async fn versions_and_protocols() {
    let stage = stage("").await;
    let connect = async |trust| {
        let opened = stage.relay.upgrade(JOB).open_tls(trust).await;
        opened.map(drop)
    };
    let identity = &stage.identity;
    connect(identity.trust_with(&[&TLS12], &[])).await.unwrap();
    connect(identity.trust_with(rustls::ALL_VERSIONS, &["h2", "http/1.1"]))
        .await
        .unwrap();
    let only_http2 = identity.trust_with(rustls::ALL_VERSIONS, &["h2"]);
    assert!(connect(only_http2).await.is_err());
    stage.failures("failed", 1.0).await;
    let distrusting = Identity::new().trust();
    assert!(connect(distrusting).await.is_err());
    stage.failures("failed", 2.0).await;
}

#[tokio::test]
async fn s27_handshakes_that_come_to_nothing() {
    let server = "[server]\nhandshake_timeout = \"1s\"\nmax_connections_per_ip = 5";
    let stage = stage(server).await;
    let mut client = stage.live().await;
    let connect = async || TcpStream::connect(stage.relay.address()).await.unwrap();
    drop(connect().await);
    stage.failures("closed", 1.0).await;
    let mut plain = connect().await;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut silent = connect().await;
    let mut slow = connect().await;
    slow.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
    for stream in [&mut plain, &mut silent, &mut slow] {
        let mut answer = Vec::new();
        let end = within(DEADLINE, "the end", stream.read_to_end(&mut answer));
        end.await.ok();
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    stage.failures("failed", 1.0).await;
    stage.failures("timeout", 2.0).await;
    stage.redis.xadd(KEY, "1-0", "unharmed").await;
    client.expect_event("1-0", "unharmed").await;

    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(stage.live().await);
    }
    let mut sixth = stage.open().await;
    let reason = sixth.expect_close(4429).await;
    assert_eq!(reason, "too_many_connections_per_ip");
}

#[tokio::test]
async fn a_certificate_is_replaced_while_clients_stay() {
    let mut stage = stage("").await;
    let mut old = stage.live().await;
    let new = Identity::new();
    stage.mount.put(&new.cert_pem(), &new.key_pem());
    let mut fresh = eventually("the new certificate is served", async || {
        stage.relay.upgrade(JOB).open_tls(new.trust()).await.ok()
    })
    .await;
    fresh.expect_live().await;
    let trust = stage.identity.trust();
    assert!(stage.relay.upgrade(JOB).open_tls(trust).await.is_err());
    let reloads = async |outcome, count| {
        let labels = [("outcome", outcome)];
        stage
            .relay
            .metric_reaches("relay_tls_reloads_total", &labels, count)
            .await;
    };
    reloads("loaded", 1.0).await;
    let unusable = async |value| {
        let name = "relay_tls_certificate_unusable";
        stage.relay.metric_reaches(name, &[], value).await;
    };
    unusable(0.0).await;

    // A key of another, then no key at all: the last good pair stays.
    let another = Identity::new();
    stage.mount.put(&another.cert_pem(), &new.key_pem());
    reloads("failed", 1.0).await;
    unusable(1.0).await;
    stage.mount.put(&another.cert_pem(), "");
    reloads("failed", 2.0).await;
    // The line is on its way when the counter is there.
    eventually("both are said", async || {
        let lines = stage.relay.log_lines();
        let said = |line: &&String| line.contains("ERROR") && line.contains("the old one stays");
        (lines.iter().filter(said).count() == 2).then_some(())
    })
    .await;
    let mut third = stage
        .relay
        .upgrade(JOB)
        .open_tls(new.trust())
        .await
        .unwrap();
    third.expect_live().await;

    stage.redis.xadd(KEY, "1-0", "to all").await;
    for client in [&mut old, &mut fresh, &mut third] {
        client.expect_event("1-0", "to all").await;
    }
    // As it was: nothing to take, and no fault any more.
    stage.mount.put(&new.cert_pem(), &new.key_pem());
    unusable(0.0).await;
    stage.mount.put(&another.cert_pem(), &another.key_pem());
    reloads("loaded", 2.0).await;
}

#[tokio::test]
async fn tail_trusts_the_certificates_of_a_file() {
    let stage = stage("").await;
    let url = format!("wss://localhost:{}{JOB}", stage.relay.address().port());
    let (cert, token) = (stage.mount.cert(), token("alice"));
    let ca = cert.to_str().unwrap();
    let arguments = ["tail", &url, "--token", &token, "--count", "1", "--raw"];
    let tail = Running::start(&[&arguments[..], &["--ca-file", ca]].concat());
    let finished = tail.finish(DEADLINE).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.output.contains(r#""type":"live""#), "{finished:?}");
    let broken = Running::start(&[&arguments[..], &["--ca-file", "no/such.pem"]].concat());
    let finished = broken.finish(DEADLINE).await;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(
        finished.output.contains("--ca-file no/such.pem"),
        "{finished:?}"
    );
}
