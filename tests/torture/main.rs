//! The torture test: three relays behind faulty links, publishers, clients that come and go, and
//! a plan of faults that follows from a seed. Each client's view is held entry by entry against
//! the publishers' log, and the first thing that does not fit ends the run.
//!
//! `make torture` runs it; see CONTRIBUTING.md.
#![cfg(test)]

mod chance;
mod clients;
mod frame;
mod log;
mod payload;
mod plan;
mod publishers;
mod routes;
mod stage;
mod totals;
mod truth;
mod view;
mod world;

#[expect(dead_code, reason = "the scenarios use the rest")]
#[path = "../support/support.rs"]
mod support;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{try_join, try_join_all};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use clients::Torn;
use log::Log;
use plan::Lane;
use publishers::Publisher;
use stage::{RELAYS, Stage};
use support::api::FakeApi;
use world::{Phase, World};

const STREAMS: usize = 12;
const PUBLISHERS: usize = 4;
const JOURNAL: usize = 60;
const PROGRESS: Duration = Duration::from_secs(10);
/// Once nothing breaks any more, a client needs no longer than this to see the end: a resync may
/// wait six seconds and a callback for its turn.
const REACHED: Duration = Duration::from_secs(60);
/// For so long nothing more comes.
const SILENCE: Duration = Duration::from_secs(2);

/// From the environment; the seed is printed, so that its plan can be had again.
struct Settings {
    lasts: Duration,
    seed: u64,
    clients: usize,
    pause_ms: u64,
}

impl Settings {
    fn read() -> Self {
        Self {
            lasts: Duration::from_secs(number("TORTURE_SECONDS").unwrap_or(120)),
            seed: number("TORTURE_SEED").unwrap_or_else(|| rand::random_range(1..1_000_000_000)),
            clients: usize::try_from(number("TORTURE_CLIENTS").unwrap_or(60))
                .expect("a number of clients"),
            pause_ms: number("TORTURE_PAUSE_MS").unwrap_or(60),
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var_os(name).filter(|text| !text.is_empty())?;
    let number = text.to_str().and_then(|text| text.parse().ok());
    Some(number.unwrap_or_else(|| panic!("{name} is a whole number, not {text:?}")))
}

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::read();
    let seed = settings.seed;
    println!(
        "torture: seed {seed}, {} s, {} clients, {RELAYS} relays, {PUBLISHERS} publishers, {STREAMS} streams",
        settings.lasts.as_secs(),
        settings.clients,
    );
    let (redis, api) = (stage::redis().await, FakeApi::start().await);
    let log = Arc::new(Log::new(seed, STREAMS));
    let world = Arc::new(World::new(seed, log.clone(), redis.url(), RELAYS));
    api.answer_by(move |path| truth::state(&log, path));
    let stage = Arc::new(Stage::new(world.clone(), redis, &api).await);

    let mut violation = world.violation();
    let result = tokio::select! {
        result = run(&settings, &world, &stage) => result,
        () = progress(&world) => unreachable!("it goes on for ever"),
        violation = violation.wait_for(Option::is_some) => {
            Err(violation.ok().and_then(|what| what.clone()).unwrap_or_default())
        }
    };
    if let Err(what) = &result {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/torture");
        println!(
            "torture: VIOLATION with seed {seed}\n{what}\nthe last of the plan:\n{}",
            world.totals.journal(JOURNAL)
        );
        match stage.save_logs(&folder).await {
            Ok(()) => println!("torture: logs are in {}", folder.display()),
            Err(error) => println!("torture: no logs: {error}"),
        }
    }
    println!("{}", world.totals.line(seed, usize::from(result.is_err())));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

async fn progress(world: &World) {
    let mut ticks = interval(PROGRESS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        println!("{}", world.totals.progress());
    }
}

/// `Err` is the violation.
async fn run(settings: &Settings, world: &Arc<World>, stage: &Arc<Stage>) -> Result<(), String> {
    let mut clients = JoinSet::new();
    let mut reached = Vec::new();
    for index in 0..settings.clients {
        let (client, is_reached) = Torn::new(world.clone(), index);
        clients.spawn(told(world.clone(), client.run()));
        reached.push(is_reached);
    }

    let until = Instant::now() + settings.lasts;
    let mut parts = JoinSet::new();
    for index in 0..PUBLISHERS {
        let publisher = Publisher::new(world.clone(), index, PUBLISHERS, settings.pause_ms);
        parts.spawn(publisher.run(until));
    }
    let lanes = (0..RELAYS).flat_map(|index| [Lane::Relay(index), Lane::Link(index)]);
    let faults = lanes
        .chain([Lane::Redis])
        .map(|lane| stage.play(lane, until));
    try_join(all(parts), try_join_all(faults)).await?;

    world.totals.note("quiet");
    Publisher::last_entries(world.clone()).await?;
    truth::holds(&world.log, &stage.redis).await?;
    let last: Vec<u64> = (0..STREAMS)
        .map(|stream| world.log.facts(stream).written)
        .collect();
    world.phase.send_replace(Phase::Quiet(Arc::new(last)));
    reach(&mut reached).await?;
    truth::fresh_clients_stand_at_the_end(world).await?;
    // Whatever comes now was delivered before, or is nobody's.
    let deliveries = world.totals.deliveries.value();
    sleep(SILENCE).await;
    let more = world.totals.deliveries.value() - deliveries;
    if more > 0 {
        return Err(format!("{more} entries came after the last ones"));
    }
    world.phase.send_replace(Phase::Over);
    all(clients).await?;
    stage.drain_all().await
}

/// A client's violation ends the run at once; the others are not waited for.
async fn told(
    world: Arc<World>,
    client: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let result = client.await;
    if let Err(what) = &result {
        world.violated(what.clone());
    }
    result
}

/// Waits for all tasks, or for the first that fails.
async fn all(mut tasks: JoinSet<Result<(), String>>) -> Result<(), String> {
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| format!("a part of the torture has ended: {error}"))??;
    }
    Ok(())
}

/// Nobody is deaf: each client sees the last entry of each of its streams.
async fn reach(reached: &mut [watch::Receiver<bool>]) -> Result<(), String> {
    let everybody = async {
        for client in reached.iter_mut() {
            client.wait_for(|reached| *reached).await.ok();
        }
    };
    if timeout(REACHED, everybody).await.is_ok() {
        return Ok(());
    }
    let deaf: Vec<usize> = (0..reached.len())
        .filter(|index| !*reached[*index].borrow())
        .collect();
    Err(format!(
        "{REACHED:?} after the last fault the clients {deaf:?} have not seen the last entries"
    ))
}
