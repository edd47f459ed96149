//! The guarantee, under everything at once: each entry once and in order, or it is said that
//! some are lost.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::support::api::{FakeApi, Reply};
use crate::support::client::Client;
use crate::support::config::Config;
use crate::support::proxy::Proxy;
use crate::support::redis::{Redis, filled};
use crate::support::relay::Relay;
use crate::{JOB, KEY};

const QUICK: &str = "[redis]\ncommand_timeout = \"200ms\"\nring_entries = 32";

/// Numbers that look like chance and are the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }

    fn pause(&mut self, limit_ms: u64) -> Duration {
        Duration::from_millis(self.below(limit_ms))
    }
}

/// Adds entries in bursts; of a bounded stream it keeps `maxlen`.
async fn publish(redis: &Redis, total: u64, maxlen: Option<u64>) {
    let mut chance = Chance(1);
    let keep = maxlen.map_or_else(String::new, |maxlen| format!("MAXLEN {maxlen} "));
    let mut next = 1;
    while next <= total {
        let last = total.min(next + chance.below(40));
        let burst: Vec<String> = (next..=last)
            .map(|n| format!("XADD {KEY} {keep}{n}-0 data {}", filled(n, 100)))
            .collect();
        redis.transaction(&burst).await;
        next = last + 1;
        sleep(chance.pause(15)).await;
    }
}

/// Cuts, stalls and slows the way to Redis, until it is dropped.
async fn disturb(proxy: &Proxy) {
    let mut chance = Chance(2);
    loop {
        sleep(chance.pause(200)).await;
        match chance.below(4) {
            0 => proxy.cut(),
            1 => proxy.stall(),
            2 => proxy.delay(chance.pause(30)),
            _ => proxy.delay(Duration::ZERO),
        }
        sleep(chance.pause(300)).await;
        proxy.restore();
    }
}

/// What a client has seen: the numbers of entries, and whether a loss was told before each.
struct Seen {
    last: u64,
    losses: usize,
}

impl Seen {
    /// Takes frames until the entry of this number has come, or so many have been taken.
    async fn read(&mut self, client: &mut Client, until: u64, at_most: u64) {
        let mut told = None;
        for _ in 0..at_most {
            let frame = client.frame().await;
            match frame["type"].as_str() {
                Some("live" | "status") => continue,
                Some("resync") => {
                    told = Some(frame);
                    self.losses += 1;
                    continue;
                }
                kind => assert_eq!(kind, Some("event"), "{frame}"),
            }
            let id = frame["id"].as_str().unwrap();
            let number: u64 = id.strip_suffix("-0").unwrap().parse().unwrap();
            let follows = number == self.last + 1 || told.is_some() && number > self.last;
            assert!(follows, "{number} after {}, told: {told:?}", self.last);
            told = None;
            self.last = number;
            if number == until {
                return;
            }
        }
        // A resync has no cursor: who leaves before the next frame is told again.
        self.losses -= usize::from(told.is_some());
    }
}

async fn stay(relay: &Relay, total: u64) -> usize {
    let mut seen = Seen { last: 0, losses: 0 };
    let mut client = relay.upgrade(JOB).cursor("0-0").open().await;
    seen.read(&mut client, total, u64::MAX).await;
    seen.losses
}

async fn come_and_go(relays: &[Relay], total: u64, seed: u64) -> usize {
    let mut chance = Chance(seed);
    let mut seen = Seen { last: 0, losses: 0 };
    while seen.last < total {
        let which = usize::try_from(chance.below(2)).unwrap();
        let cursor = format!("{}-0", seen.last);
        let mut client = relays[which].upgrade(JOB).cursor(&cursor).open().await;
        seen.read(&mut client, total, 1 + chance.below(100)).await;
        client.vanish();
        sleep(chance.pause(30)).await;
    }
    seen.losses
}

/// Two relays, one with a bad way to Redis; entries, and clients of all kinds.
async fn play(total: u64, maxlen: Option<u64>) -> usize {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let relays = [
        Relay::start(&Config::through(&proxy).with(QUICK)).await,
        Relay::start(&Config::new(&redis).with(QUICK)).await,
    ];
    // The streams are known before the way gets bad: a client is never refused.
    for relay in &relays {
        relay.open(JOB).await.expect_live().await;
    }
    let published = async {
        tokio::select! {
            () = publish(&redis, total, maxlen) => {}
            () = disturb(&proxy) => unreachable!("it goes on for ever"),
        }
        proxy.delay(Duration::ZERO);
        proxy.restore();
    };
    let ((), a, b, c, d) = tokio::join!(
        published,
        stay(&relays[0], total),
        stay(&relays[1], total),
        come_and_go(&relays, total, 3),
        come_and_go(&relays, total, 4),
    );
    a + b + c + d
}

#[tokio::test]
async fn nothing_is_lost_and_nothing_comes_twice() {
    assert_eq!(play(8_000, None).await, 0);
}

#[tokio::test]
async fn what_is_lost_is_told() {
    let losses = play(8_000, Some(50)).await;
    assert!(losses > 0, "a stream of 50 entries was always read in time");
}

/// An API that always knows the last entry, while a hundred clients join. Says by how many
/// entries the first event that each got was older than its snapshot.
async fn overlaps(declares: bool) -> Vec<u64> {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let relay = Relay::start(&Config::new(&redis).snapshot_from(&api)).await;
    let state = |number: u64| {
        let reply = Reply::json(&json!(number)).delay(Duration::from_millis(number % 7));
        match declares {
            true => reply.header("relay-cursor", &format!("{number}-0")),
            false => reply,
        }
    };
    let publish = async {
        let mut chance = Chance(5);
        for number in 1.. {
            // Who declares what the state includes may publish first; who does not must not.
            if declares {
                redis.fill(KEY, number, number, 10).await;
                api.answer(state(number));
            } else {
                api.answer(state(number));
                redis.fill(KEY, number, number, 10).await;
            }
            sleep(chance.pause(4)).await;
        }
    };
    let join = async {
        let mut overlaps = Vec::new();
        for _ in 0..100 {
            let mut client = relay.open(JOB).await;
            client.ignore("live");
            let snapshot = client.expect_snapshot("connect").await.as_u64().unwrap();
            let event = client.expect("event").await;
            let id = event["id"].as_str().unwrap();
            let first: u64 = id.strip_suffix("-0").unwrap().parse().unwrap();
            assert!(
                first <= snapshot + 1,
                "{first} after a snapshot of {snapshot}"
            );
            overlaps.push(snapshot + 1 - first);
            client.expect_events(first + 1, first + 3).await;
        }
        overlaps
    };
    api.answer(state(0));
    tokio::select! {
        overlaps = join => overlaps,
        () = publish => unreachable!("it goes on for ever"),
    }
}

#[tokio::test]
async fn the_cut_leaves_no_gap() {
    assert_eq!(overlaps(false).await.len(), 100);
}

#[tokio::test]
async fn the_cut_is_exact_where_the_api_declares_it() {
    assert_eq!(overlaps(true).await, vec![0; 100]);
}
