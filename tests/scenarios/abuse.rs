//! A client that knows the protocol well, and breaks it: by hand, on a bare socket.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::api::{FakeApi, Reply};
use crate::support::client::{Client, Received};
use crate::support::config::Config;
use crate::support::jwks::{IssuerKey, key_of, set};
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::tls::{Identity, Mount};
use crate::support::token::{SECRET, claims_of, token, token_with};
use crate::support::upgrade::{Answer, Refusal};
use crate::support::wait::{DEADLINE, within};
use crate::{JOB, KEY};

const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn stage(config: Config) -> (Relay, Client) {
    let relay = Relay::start(&config).await;
    let mut other = relay.upgrade(JOB).token(token("bob")).open().await;
    other.ignore("snapshot");
    other.expect_live().await;
    (relay, other)
}

/// The other client has noticed nothing, and nobody else is left.
async fn unharmed(redis: &Redis, relay: &Relay, other: &mut Client) {
    redis.xadd(KEY, "1-0", "unharmed").await;
    other.expect_event("1-0", "unharmed").await;
    relay.metric_reaches("relay_connections", &[], 1.0).await;
}

/// The head of a request for this target, with a token.
fn head(target: &str, more: &str) -> String {
    let token = token("alice");
    format!("GET {target} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {token}\r\n{more}\r\n")
}

/// Sends all of it, and says all that comes back, up to the end of the connection.
async fn exchange(relay: &Relay, name: &str, bytes: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(relay.address()).await;
    let (mut reading, mut writing) = stream.expect("the relay listens").into_split();
    let mut answer = Vec::new();
    let exchange = async {
        // A relay that has ended already shows in what is read.
        let write = async { writing.write_all(bytes).await.ok() };
        let read = async { reading.read_to_end(&mut answer).await.ok() };
        tokio::join!(write, read)
    };
    within(DEADLINE, name, exchange).await;
    answer
}

/// A frame of a client: first byte, second byte with its lengths, payload.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u16::try_from(payload.len()).expect("payloads of tests are small") {
        length @ 0..=125 => frame.push(0x80 | length.to_be_bytes()[1]),
        length => {
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
    }
    // A mask of zeros leaves the payload as it is.
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// The head of a masked text frame that announces this many bytes.
fn announcing(length: u64) -> Vec<u8> {
    let mut head = vec![0x81, 0x80 | 127];
    head.extend(length.to_be_bytes());
    head.extend([0; 4]);
    head
}

fn close(payload: &[u8]) -> Vec<u8> {
    frame(0x88, payload)
}

/// Bytes that no client may send after its handshake, and with which code that ends.
fn violations() -> Vec<(&'static str, Vec<u8>, u16)> {
    let ping = frame(0x89, b"");
    let mut table = vec![
        ("RSV1, as if it were compressed", frame(0xc1, b"x"), 1002),
        ("RSV2", frame(0xa1, b"x"), 1002),
        ("RSV3", frame(0x91, b"x"), 1002),
        ("all reserved bits", frame(0xf1, b"x"), 1002),
        ("not masked", vec![0x81, 1, b'x'], 1002),
        ("a ping of 126 bytes", frame(0x89, &[b'x'; 126]), 1002),
        ("a pong of 126 bytes", frame(0x8a, &[b'x'; 126]), 1002),
        ("a close of 126 bytes", close(&[b'x'; 126]), 1002),
        ("a ping in parts", frame(0x09, b"x"), 1002),
        (
            "a close in parts",
            frame(0x08, &1000_u16.to_be_bytes()),
            1002,
        ),
        ("the rest of nothing", frame(0x80, b"x"), 1002),
        (
            "a message within another",
            [frame(0x01, b"x"), frame(0x81, b"y")].concat(),
            1002,
        ),
        (
            "a part of another within a message",
            [frame(0x01, b"x"), ping, frame(0x02, b"y")].concat(),
            1002,
        ),
        ("bytes that are no text", frame(0x81, b"\xff"), 1007),
        ("half a character", frame(0x81, b"\xc3"), 1007),
        ("half of a pair", frame(0x81, b"\xed\xa0\x80"), 1007),
        ("too long for its character", frame(0x81, b"\xc0\xaf"), 1007),
        (
            "half a character, and no other half",
            [frame(0x01, b"\xc3"), frame(0x80, b"x")].concat(),
            1007,
        ),
        ("a close with half a code", close(b"\x03"), 1002),
        ("a reason that is no text", close(b"\x03\xe8\xff"), 1007),
        (
            "one byte more than a message may have",
            announcing(16 * 1024 + 1),
            1009,
        ),
        ("4 GiB", announcing(1 << 32), 1009),
        (
            "the most that can be announced",
            announcing(u64::MAX >> 1),
            1009,
        ),
        ("more than can be announced", announcing(u64::MAX), 1009),
    ];
    let reserved = [3_u8, 4, 5, 6, 7, 11, 12, 13, 14, 15];
    let reserved = reserved.map(|opcode| ("a reserved opcode", frame(0x80 | opcode, b""), 1002));
    let codes = [0_u16, 999, 1004, 1005, 1006, 1015, 5000, u16::MAX];
    let codes = codes.map(|code| ("a code that nobody sends", close(&code.to_be_bytes()), 1002));
    table.extend(reserved);
    table.extend(codes);
    table
}

