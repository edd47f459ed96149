//! One client that wants all of a long history: what it costs in memory, and how soon it begins.

use std::time::Duration;

use tokio::time::Instant;

use crate::machine::Machine;
use crate::report::{Report, Row, each, mebibytes, milliseconds};
use crate::sampler::{Sampler, growth};
use crate::support::client::{Client, Received};
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::wait::{eventually, within};
use crate::{JOB, KEY, KIB, MIB, ROUNDS};

const ENTRIES: u64 = 100_000;
const LIMIT: Duration = Duration::from_secs(120);

const MOST_GROWTH: i64 = 8 * MIB as i64;

#[derive(Clone, Copy)]
struct Replay {
    growth: i64,
    first: Duration,
    whole: Duration,
}

pub(crate) async fn measure(machine: &Machine) -> Report {
    let redis = Redis::start().await;
    redis.fill(KEY, 1, ENTRIES, KIB).await;
    let mut replays = Vec::new();
    for round in 1..=ROUNDS {
        replays.push(run(machine, &redis).await);
        eprintln!("  round {round} of {ROUNDS}");
    }
    let grown: Vec<_> = replays.iter().map(|replay| replay.growth).collect();
    let first: Vec<_> = replays.iter().map(|replay| replay.first).collect();
    let whole: Vec<_> = replays.iter().map(|replay| replay.whole).collect();
    Report {
        did: format!(
            "**history**: one client of a route with history = \"all\" gets {ENTRIES} entries of \
             1 KiB from a relay that has just started. Memory against the idle relay, the highest \
             of samples every 10 ms. The worst of {ROUNDS} rounds, each with a new relay."
        ),
        rows: vec![
            Row::under(
                "memory above idle",
                grown.iter().copied().max().unwrap_or(i64::MAX),
                MOST_GROWTH,
                mebibytes,
            ),
            Row::told("memory above idle", each(&grown, mebibytes)),
            Row::told(
                "first entry, handshake included",
                each(&first, milliseconds),
            ),
            Row::told("the whole history", each(&whole, milliseconds)),
        ],
    }
}

async fn run(machine: &Machine, redis: &Redis) -> Replay {
    let config = Config::new(redis)
        .with("[log]\nlevel = \"info\"")
        .route("history = \"all\"");
    let relay = machine.start_relay(&config).await;
    eventually("the relay is ready", async || {
        (relay.readyz().await.0 == 200).then_some(())
    })
    .await;
    let idle = relay.rss_bytes();
    let sampler = Sampler::start(relay.id());
    let (first, whole) = within(LIMIT, "the whole history", replay(&relay)).await;
    Replay {
        growth: growth(idle, sampler.peak()),
        first,
        whole,
    }
}

/// From the handshake to the first entry, and to the last.
async fn replay(relay: &Relay) -> (Duration, Duration) {
    let start = Instant::now();
    let mut client = relay.open(JOB).await;
    expect_entry(&mut client, 1).await;
    let first = start.elapsed();
    for number in 2..=ENTRIES {
        expect_entry(&mut client, number).await;
    }
    let whole = start.elapsed();
    client.expect_live().await;
    (first, whole)
}

/// Without parsing all of it: the client should not be what is waited for.
async fn expect_entry(client: &mut Client, number: u64) {
    let text = match client.receive().await {
        Received::Text(text) => text,
        other => panic!("{other:?} instead of entry {number}"),
    };
    assert!(
        text.contains(&format!("\"id\":\"{number}-0\"")),
        "{text:.200}"
    );
}
