//! Entries at a fixed rate, and clients that note how long each took.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::support::client::{Client, Received};
use crate::support::redis::Redis;
use crate::support::wait::within;
use crate::{KEY, KIB};

/// What is due is added this often, or one entry at a time where that is less often.
const TICK: Duration = Duration::from_millis(1);
/// A run that is slower than this share of its rate says nothing: the machine is too small.
const SUSTAINED: f64 = 0.95;

/// The one clock of publisher and clients.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    fn micros(self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).expect("it is not that late")
    }
}

/// Entries `first` to `last`, each with its number and the time it was sent, 1 KiB in all.
pub(crate) struct Flow {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) per_second: u64,
}

impl Flow {
    pub(crate) fn count(&self) -> u64 {
        self.last - self.first + 1
    }

    /// How long it takes at its rate.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_millis(self.count() * 1000 / self.per_second)
    }

    /// Publishes from a thread of its own, so that clients don't hold it up, and says how long
    /// that took.
    pub(crate) fn publish(&self, redis: &Redis, clock: Clock) -> JoinHandle<Duration> {
        let (url, first, last) = (redis.url(), self.first, self.last);
        let per_tick = self.per_second * u64::try_from(TICK.as_millis()).expect("short") / 1000;
        let (per_tick, tick) = match per_tick {
            0 => (1, Duration::from_secs(1).div_f64(self.per_second as f64)),
            several => (several, TICK),
        };
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.expect("a runtime for the publisher");
            runtime.block_on(publish(&url, first..=last, per_tick, tick, clock))
        })
    }
}

async fn publish(
    url: &str,
    numbers: RangeInclusive<u64>,
    per_tick: u64,
    tick: Duration,
    clock: Clock,
) -> Duration {
    let (first, last) = numbers.into_inner();
    let client = ::redis::Client::open(url).expect("the URL is well-formed");
    let connection = client.get_multiplexed_async_connection().await;
    let mut connection = connection.expect("redis-server accepts connections");
    let mut ticks = interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let start = Instant::now();
    let mut number = first;
    while number <= last {
        ticks.tick().await;
        let mut pipeline = ::redis::pipe();
        for number in number..=last.min(number + per_tick - 1) {
            let payload = payload(number, clock.micros());
            let xadd = pipeline.cmd("XADD").arg(KEY).arg("*");
            xadd.arg("data").arg(payload).ignore();
        }
        let done: ::redis::RedisResult<()> = pipeline.query_async(&mut connection).await;
        done.expect("redis-server takes entries");
        number += per_tick;
    }
    start.elapsed()
}

fn payload(number: u64, sent: u64) -> String {
    let head = format!(r#"{{"n":{number},"sent":{sent},"filling":""#);
    let filling = KIB - head.len() - 2;
    format!("{head}{:.<filling$}\"}}", "")
}

/// Publishes the flow while all of them read it; says what each entry took at each client.
pub(crate) async fn all_follow(
    clients: Vec<Client>,
    flow: Flow,
    redis: &Redis,
    clock: Clock,
) -> (Vec<Client>, Vec<u64>) {
    let (limit, count) = (flow.duration() * 2 + Duration::from_secs(10), clients.len());
    let published = flow.publish(redis, clock);
    let flow = Arc::new(flow);
    let mut reading = JoinSet::new();
    for client in clients {
        let flow = flow.clone();
        reading.spawn(async move { follow(client, &flow, clock).await });
    }
    let read = within(limit, "every client gets every entry", reading.join_all()).await;
    let took = published.await.expect("the publisher ends");
    let rate = flow.duration().as_secs_f64() / took.as_secs_f64();
    assert!(rate > SUSTAINED, "published at {rate:.2} of the rate");
    let (mut clients, mut latencies) = (Vec::new(), Vec::new());
    for (client, times) in read {
        clients.push(client);
        latencies.extend(times);
    }
    assert_eq!(clients.len(), count);
    (clients, latencies)
}

/// Reads the whole flow, in order, and says how many microseconds each entry took.
async fn follow(mut client: Client, flow: &Flow, clock: Clock) -> (Client, Vec<u64>) {
    let mut latencies = Vec::new();
    for number in flow.first..=flow.last {
        let text = match client.receive().await {
            Received::Text(text) => text,
            other => panic!("{other:?} instead of entry {number}"),
        };
        let received = clock.micros();
        assert_eq!(number_after(&text, "\"n\":"), number, "{text:.200}");
        latencies.push(received - number_after(&text, "\"sent\":"));
    }
    (client, latencies)
}

/// The number that follows this in a frame.
fn number_after(text: &str, name: &str) -> u64 {
    let digits = text.split_once(name).map(|(_, rest)| rest);
    let digits = digits.and_then(|rest| rest.split(',').next());
    let number = digits.and_then(|digits| digits.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {text:.200}"))
}

/// The latency that so many in a hundred don't exceed.
pub(crate) fn percentile(latencies: &mut [u64], percent: usize) -> Duration {
    latencies.sort_unstable();
    let rank = (latencies.len() * percent).div_ceil(100);
    Duration::from_micros(latencies[rank - 1])
}