/// The code of the last frame, if that is a close.
fn close_code(answer: &[u8]) -> Option<u16> {
    (0..=123).find_map(|length: u8| {
        let at = answer.len().checked_sub(usize::from(length) + 4)?;
        let is_close = answer[at] == 0x88 && answer[at + 1] == length + 2;
        is_close.then(|| u16::from_be_bytes([answer[at + 2], answer[at + 3]]))
    })
}

#[tokio::test]
async fn s27_frames_that_break_the_protocol() {
    let redis = Redis::start().await;
    let (relay, mut other) = stage(Config::new(&redis)).await;
    let before = relay.rss_bytes();
    for (name, bytes, code) in violations() {
        let request = [head(JOB, UPGRADE).as_bytes(), &bytes].concat();
        let answer = exchange(&relay, name, &request).await;
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{name}: {answer:?}");
        assert_eq!(close_code(&answer), Some(code), "{name}: {bytes:?}");
    }
    let grown = relay.rss_bytes().saturating_sub(before);
    assert!(grown < 8 * 1024 * 1024, "{grown} bytes");
    unharmed(&redis, &relay, &mut other).await;
}

#[tokio::test]
async fn messages_that_come_with_the_handshake_are_all_read() {
    let redis = Redis::start().await;
    let (relay, _other) = stage(Config::new(&redis)).await;
    let messages = [
        frame(0x81, b"one"),
        frame(0x81, b"two"),
        frame(0x81, b"ping"),
    ]
    .concat();
    let mut stream = TcpStream::connect(relay.address()).await.unwrap();
    let bytes = [head(JOB, UPGRADE).as_bytes(), &messages].concat();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let pong = async {
        while !answer.windows(6).any(|part| part == b"\"pong\"") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
        }
    };
    within(DEADLINE, "the answer to the last", pong).await;
}

#[tokio::test]
async fn s27_closes_without_end() {
    let redis = Redis::start().await;
    let (relay, mut other) = stage(Config::new(&redis)).await;
    let flood = close(&1000_u16.to_be_bytes()).repeat(10_000);
    let answer = exchange(
        &relay,
        "a flood of closes",
        &[head(JOB, UPGRADE).as_bytes(), &flood].concat(),
    )
    .await;
    assert_eq!(close_code(&answer), Some(1000));
    let closes = answer.windows(2).filter(|two| *two == b"\x88\x02").count();
    assert_eq!(closes, 1, "{answer:?}");
    unharmed(&redis, &relay, &mut other).await;
}

/// Bytes that begin as frames or as a request, and go on in any way.
fn changed(mut bytes: Vec<u8>, random: &mut StdRng) -> Vec<u8> {
    for _ in 0..random.random_range(0..5) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..3) {
            0 => bytes.insert(at, random.random()),
            1 => bytes.truncate(at.max(1)),
            _ => {
                let byte: u8 = random.random();
                bytes.splice(at..(at + 1).min(bytes.len()), [byte]);
            }
        }
    }
    bytes
}

