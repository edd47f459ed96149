//! Clients that read nothing, beside others that do: what they cost in memory, and whether they
//! delay anybody.

use std::time::Duration;

use crate::flow::{Clock, Flow, all_follow, percentile};
use crate::machine::Machine;
use crate::report::{Report, Row, each, mebibytes, median, milliseconds};
use crate::sampler::{Sampler, growth};
use crate::support::client::Client;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::{JOB, KEY, KIB, MIB, ROUNDS};

const GOOD: usize = 50;
const STALLED: u64 = 100;
/// Before the flow: each stalled client has a place of its own in these, so that none shares
/// what the relay holds for another.
const OLDER: u64 = 20_000;
const WARM_UP: u64 = 2_000;
const ENTRIES: u64 = 50_000;
const PER_SECOND: u64 = 2_000;

const MOST_GROWTH: i64 = 20 * MIB as i64;
const MOST_RATIO: f64 = 1.2;

/// One run's figures.
#[derive(Clone, Copy)]
struct Run {
    growth: i64,
    p50: Duration,
    p99: Duration,
    relay_cpu: f64,
}

pub(crate) async fn measure(machine: &Machine) -> Report {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        without.push(run(machine, 0).await);
        with.push(run(machine, STALLED).await);
        eprintln!("  round {round} of {ROUNDS}");
    }
    let growth = |runs: &[Run]| runs.iter().map(|run| run.growth).collect::<Vec<_>>();
    let p99 = |runs: &[Run]| runs.iter().map(|run| run.p99).collect::<Vec<_>>();
    let p50 = |runs: &[Run]| runs.iter().map(|run| run.p50).collect::<Vec<_>>();
    let cpu = |runs: &[Run]| runs.iter().map(|run| run.relay_cpu).collect::<Vec<_>>();
    let (grown_with, grown_without) = (median(&growth(&with)), median(&growth(&without)));
    let (late_with, late_without) = (median(&p99(&with)), median(&p99(&without)));
    let ratio = late_with.as_secs_f64() / late_without.as_secs_f64();
    let share = |share: f64| format!("{:.0} %", share * 100.0);
    Report {
        did: format!(
            "**stalled**: {ENTRIES} entries of 1 KiB at {PER_SECOND}/s to {GOOD} clients of one \
             stream, without and with {STALLED} more that read nothing, each resumed at another \
             place of the {OLDER} entries before. {ROUNDS} runs of each in turn, each with a new \
             Redis and relay; medians. slow.write_timeout = 5m, so that none is cut off."
        ),
        rows: vec![
            Row::under(
                "memory grows by, with the stalled clients",
                grown_with,
                MOST_GROWTH,
                mebibytes,
            ),
            Row::under(
                "more than without them",
                grown_with - grown_without,
                MOST_GROWTH,
                mebibytes,
            ),
            Row::under("p99 latency, with to without", ratio, MOST_RATIO, |ratio| {
                format!("{ratio:.2}×")
            }),
            Row::told("memory, with", each(&growth(&with), mebibytes)),
            Row::told("memory, without", each(&growth(&without), mebibytes)),
            Row::told("p99 latency, with", each(&p99(&with), milliseconds)),
            Row::told("p99 latency, without", each(&p99(&without), milliseconds)),
            Row::told("p50 latency, with", each(&p50(&with), milliseconds)),
            Row::told("p50 latency, without", each(&p50(&without), milliseconds)),
            Row::told("relay's share of a core, with", each(&cpu(&with), share)),
            Row::told(
                "relay's share of a core, without",
                each(&cpu(&without), share),
            ),
        ],
    }
}

async fn run(machine: &Machine, stalled: u64) -> Run {
    let redis = Redis::start().await;
    redis.fill(KEY, 1, OLDER, KIB).await;
    let config = Config::new(&redis)
        .with("[log]\nlevel = \"info\"")
        .route("[slow]\nwrite_timeout = \"5m\"");
    let relay = machine.start_relay(&config).await;
    let good = relay.open_live(JOB, GOOD).await;
    let clock = Clock::start();
    let warm_up = Flow {
        first: 1,
        last: WARM_UP,
        per_second: PER_SECOND,
    };
    let (good, _) = all_follow(good, warm_up, &redis, clock).await;

    let sessions = usize::try_from(stalled).expect("it is small") + GOOD;
    let before = relay.rss_bytes();
    let sampler = Sampler::start(relay.id());
    let stalled = stall(&relay, stalled).await;
    let cpu_before = relay.cpu_time();
    let flow = Flow {
        first: WARM_UP + 1,
        last: WARM_UP + ENTRIES,
        per_second: PER_SECOND,
    };
    let (clients, mut latencies) = all_follow(good, flow, &redis, clock).await;
    let cpu = relay.cpu_time() - cpu_before;
    let peak = sampler.peak();
    // Nobody was cut off to spare memory.
    let here = relay.metrics().await;
    let here = here.value("relay_sessions", &[("route", "job")]);
    assert!(
        (here - f64::from(u32::try_from(sessions).expect("small"))).abs() < 0.5,
        "{here}"
    );
    drop((clients, stalled));
    let seconds = ENTRIES as f64 / PER_SECOND as f64;
    Run {
        growth: growth(before, peak),
        p50: percentile(&mut latencies, 50),
        p99: percentile(&mut latencies, 99),
        relay_cpu: cpu.as_secs_f64() / seconds,
    }
}

/// Clients that take what their kernel takes, and then nothing.
async fn stall(relay: &Relay, count: u64) -> Vec<Client> {
    let mut stalled = Vec::new();
    for place in 0..count {
        let cursor = format!("{}-0", 1 + place * (OLDER / count));
        let upgrade = relay.upgrade(JOB).cursor(&cursor);
        stalled.push(upgrade.receive_buffer(4 * KIB).open().await);
    }
    stalled
}
