//! The harness itself: what the scenarios rest on.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::api::{FakeApi, Reply, state};
use crate::support::config::Config;
use crate::support::http::get;
use crate::support::proxy::Proxy;
use crate::support::redis::{Redis, free_port};
use crate::support::token::{SECRET, claims_of, forged, token_with};
use crate::support::upgrade::{Answer, Upgrade};
use crate::support::wait::within;

const SOON: Duration = Duration::from_secs(5);
const A_MOMENT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn redis_counts_what_it_is_asked() {
    let redis = Redis::start().await;
    assert_eq!(redis.xadd("key", "1-0", "one").await, "1-0");
    redis.fill("key", 2, 700, 20).await;
    redis.run("XRANGE key 1-0 + COUNT 2").await;
    assert_eq!(redis.query::<u64>("XLEN key").await, 700);
    assert_eq!(redis.commands().await["xadd"], 700);
    assert_eq!(redis.reads().await, 2);
    assert_eq!(redis.connections().await, Vec::<String>::new());
}

#[tokio::test]
async fn redis_forgets_what_was_not_saved() {
    let mut redis = Redis::start().await;
    redis.xadd("key", "1-0", "one").await;
    redis.run("SAVE").await;
    redis.xadd("key", "2-0", "two").await;
    redis.kill();
    redis.start_again().await;
    assert_eq!(redis.query::<u64>("XLEN key").await, 1);
    redis.kill();
    redis.wipe();
    redis.start_again().await;
    assert_eq!(redis.query::<u64>("XLEN key").await, 0);
}

#[tokio::test]
async fn redis_keeps_its_log_when_it_is_stopped() {
    let mut redis = Redis::start_with(&["--appendonly", "yes"]).await;
    redis.fill("key", 1, 500, 100).await;
    redis.stop().await;
    redis.start_again().await;
    assert_eq!(redis.query::<u64>("XLEN key").await, 500);
}

#[tokio::test]
async fn redis_keeps_what_it_has_appended() {
    let mut redis = Redis::start_with(&["--appendonly", "yes"]).await;
    redis.xadd("key", "1-0", "one").await;
    redis.kill();
    redis.start_again().await;
    assert_eq!(redis.query::<u64>("XLEN key").await, 1);
    redis.kill();
    redis.wipe();
    redis.start_again().await;
    assert_eq!(redis.query::<u64>("XLEN key").await, 0);
    let log = std::fs::read_to_string(redis.log_file()).unwrap();
    assert_eq!(
        log.matches("Ready to accept connections").count(),
        3,
        "{log}"
    );
}

#[tokio::test]
async fn redis_runs_transactions() {
    let redis = Redis::start().await;
    let lines = ["XADD key 1-0 data a", "DEL key", "XADD key 2-0 data b"];
    redis.transaction(&lines.map(ToOwned::to_owned)).await;
    assert_eq!(redis.query::<u64>("XLEN key").await, 1);
}

#[tokio::test]
async fn the_proxy_stalls_cuts_and_comes_back() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    ping(&mut stream).await;

    proxy.stall();
    stream.write_all(b"PING\r\n").await.unwrap();
    let mut answer = [0; 7];
    let stalled = tokio::time::timeout(A_MOMENT, stream.read_exact(&mut answer)).await;
    assert!(stalled.is_err());
    proxy.restore();
    within(SOON, "held back", stream.read_exact(&mut answer))
        .await
        .unwrap();

    proxy.cut();
    assert_eq!(stream.read(&mut answer).await.unwrap(), 0);
    let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(matches!(refused.read(&mut answer).await, Ok(0) | Err(_)));

    proxy.restore();
    ping(&mut TcpStream::connect(proxy.address()).await.unwrap()).await;
}

#[tokio::test]
async fn the_proxy_forwards_in_pieces() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    proxy.split(1);
    stream.write_all(b"PING\r\n").await.unwrap();
    let mut answer = [0; 7];
    let first = within(SOON, "a piece", stream.read(&mut answer)).await;
    let first = first.unwrap();
    let rest = stream.read_exact(&mut answer[first..]);
    within(SOON, "the other pieces", rest).await.unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
    proxy.smooth();
    ping(&mut stream).await;
}

#[tokio::test]
async fn a_handshake_with_nobody_is_dropped() {
    let nobody = ([127, 0, 0, 1], free_port()).into();
    let answer = within(SOON, "an answer", Upgrade::new(nobody, "/").attempt()).await;
    assert!(matches!(answer, Answer::Dropped), "{answer:?}");
}