#[tokio::test]
async fn s27_any_bytes_at_all() {
    let redis = Redis::start().await;
    let (relay, mut other) = stage(Config::new(&redis)).await;
    let mut random = StdRng::seed_from_u64(7);
    let frames: Vec<_> = violations()
        .into_iter()
        .map(|(_, bytes, _)| bytes)
        .collect();
    for number in 0..2_000 {
        let mut bytes = head(JOB, UPGRADE).into_bytes();
        if number % 4 == 0 {
            bytes = changed(bytes, &mut random);
        }
        for _ in 0..random.random_range(0..6) {
            let frame = frames[random.random_range(0..frames.len())].clone();
            bytes.extend(changed(frame, &mut random));
        }
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        let mut answer = Vec::new();
        let exchange = async {
            // A relay that has ended already shows in what is read.
            stream.write_all(&bytes).await.ok();
            stream.shutdown().await.ok();
            stream.read_to_end(&mut answer).await.ok();
        };
        let what = format!("the end of number {number}");
        within(DEADLINE, &what, exchange).await;
    }
    unharmed(&redis, &relay, &mut other).await;
}

/// Requests that a proxy in front could read otherwise than the relay does. Behind each comes
/// another one, which nobody may answer.
fn ambiguous() -> Vec<(&'static str, String)> {
    let with = |more: &str| head(JOB, &format!("{UPGRADE}{more}"));
    let of = |target: &str| head(target, UPGRADE);
    vec![
        (
            "two lengths",
            with("content-length: 5\r\ncontent-length: 6\r\n"),
        ),
        ("a list of lengths", with("content-length: 5, 6\r\n")),
        ("a length that is none", with("content-length: +5\r\n")),
        ("a negative length", with("content-length: -1\r\n")),
        (
            "a length and chunks",
            with("content-length: 5\r\ntransfer-encoding: chunked\r\n"),
        ),
        ("an unknown coding", with("transfer-encoding: xchunked\r\n")),
        (
            "chunks that are not last",
            with("transfer-encoding: chunked, gzip\r\n"),
        ),
        ("a folded line", with("x-folded: a\r\n b\r\n")),
        ("a space before the colon", with("content-length : 5\r\n")),
        (
            "a line that begins with a space",
            with(" content-length: 5\r\n"),
        ),
        ("a NUL", with("x: a\0b\r\n")),
        ("a bare CR", with("x: a\rtransfer-encoding: chunked\r\n")),
        ("no colon", with("transfer-encoding chunked\r\n")),
        ("a space in the target", of("/ws/jobs/42 /x")),
        ("a fragment", of("/ws/jobs/42#/../43")),
        ("another scheme's target", of("ws://relay")),
        (
            "a user in the target",
            of("http://alice:secret@relay/ws/jobs/42"),
        ),
        ("a whole address", of("http://elsewhere.example/ws/jobs/42")),
        ("an authority", of("relay:443")),
        ("an asterisk", of("*")),
        ("two slashes", of("//ws/jobs/42")),
        ("a dot", of("/./ws/jobs/42")),
        ("two dots", of("/ws/x/../jobs/42")),
        ("encoded dots", of("/ws/%2e%2e/ws/jobs/42")),
        ("an encoded slash", of("/ws%2fjobs/42")),
        ("an encoded slash in a value", of("/ws/jobs%2F42")),
        ("a backslash", of("/ws\\jobs\\42")),
        (
            "HTTP/1.0",
            head(JOB, UPGRADE).replace("HTTP/1.1", "HTTP/1.0"),
        ),
        ("HTTP/0.9", format!("GET {JOB}\r\n\r\n")),
        (
            "two keys",
            with("sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
        ),
    ]
}

#[tokio::test]
async fn s25_requests_that_can_be_read_in_two_ways() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api);
    let (relay, mut other) = stage(config).await;
    let smuggled = head("/ws/jobs/smuggled", UPGRADE);
    for (name, request) in ambiguous() {
        let answer = exchange(&relay, name, format!("{request}{smuggled}").as_bytes()).await;
        let text = String::from_utf8_lossy(&answer);
        assert!(text.matches("HTTP/1.1 ").count() <= 1, "{name}: {text}");
        // Upgraded or not: what comes behind is no request any more, and no frame either.
        let ended = !text.starts_with("HTTP/1.1 101 ") || close_code(&answer).is_some();
        assert!(ended, "{name}: {text}");
    }
    let paths: Vec<_> = api.calls().into_iter().map(|call| call.path).collect();
    let harmless = "/internal/jobs/42/state";
    assert!(paths.iter().all(|path| path == harmless), "{paths:?}");
    unharmed(&redis, &relay, &mut other).await;
}

