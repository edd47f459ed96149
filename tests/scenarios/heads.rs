//! What arrives on the clients' port and is no request, or never becomes one.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::support::client::Client;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::token;
use crate::support::wait::{DEADLINE, within};
use crate::{JOB, KEY};

const PATIENCE: Duration = Duration::from_secs(2);

async fn stage() -> (Redis, Relay, Client) {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with("[server]\nhandshake_timeout = \"2s\"");
    let relay = Relay::start(&config).await;
    let mut other = relay.open(JOB).await;
    other.expect_live().await;
    (redis, relay, other)
}

/// The other client has noticed nothing, and nobody else is left.
async fn unharmed(redis: &Redis, relay: &Relay, other: &mut Client) {
    redis.xadd(KEY, "1-0", "unharmed").await;
    other.expect_event("1-0", "unharmed").await;
    relay.metric_reaches("relay_connections", &[], 1.0).await;
}

/// Sends all of it as far as the relay takes it, and says what comes back.
async fn exchange(relay: &Relay, bytes: &[u8]) -> Vec<u8> {
    let (mut reading, mut writing) = TcpStream::connect(relay.address())
        .await
        .expect("the relay listens")
        .into_split();
    let mut answer = Vec::new();
    let exchange = async {
        // Whether the relay takes all of it, and ends in order, is what differs.
        let write = async { writing.write_all(bytes).await.ok() };
        let read = async { reading.read_to_end(&mut answer).await.ok() };
        tokio::join!(write, read)
    };
    within(DEADLINE, "the end of the connection", exchange).await;
    answer
}

fn status(answer: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(answer);
    let status = text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse();
    status.ok()
}

#[tokio::test]
async fn s27_a_head_of_10_megabytes() {
    let (redis, relay, mut other) = stage().await;
    let before = relay.rss_bytes();
    let mut head = format!("GET {JOB} HTTP/1.1\r\nhost: x\r\nx-filler: ").into_bytes();
    head.resize(10 * 1024 * 1024, b'x');
    let answer = exchange(&relay, &head).await;
    assert!(matches!(status(&answer), None | Some(431)), "{answer:?}");
    let many = "x: y\r\n".repeat(500_000);
    let head = format!("GET {JOB} HTTP/1.1\r\n{many}\r\n");
    let answer = exchange(&relay, head.as_bytes()).await;
    assert!(matches!(status(&answer), None | Some(431)), "{answer:?}");
    let grown = relay.rss_bytes().saturating_sub(before);
    assert!(grown < 4 * 1024 * 1024, "{grown} bytes");
    unharmed(&redis, &relay, &mut other).await;
}

#[tokio::test]
async fn s27_a_head_drop_by_drop() {
    let (redis, relay, mut other) = stage().await;
    let start = Instant::now();
    let stream = TcpStream::connect(relay.address()).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let drip = async {
        let head = format!("GET {JOB} HTTP/1.1\r\nhost: {}", "x".repeat(1_000));
        for byte in head.bytes() {
            if writing.write_all(&[byte]).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = drip => {}
        _ = within(DEADLINE, "the end", reading.read_to_end(&mut answer)) => {}
    }
    assert!(matches!(status(&answer), None | Some(408)), "{answer:?}");
    let taken = start.elapsed();
    assert!(taken >= PATIENCE && taken < 2 * PATIENCE, "{taken:?}");
    unharmed(&redis, &relay, &mut other).await;
}

#[tokio::test]
async fn s27_frames_right_behind_a_long_head() {
    let (redis, relay, mut other) = stage().await;
    let token = token("alice");
    let upgrade = |filler: &str| {
        format!(
            "GET {JOB} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             authorization: Bearer {token}\r\nx-filler: {filler}\r\n\r\n"
        )
    };
    // The ping is over the end of the buffer that a head is first read into.
    let filler = "x".repeat(8192 - 50 - upgrade("").len());
    let payload = [b'p'; 100];
    // FIN and ping, masked with zeros; then a close.
    let ping = [[0x89, 0x80 | 100, 0, 0, 0, 0].as_slice(), &payload].concat();
    let close = [0x88, 0x80, 0, 0, 0, 0];
    let bytes = [upgrade(&filler).as_bytes(), &ping, &close].concat();
    let answer = exchange(&relay, &bytes).await;
    assert_eq!(status(&answer), Some(101));
    let pong = [[0x8a, 100].as_slice(), &payload].concat();
    let has_pong = answer.windows(pong.len()).any(|bytes| bytes == pong);
    assert!(has_pong, "{}", String::from_utf8_lossy(&answer));
    unharmed(&redis, &relay, &mut other).await;
}

#[tokio::test]
async fn s27_other_protocols() {
    let (redis, relay, mut other) = stage().await;
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".as_slice();
    let tls = b"\x16\x03\x01\x00\xc8\x01\0\0\xc4\x03\x03".as_slice();
    let proxy = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n\r\n".as_slice();
    for bytes in [
        http2,
        tls,
        proxy,
        b"\r\n\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"x",
    ] {
        let answer = exchange(&relay, bytes).await;
        let status = status(&answer);
        assert!(
            matches!(status, None | Some(400..=431 | 505)),
            "{bytes:?}: {status:?}"
        );
    }
    unharmed(&redis, &relay, &mut other).await;
}

#[tokio::test]
async fn s27_requests_in_one_go() {
    let (redis, relay, mut other) = stage().await;
    let requests = format!("GET {JOB} HTTP/1.1\r\nhost: x\r\n\r\n").repeat(1_000);
    let answer = exchange(&relay, requests.as_bytes()).await;
    let answers = String::from_utf8_lossy(&answer)
        .matches("HTTP/1.1 ")
        .count();
    assert!(answers <= 1, "{answers} answers on one connection");
    // Behind an upgrade comes the client's part of the connection, and this is no part of it.
    let upgrade = format!(
        "GET {JOB} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         authorization: Bearer {}\r\n\r\n",
        token("alice")
    );
    let answer = exchange(&relay, format!("{upgrade}{requests}").as_bytes()).await;
    if let Some(status) = status(&answer) {
        assert_eq!(status, 101);
        let closed = answer.windows(2).any(|two| two == 1002_u16.to_be_bytes());
        assert!(closed, "{answer:?}");
    }
    // A body is no way to keep a connection either.
    let body = format!("POST {JOB} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n");
    let mut endless = body.into_bytes();
    endless.resize(2 * 1024 * 1024, b'x');
    let answer = exchange(&relay, &endless).await;
    assert!(matches!(status(&answer), None | Some(405)), "{answer:?}");
    unharmed(&redis, &relay, &mut other).await;
}
