//! Ten thousand hostile connections of each kind, beside good clients: none of these is closed or
//! much delayed, and the memory comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, interval, sleep, timeout};

use crate::flow::{Clock, Flow, all_follow, percentile};
use crate::machine::Machine;
use crate::report::{Report, Row, mebibytes, milliseconds};
use crate::sampler::growth;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::token;
use crate::support::wait::eventually_within;
use crate::{JOB, KIB};

const GOOD: usize = 100;
const HOSTILE: usize = 10_000;
/// So many come in a second.
const COME_PER_SECOND: u32 = 2_000;
/// So many of those that ask for an upgrade are there at once.
const AT_ONCE: usize = 1_000;
const PER_SECOND: u64 = 100;
const QUIET: u64 = 1_000;
const UNDER_ATTACK: u64 = 2_000;

const MOST_RATIO: f64 = 2.0;
const MOST_GROWTH: f64 = 0.1;
/// `server.handshake_timeout`, and what it takes to notice.
const GONE_WITHIN: Duration = Duration::from_secs(30);
const BACK_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
enum Kind {
    SlowHeads,
    HalfOpen,
    BadTokens,
    OversizedFrames,
    PingFloods,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::SlowHeads, "heads that never end"),
    (Kind::HalfOpen, "connections that say nothing"),
    (Kind::BadTokens, "bad tokens"),
    (Kind::OversizedFrames, "frames of 1 MiB"),
    (Kind::PingFloods, "floods of pings"),
];

pub(crate) async fn measure(machine: &Machine) -> Report {
    let mut rows = Vec::new();
    for (kind, name) in KINDS {
        eprintln!("  {name}");
        rows.extend(run(machine, kind, name).await);
    }
    Report {
        did: format!(
            "**hostile**: {GOOD} clients of one stream get {PER_SECOND} entries of 1 KiB a second, \
             {QUIET} of them alone and then {UNDER_ATTACK} while {HOSTILE} hostile connections of \
             one kind come, {COME_PER_SECOND} a second. No good client is closed, or the \
             measurement fails. Memory is that with the good clients, before and within ten \
             seconds after the others are gone. A new relay for each kind."
        ),
        rows,
    }
}

async fn run(machine: &Machine, kind: Kind, name: &str) -> Vec<Row> {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with("[log]\nlevel = \"info\"");
    let relay = machine.start_relay(&config).await;
    let good = relay.open_live(JOB, GOOD).await;
    let clock = Clock::start();
    let flow = |first, count| Flow {
        first,
        last: first + count - 1,
        per_second: PER_SECOND,
    };
    let (good, mut quiet) = all_follow(good, flow(1, QUIET), &redis, clock).await;
    let before = relay.rss_bytes();
    let attack = attack(kind, relay.address());
    let (good, mut late) = all_follow(good, flow(QUIET + 1, UNDER_ATTACK), &redis, clock).await;
    let turned_away = attack.await.expect("the attack ends");
    assert_eq!(turned_away, HOSTILE, "{kind:?}: the rest is still there");
    let is_over = async || (connections(&relay).await < GOOD as f64 + 0.5).then_some(());
    eventually_within(GONE_WITHIN, "only the good clients are left", is_over).await;
    // Memory is given back when there is time for it.
    let enough = before + (before as f64 * MOST_GROWTH) as u64;
    let start = Instant::now();
    while start.elapsed() < BACK_WITHIN && relay.rss_bytes() >= enough {
        sleep(Duration::from_millis(50)).await;
    }
    let after = relay.rss_bytes();
    drop(good);
    let (quiet, late) = (percentile(&mut quiet, 99), percentile(&mut late, 99));
    let ratio = late.as_secs_f64() / quiet.as_secs_f64();
    let grown = growth(before, after) as f64 / before as f64;
    vec![
        Row::under(
            format!("{name}: p99 latency, to without"),
            ratio,
            MOST_RATIO,
            |ratio| format!("{ratio:.2}×"),
        ),
        Row::under(
            format!("{name}: memory afterwards"),
            grown,
            MOST_GROWTH,
            |share| format!("{:+.0} %", share * 100.0),
        ),
        Row::told(
            format!("{name}: p99 latency, without and with"),
            format!("{}, {}", milliseconds(quiet), milliseconds(late)),
        ),
        Row::told(
            format!("{name}: memory before and after"),
            format!(
                "{}, {}",
                mebibytes(growth(0, before)),
                mebibytes(growth(0, after))
            ),
        ),
    ]
}

async fn connections(relay: &Relay) -> f64 {
    relay.metrics().await.value("relay_connections", &[])
}

/// From a thread of its own, so that the good clients are not held up. Says how many of the
/// connections the relay has ended.
fn attack(kind: Kind, relay: SocketAddr) -> JoinHandle<usize> {
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime
            .expect("a runtime for the attackers")
            .block_on(come(kind, relay))
    })
}

async fn come(kind: Kind, relay: SocketAddr) -> usize {
    let opening = Arc::<str>::from(opening(kind));
    let at_once = match kind {
        Kind::SlowHeads | Kind::HalfOpen => HOSTILE,
        Kind::BadTokens | Kind::OversizedFrames | Kind::PingFloods => AT_ONCE,
    };
    let places = Arc::new(Semaphore::new(at_once));
    let mut ticks = interval(Duration::from_secs(1) / COME_PER_SECOND);
    let mut attackers = JoinSet::new();
    for _ in 0..HOSTILE {
        ticks.tick().await;
        let place = places.clone().acquire_owned().await;
        let opening = opening.clone();
        attackers.spawn(async move {
            let _place = place;
            timeout(GONE_WITHIN, one(kind, relay, &opening))
                .await
                .is_ok()
        });
    }
    let ended = attackers.join_all().await;
    ended.into_iter().filter(|is_over| *is_over).count()
}

/// One hostile connection, until the relay ends it.
async fn one(kind: Kind, relay: SocketAddr, opening: &str) {
    let Ok(mut stream) = TcpStream::connect(relay).await else {
        return;
    };
    let frames: Vec<u8> = match kind {
        Kind::SlowHeads | Kind::HalfOpen | Kind::BadTokens => Vec::new(),
        // FIN and text, masked, 1 MiB long; the relay reads no more than this of it.
        Kind::OversizedFrames => {
            let mut frame = vec![0x81, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0, 1, 2, 3, 4];
            frame.resize(32 * KIB, b'x');
            frame
        }
        // Masked, without a payload.
        Kind::PingFloods => [0x89, 0x80, 1, 2, 3, 4].repeat(2_000),
    };
    // What the relay has closed already takes nothing more.
    if stream.write_all(opening.as_bytes()).await.is_err() {
        return;
    }
    let (mut reading, mut writing) = stream.split();
    let mut received = [0; 4 * KIB];
    // The answer to the upgrade, or the end.
    if !frames.is_empty() && !matches!(reading.read(&mut received).await, Ok(0) | Err(_)) {
        let _closed = writing.write_all(&frames).await;
    }
    while !matches!(reading.read(&mut received).await, Ok(0) | Err(_)) {}
}

fn opening(kind: Kind) -> String {
    let token = match kind {
        Kind::HalfOpen => return String::new(),
        Kind::SlowHeads => return format!("GET {JOB} HTTP/1.1\r\nhost: relay\r\nx-slow: "),
        Kind::BadTokens => "e30.e30.c2lnbmF0dXJl".to_owned(),
        Kind::OversizedFrames | Kind::PingFloods => token("mallory"),
    };
    format!(
        "GET {JOB} HTTP/1.1\r\nhost: relay\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         authorization: Bearer {token}\r\n\r\n"
    )
}