#[tokio::test]
async fn s25_no_value_becomes_a_header_or_another_address() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let url = api.url("/jobs/{job_id}/{query.part}?of={claims.sub}");
    let config = Config::new(&redis)
        .route("params = { job_id = \"(?s).{1,300}\", \"query.part\" = \"(?s).{1,300}\" }")
        .route(&format!(
            "[snapshot]\nurl = \"{url}\"\n\
             headers = {{ x-job = \"{{job_id}}\", x-part = \"{{query.part}}\", x-user = \"{{claims.sub}}\" }}"
        ));
    let relay = Relay::start(&config).await;
    let mut refused = 0;
    for value in [
        "a\r\nx-admin: 1",
        "a\nx-admin: 1",
        "a\r\n\r\nGET /admin HTTP/1.1\r\n",
        "\0",
        "..",
        ".",
        "a b",
        "@elsewhere.example",
        "a?x-admin=1&of=bob#",
        "../../admin",
        "a%0d%0ax-admin:1",
        "{claims.private}",
        "\u{e9}\u{202e}",
    ] {
        let path = format!("/ws/jobs/{}", percent(value));
        for (path, part, subject) in [
            (&*path, "p", "alice"),
            (JOB, value, "alice"),
            (JOB, "p", value),
        ] {
            let claims = json!({ "private": "not for urls" });
            let upgrade = relay.upgrade(path).query("part", part);
            match upgrade.token(token_with(subject, claims)).send().await {
                Answer::Upgraded(mut client) => {
                    let is_closed = matches!(client.next().await, Received::Closed(..));
                    refused += usize::from(is_closed);
                }
                Answer::Status(_) | Answer::Dropped => refused += 1,
            }
        }
    }
    assert!(refused > 10, "only {refused} were refused");
    assert!(
        api.calls().len() > 10,
        "only {} were asked",
        api.calls().len()
    );
    for call in api.calls() {
        assert!(!call.headers.contains_key("x-admin"), "{call:?}");
        let (path, query) = call.path.split_once('?').expect("a query");
        assert_eq!(path.matches('/').count(), 3, "{call:?}");
        assert!(
            path.starts_with("/jobs/") && !path.contains("/../"),
            "{call:?}"
        );
        assert_eq!(query.matches(['=', '&', '#']).count(), 1, "{call:?}");
        assert!(!call.path.contains("not%20for"), "{call:?}");
    }
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn s26_pages_of_others_can_not_use_a_cookie() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api).with(
        "[server]\nallowed_origins = [\"https://app.example\"]\n\
         [auth]\ntoken_from = [\"cookie:session\"]",
    );
    let relay = Relay::start(&config).await;
    let cookie = format!("session={}", token("alice"));
    let from = |origin: &str| {
        let upgrade = relay.upgrade(JOB).no_token().header("cookie", &cookie);
        upgrade.header("origin", origin)
    };
    for origin in [
        "null",
        "https://evil.example",
        "https://app.example.evil.example",
        "https://app.example@evil.example",
        "https://app.example/",
        "file://",
        "",
        "https://app.example, https://evil.example",
    ] {
        let refusal = from(origin).refused().await;
        assert_eq!(
            refusal,
            Refusal::closed(4403, "origin_not_allowed"),
            "{origin}"
        );
    }
    // Two headers: whichever a reader would take.
    let twice = from("https://app.example").header("origin", "https://evil.example");
    assert_eq!(twice.refused().await.code(), 4403);
    assert_eq!(api.calls().len(), 0, "the API has heard of none");
    let mut own = from("https://app.example").open().await;
    own.expect_snapshot("connect").await;
}