#[tokio::test]
async fn the_proxy_leads_new_connections_elsewhere() {
    let (one, other) = (Redis::start().await, Redis::start().await);
    let proxy = Proxy::start(one.address()).await;
    let mut old = TcpStream::connect(proxy.address()).await.unwrap();
    ping(&mut old).await;
    proxy.retarget(other.address());
    proxy.delay(Duration::from_millis(1));
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    ping(&mut new).await;
    ping(&mut old).await;
    assert_eq!(one.connections().await.len(), 1);
    assert_eq!(other.connections().await.len(), 1);
}

#[tokio::test]
async fn the_proxy_hands_over_piece_by_piece() {
    const SENT: &[u8] = b"as many bytes as four rounds of pieces from one to seven: that is a hundred and twelve, all of them in their order";
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().to_string()).await;
    proxy.split(5);
    let mut sender = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut receiver, _) = listener.accept().await.unwrap();
    sender.write_all(SENT).await.unwrap();
    let (mut received, mut reads) = (Vec::new(), 0);
    while received.len() < SENT.len() {
        let read = within(SOON, "a piece", receiver.read_buf(&mut received)).await;
        assert_ne!(read.unwrap(), 0);
        reads += 1;
    }
    assert_eq!(received, SENT);
    // Pieces join where the machine is busy elsewhere.
    assert!(reads >= 4, "{reads} reads");
}

#[tokio::test]
async fn the_proxy_cuts_idle_connections() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    proxy.cut_idle(A_MOMENT);
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    ping(&mut stream).await;
    let end = within(SOON, "the cut", stream.read(&mut [0; 1])).await;
    assert_eq!(end.unwrap(), 0);
}

async fn ping(stream: &mut TcpStream) {
    stream.write_all(b"PING\r\n").await.unwrap();
    let mut answer = [0; 7];
    within(SOON, "PONG", stream.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
}

#[tokio::test]
async fn the_api_answers_as_told_and_remembers() {
    let api = FakeApi::start().await;
    let address = api
        .url("")
        .strip_prefix("http://")
        .unwrap()
        .parse()
        .unwrap();
    api.answer_once(Reply::status(503).header("retry-after", "1"));
    let first = get(address, "/a?b=c").await;
    assert_eq!(
        (first.status, first.header("Retry-After")),
        (503, Some("1"))
    );

    api.close_gate();
    let (second, ()) = tokio::join!(get(address, "/d"), async {
        api.called(2).await;
        api.open_gate();
    });
    assert_eq!(second.json(), state());
    api.answer(Reply::json(&json!([1])).delay(Duration::from_millis(1)));
    assert_eq!(get(address, "/d").await.json(), json!([1]));
    let calls = api.calls();
    assert_eq!(
        (calls.len(), &*calls[0].path, &*calls[0].method),
        (3, "/a?b=c", "GET")
    );
    assert!(calls[0].headers.contains_key("host"));
}

#[tokio::test]
async fn configs_are_merged_and_written() {
    let redis = Redis::start().await;
    let api = FakeApi::start().await;
    let text = Config::new(&redis)
        .snapshot_from(&api)
        .with("[redis]\nhold = \"0ms\"")
        .route("history = \"all\"\n[snapshot]\nretries = 0")
        .another_route("name = \"second\"")
        .text();
    let file: toml::Table = text.parse().unwrap();
    assert_eq!(file["redis"]["hold"].as_str(), Some("0ms"));
    assert_eq!(file["redis"]["url"].as_str(), Some(&*redis.url()));
    assert_eq!(file["route"][0]["history"].as_str(), Some("all"));
    assert_eq!(
        file["route"][0]["snapshot"]["retries"].as_integer(),
        Some(0)
    );
    assert!(file["route"][0]["snapshot"]["url"].is_str());
    assert_eq!(file["route"][1]["name"].as_str(), Some("second"));
}

#[test]
fn tokens_are_tokens() {
    let good = token_with("alice", json!({ "role": "admin", "exp": null }));
    assert_eq!(good.split('.').count(), 3);
    assert!(SECRET.len() >= 32);
    let claims = claims_of("alice", json!({ "exp": null, "role": 1 }));
    assert_eq!(claims, json!({ "sub": "alice", "role": 1 }));
    let none = forged(&json!({ "alg": "none" }), &claims, b"");
    assert!(none.ends_with('.'));
}
