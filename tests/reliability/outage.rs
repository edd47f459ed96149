//! Redis is away for half a minute: what the relay does meanwhile, and how soon entries flow
//! when it is back.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ROUNDS;
use crate::machine::Machine;
use crate::report::{Report, Row, each, milliseconds, percent};
use crate::support::client::{Client, Received};
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::wait::within;

const CLIENTS: usize = 200;
const STREAMS: usize = 100;
const AWAY: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(30);

const MOST_CPU: f64 = 0.02;
const MOST_DELAY: Duration = Duration::from_secs(1);

/// How Redis goes away.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Stopped by SIGSTOP: connections stay open, nothing is answered.
    Hung,
    /// Ended by SIGTERM, and started again with what it wrote.
    Gone,
}

#[derive(Clone, Copy)]
struct Outage {
    cpu: f64,
    /// From Redis' return to the first client's first entry, and to the last client's.
    first: Duration,
    last: Duration,
}

pub(crate) async fn measure(machine: &Machine, kind: Kind) -> Report {
    let mut outages = Vec::new();
    for round in 1..=ROUNDS {
        outages.push(run(machine, kind).await);
        eprintln!("  round {round} of {ROUNDS}");
    }
    let cpu: Vec<_> = outages.iter().map(|outage| outage.cpu).collect();
    let first: Vec<_> = outages.iter().map(|outage| outage.first).collect();
    let last: Vec<_> = outages.iter().map(|outage| outage.last).collect();
    let (name, how) = match kind {
        Kind::Hung => ("hung", "stopped by SIGSTOP and continued by SIGCONT"),
        Kind::Gone => (
            "gone",
            "ended by SIGTERM and started again with its append-only file",
        ),
    };
    let worst = |times: &[Duration]| times.iter().max().copied().unwrap_or_default();
    Report {
        did: format!(
            "**{name}**: {CLIENTS} clients of {STREAMS} streams; redis-server is {how}, {} s \
             later. Then an entry is added to each stream. The worst of {ROUNDS} rounds.",
            AWAY.as_secs()
        ),
        rows: vec![
            Row::under(
                "relay's processor time meanwhile, of a core",
                cpu.iter().copied().fold(0.0, f64::max),
                MOST_CPU,
                percent,
            ),
            Row::under(
                "first entry delivered after",
                worst(&first),
                MOST_DELAY,
                milliseconds,
            ),
            Row::under(
                "every client has its entry after",
                worst(&last),
                MOST_DELAY,
                milliseconds,
            ),
            Row::told("processor time", each(&cpu, percent)),
            Row::told("first entry", each(&first, milliseconds)),
            Row::told("every client", each(&last, milliseconds)),
        ],
    }
}

async fn run(machine: &Machine, kind: Kind) -> Outage {
    let mut redis = Redis::start_with(&["--appendonly", "yes"]).await;
    let config = Config::new(&redis).with("[log]\nlevel = \"info\"");
    let relay = machine.start_relay(&config).await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = relay.open(&format!("/ws/jobs/{}", number % STREAMS)).await;
        client.expect_live().await;
        clients.push(client);
    }
    add_to_each(&redis, 1).await;
    for client in &mut clients {
        client.expect_event("1-0", "now").await;
    }

    let before = relay.cpu_time();
    let start = Instant::now();
    match kind {
        Kind::Hung => redis.pause(),
        Kind::Gone => redis.stop().await,
    }
    let mut waiting = JoinSet::new();
    for client in clients {
        waiting.spawn(second_entry(client));
    }
    tokio::time::sleep_until(start + AWAY).await;
    let cpu = (relay.cpu_time() - before).as_secs_f64() / start.elapsed().as_secs_f64();
    match kind {
        Kind::Hung => redis.resume(),
        Kind::Gone => redis.start_again().await,
    }
    let back = Instant::now();
    add_to_each(&redis, 2).await;
    let arrivals = within(LIMIT, "every client gets its entry", waiting.join_all()).await;
    assert_eq!(arrivals.len(), CLIENTS);
    let delays = arrivals.iter().map(|arrival| *arrival - back);
    let (first, last) = (delays.clone().min(), delays.max());
    Outage {
        cpu,
        first: first.expect("there are clients"),
        last: last.expect("there are clients"),
    }
}

/// In one transaction: they are all there at once.
async fn add_to_each(redis: &Redis, number: u64) {
    let lines = (0..STREAMS).map(|stream| format!("XADD job:{stream}:updates {number}-0 data now"));
    redis.transaction(&lines.collect::<Vec<_>>()).await;
}

/// When it has come, however long that takes. In between the client is told of the outage.
async fn second_entry(mut client: Client) -> Instant {
    let limit = AWAY + LIMIT;
    let entry = async {
        loop {
            let text = match client.receive().await {
                Received::Text(text) => text,
                other => panic!("{other:?} instead of an entry"),
            };
            let arrived = Instant::now();
            if text.contains("\"event\"") {
                assert!(text.contains("\"id\":\"2-0\""), "{text}");
                return arrived;
            }
            assert!(text.contains("\"status\""), "{text}");
        }
    };
    within(limit, "the entry after the outage", entry).await
}