/// So long may one request take that was made to take long.
const AT_ONCE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn s25_patterns_take_no_longer_for_bad_values() {
    let redis = Redis::start().await;
    let config = Config::new(&redis)
        .route(
            r#"
            params = { job_id = "(a+)+|(a|aa)+b|(.*a){20}" }
            authorize = "!has(query.text) || query.text.matches(query.pattern)"
            "#,
        )
        .with("[server]\nmax_head = \"32KiB\"");
    let relay = Relay::start(&config).await;
    let started = Instant::now();
    let long = "a".repeat(10_000);
    let refusal = relay.upgrade(&format!("/ws/jobs/{long}!")).refused().await;
    assert_eq!(refusal.code(), 4404);
    let matches = |text: &str, pattern: &str| {
        let upgrade = relay.upgrade("/ws/jobs/a").query("text", text);
        upgrade.query("pattern", pattern)
    };
    matches("abc", "^[a-c]+$").open().await.expect_live().await;
    for pattern in [
        "^(a+)+$",
        "(a*)*b",
        "((a{1,100}){1,100}){1,100}",
        "(((((a{9}){9}){9}){9}){9}){9}",
        "(?:a?){5000}a{5000}",
        "(",
        &"(".repeat(3000),
        &"[".repeat(3000),
        &"a|".repeat(3000),
        "\\pL{1000}",
    ] {
        let refusal = matches(&format!("{}!", "a".repeat(2000)), pattern);
        let answer = refusal.send().await;
        assert!(matches!(answer, Answer::Upgraded(_)), "{pattern}");
    }
    let taken = started.elapsed();
    assert!(taken < 5 * AT_ONCE, "{taken:?}");
    relay.open("/ws/jobs/a").await.expect_live().await;
}

/// Deeper than any reader that calls itself can go.
fn nested(depth: usize, open: &str, inner: &str, shut: &str) -> String {
    format!("{}{inner}{}", open.repeat(depth), shut.repeat(depth))
}

/// A token that the relay's key has signed, with these claims, however they are written.
fn signed_text(claims: &str) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", part(r#"{"alg":"HS256"}"#), part(claims));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = aws_lc_rs::hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn s22_nesting_without_end_in_tokens_and_keys() {
    let redis = Redis::start().await;
    let issuer = FakeApi::start().await;
    issuer.answer(Reply::text(200, nested(400_000, "[", "", "]")));
    let key = IssuerKey::new("kid");
    let config = Config::new(&redis).with(&format!(
        "{}[[auth.key]]\nalgorithms = [\"HS256\"]\nsecret = \"{SECRET}\"",
        key_of(&issuer, "refresh = \"1s\"\ncooldown = \"1s\"")
    ));
    let (relay, mut other) = stage(config).await;

    // Claims, and a header: what is not read is malformed.
    for claims in [
        nested(2_900, "[", "", "]"),
        format!(
            "{{\"exp\":9999999999,\"a\":{}}}",
            nested(2_800, "[", "", "]")
        ),
        format!(
            "{{\"exp\":9999999999,\"a\":{}}}",
            nested(950, "{\"a\":", "1", "}")
        ),
    ] {
        let refusal = relay
            .upgrade(JOB)
            .token(signed_text(&claims))
            .refused()
            .await;
        assert_eq!(refusal.code(), 4401, "{refusal:?}");
    }
    let deep = URL_SAFE_NO_PAD.encode(format!(
        "{{\"alg\":\"HS256\",\"x\":{}}}",
        nested(2_000, "[", "", "]")
    ));
    let refusal = relay
        .upgrade(JOB)
        .token(format!("{deep}.e30.e30"))
        .refused()
        .await;
    assert_eq!(refusal, Refusal::closed(4401, "token_malformed"));

    // A set of keys: what can't be read is none, and the next is taken.
    let es256 = key.sign(&claims_of("alice", json!({})));
    let refusal = relay.upgrade(JOB).token(&*es256).refused().await;
    assert_eq!(refusal.code(), 1013, "{refusal:?}");
    issuer.answer(set(&[&key]));
    relay.metric_reaches("relay_jwks_keys", &[], 1.0).await;
    relay
        .upgrade(JOB)
        .token(&*es256)
        .open()
        .await
        .expect_live()
        .await;
    unharmed(&redis, &relay, &mut other).await;
}

