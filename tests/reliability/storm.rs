//! Everybody comes back at once: how much that asks of Redis.
//!
//! The goal is for a relay that has been there, as its rings have what the clients lack.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ROUNDS;
use crate::machine::Machine;
use crate::report::{Report, Row, each, milliseconds};
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::wait::{eventually, within};

const CLIENTS: usize = 2_000;
const STREAMS: usize = 10;
/// Entries of each stream; the cursors are spread over the newer half.
const ENTRIES: u64 = 40;
const LIMIT: Duration = Duration::from_secs(60);

const MOST_COMMANDS: u64 = 100;

/// What one storm took.
#[derive(Clone, Copy)]
struct Storm {
    commands: u64,
    time: Duration,
}

pub(crate) async fn measure(machine: &Machine) -> Report {
    let (mut cut, mut restarted) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let (after_cut, after_restart) = run(machine).await;
        cut.push(after_cut);
        restarted.push(after_restart);
        eprintln!("  round {round} of {ROUNDS}");
    }
    let commands = |storms: &[Storm]| storms.iter().map(|s| s.commands).collect::<Vec<_>>();
    let times = |storms: &[Storm]| storms.iter().map(|s| s.time).collect::<Vec<_>>();
    let most = |storms: &[Storm]| commands(storms).into_iter().max().unwrap_or_default();
    let show = |count: u64| count.to_string();
    Report {
        did: format!(
            "**storm**: {CLIENTS} clients of {STREAMS} streams connect at once with cursors from \
             1 to {} entries old, and get these entries and live; once after all were cut off, \
             once after the relay was killed and started again. Commands by INFO commandstats, \
             without the measurement's own. The most of {ROUNDS} rounds.",
            ENTRIES / 2
        ),
        rows: vec![
            Row::under(
                "Redis commands, all were cut off",
                most(&cut),
                MOST_COMMANDS,
                show,
            ),
            // Its rings are empty: it reads a page for each place that cursors name, however many
            // clients have that one.
            Row::told(
                "Redis commands, the relay is new",
                most(&restarted).to_string(),
            ),
            Row::told("commands, cut off", each(&commands(&cut), show)),
            Row::told("commands, new relay", each(&commands(&restarted), show)),
            Row::told(
                "until all are live, cut off",
                each(&times(&cut), milliseconds),
            ),
            Row::told(
                "until all are live, new relay",
                each(&times(&restarted), milliseconds),
            ),
        ],
    }
}

async fn run(machine: &Machine) -> (Storm, Storm) {
    let redis = Redis::start().await;
    let config = Config::new(&redis).with("[log]\nlevel = \"info\"");
    let mut relay = machine.start_relay(&config).await;
    // The first time they come without a cursor, and the entries while they are there.
    let mut first = JoinSet::new();
    for number in 0..CLIENTS {
        let upgrade = relay.upgrade(&path(number));
        first.spawn(async move {
            let mut client = upgrade.open().await;
            client.expect_live().await;
            client
        });
    }
    let mut clients = within(LIMIT, "all clients connect", first.join_all()).await;
    for stream in 0..STREAMS {
        let key = format!("job:{stream}:updates");
        redis.fill(&key, 1, ENTRIES, 200).await;
    }
    for client in &mut clients {
        client.expect_events(1, ENTRIES).await;
    }
    drop(clients);
    relay
        .metric_reaches("relay_sessions", &[("route", "job")], 0.0)
        .await;
    let after_cut = storm(&redis, &relay).await;

    relay.kill();
    let relay = machine.start_relay(&config).await;
    eventually("the relay is ready", async || {
        (relay.readyz().await.0 == 200).then_some(())
    })
    .await;
    (after_cut, storm(&redis, &relay).await)
}

fn path(client: usize) -> String {
    format!("/ws/jobs/{}", client % STREAMS)
}

/// Everybody at once, each with its cursor, until the last one is live.
async fn storm(redis: &Redis, relay: &Relay) -> Storm {
    let before = redis.commands().await;
    let start = Instant::now();
    let mut storm = JoinSet::new();
    for number in 0..CLIENTS {
        let age = 1 + u64::try_from(number / STREAMS).expect("it is small") % (ENTRIES / 2);
        let had = ENTRIES - age;
        let upgrade = relay.upgrade(&path(number)).cursor(&format!("{had}-0"));
        storm.spawn(async move {
            let mut client = upgrade.open().await;
            client.expect_events(had + 1, ENTRIES).await;
            client.expect_live().await;
            client
        });
    }
    let clients = within(LIMIT, "all clients come back", storm.join_all()).await;
    let time = start.elapsed();
    assert_eq!(clients.len(), CLIENTS);
    let commands = new_commands(&before, &redis.commands().await);
    Storm { commands, time }
}

/// Those of the relay: it never asks for INFO, and nobody else does anything meanwhile.
fn new_commands(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> u64 {
    let new = after.iter().map(|(name, count)| {
        let new = count - before.get(name).copied().unwrap_or_default();
        (name, new)
    });
    let new: BTreeMap<_, _> = new
        .filter(|(name, count)| *name != "info" && *count > 0)
        .collect();
    eprintln!("  {new:?}");
    new.values().sum()
}