#[tokio::test]
async fn s27_nesting_without_end() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = Config::new(&redis).snapshot_from(&api).route(
        "history = \"all\"\n\
         [slow]\nmax_lag = 1\nthen = \"conflate\"\nconflate_by = \"/0/0/0\"",
    );
    let (relay, mut other) = stage(config).await;

    // Messages.
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    for message in [
        nested(8_000, "[", "", "]"),
        nested(2_000, "{\"a\":", "1", "}"),
        "[".repeat(16_000),
        format!("{{\"type\":{}}}", nested(8_000, "[", "", "]")),
    ] {
        client.send(message).await;
    }
    client.send("ping").await;
    client.expect("pong").await;

    // What is only passed on is passed on: neither snapshots nor entries are looked into so deep.
    let depth = 100_000;
    let body = nested(depth, "[", "", "]");
    api.answer(Reply::text(200, body.clone()));
    redis.xadd(KEY, "0-1", &nested(20_000, "[", "", "]")).await;
    redis
        .xadd(KEY, "0-2", &nested(5_000, "{\"0\":", "1", "}"))
        .await;
    let mut client = relay.open(JOB).await;
    let snapshot = client.text().await;
    assert!(snapshot.contains(&body), "{} bytes", snapshot.len());
    for _ in 0..2 {
        assert!(client.text().await.contains("\"type\":\"event\""));
        assert!(other.text().await.contains("\"type\":\"event\""));
    }
    redis.xadd(KEY, "1-0", "unharmed").await;
    other.expect_event("1-0", "unharmed").await;
    assert_eq!(relay.livez().await, 200);
}

#[tokio::test]
async fn s22_as_many_claims_as_a_token_has_room_for() {
    let redis = Redis::start().await;
    let config = Config::new(&redis).route("authorize = \"claims.c1 == 1 && !has(claims.nobody)\"");
    let relay = Relay::start(&config).await;
    let claims = |count: usize| -> Value {
        let claims = (0..count).map(|number| (format!("c{number}"), json!(1)));
        Value::Object(claims.collect())
    };
    let started = Instant::now();
    relay
        .upgrade(JOB)
        .token(token_with("alice", claims(600)))
        .open()
        .await
        .expect_live()
        .await;
    let large = relay.upgrade(JOB).token(token_with("alice", claims(900)));
    assert_eq!(
        large.refused().await,
        Refusal::closed(4401, "token_too_large")
    );
    assert!(started.elapsed() < AT_ONCE);
}

#[tokio::test]
async fn s22_more_kids_than_are_remembered() {
    let redis = Redis::start().await;
    let issuer = FakeApi::start().await;
    let key = IssuerKey::new("known");
    issuer.answer(set(&[&key]));
    let keys = key_of(&issuer, "refresh = \"1h\"\ncooldown = \"1h\"");
    let relay = Relay::start(&Config::new(&redis).with(&keys)).await;
    let claims = claims_of("alice", json!({}));
    relay
        .upgrade(JOB)
        .token(key.sign(&claims))
        .open()
        .await
        .expect_live()
        .await;
    let before = relay.rss_bytes();
    let long = "k".repeat(4_000);
    for number in 0..1_500 {
        let kid = format!("{number}{long}");
        let header = json!({ "alg": "ES256", "kid": kid });
        let token = crate::support::token::forged(&header, &claims, b"x");
        let refusal = relay.upgrade(JOB).token(token).refused().await;
        assert!([1013, 4401].contains(&refusal.code()), "{refusal:?}");
    }
    assert!(
        issuer.calls().len() <= 2,
        "{} fetches",
        issuer.calls().len()
    );
    let grown = relay.rss_bytes().saturating_sub(before);
    assert!(grown < 4 * 1024 * 1024, "{grown} bytes");
}

#[tokio::test]
async fn s27_half_a_tls_handshake_keeps_nobody_out() {
    let redis = Redis::start().await;
    let identity = Identity::new();
    let mount = Mount::new(&identity);
    let config = Config::new(&redis)
        .with(&mount.config())
        .with("[server]\nmax_connections = 3\nhandshake_timeout = \"1s\"");
    let relay = Relay::start(&config).await;
    let mut slow = Vec::new();
    // The head of a record that announces a long handshake; a byte of it; and nothing at all.
    for bytes in [b"\x16\x03\x01\x02\x00\x01\x00".as_slice(), b"\x16", b""] {
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        slow.push(stream);
    }
    relay.metric_reaches("relay_connections", &[], 3.0).await;
    let full = relay.upgrade(JOB).open_tls(identity.trust()).await;
    assert!(full.is_err(), "a fourth connection was taken");
    for mut stream in slow {
        let mut answer = Vec::new();
        within(DEADLINE, "the end", stream.read_to_end(&mut answer))
            .await
            .ok();
    }
    relay.metric_reaches("relay_connections", &[], 0.0).await;
    let mut client = relay
        .upgrade(JOB)
        .open_tls(identity.trust())
        .await
        .expect("room");
    client.expect_live().await;
}

#[tokio::test]
async fn s22_no_issuer_speaks_for_another() {
    let redis = Redis::start().await;
    let (one, other) = (FakeApi::start().await, FakeApi::start().await);
    let (of_one, of_other) = (IssuerKey::new("k"), IssuerKey::new("k"));
    one.answer(set(&[&of_one]));
    other.answer(set(&[&of_other]));
    let keys = key_of(&one, "issuer = [\"https://one.example\"]")
        + &key_of(&other, "issuer = [\"https://other.example\"]");
    let relay = Relay::start(&Config::new(&redis).with(&keys)).await;
    let claims = |issuer: &str| claims_of("alice", json!({ "iss": issuer }));
    let (mine, others) = (
        claims("https://one.example"),
        claims("https://other.example"),
    );
    for good in [of_one.sign(&mine), of_other.sign(&others)] {
        let mut client = relay.upgrade(JOB).token(good).open().await;
        client.expect_live().await;
    }
    for forged in [of_one.sign(&others), of_other.sign(&mine)] {
        let refusal = relay.upgrade(JOB).token(forged).refused().await;
        assert_eq!(refusal, Refusal::closed(4401, "token_issuer"));
    }
}

#[tokio::test]
async fn a_page_in_a_browser_of_this_machine_can_not_drain() {
    let redis = Redis::start().await;
    let (relay, mut other) = stage(Config::new(&redis)).await;
    let request = "POST /drain HTTP/1.1\r\nhost: 127.0.0.1\r\norigin: https://evil.example\r\n\
                   content-length: 0\r\nconnection: close\r\n\r\n";
    let mut stream = TcpStream::connect(relay.admin_address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    within(DEADLINE, "an answer", read).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert_eq!(relay.readyz().await.0, 200);
    unharmed(&redis, &relay, &mut other).await;
}

#[tokio::test]
async fn s23_ends_that_no_clock_can_say() {
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis)).await;
    let mut clients = Vec::new();
    for exp in [
        json!(253_402_300_800_u64),
        json!(1_u64 << 53),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(1e18),
    ] {
        let token = token_with("alice", json!({ "exp": exp }));
        let mut client = relay.upgrade(JOB).token(token).open().await;
        client.expect_live().await;
        clients.push(client);
    }
    for exp in [json!(1e20), json!(1e308), json!(-1), json!(0)] {
        let token = token_with("alice", json!({ "exp": exp }));
        let refusal = relay.upgrade(JOB).token(token).refused().await;
        assert_eq!(refusal.code(), 4401, "{exp}");
    }
    redis.xadd(KEY, "1-0", "x").await;
    for client in &mut clients {
        client.expect_event("1-0", "x").await;
    }
}
