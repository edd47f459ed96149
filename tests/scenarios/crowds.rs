//! Thousands of clients and of keys: what they cost does not grow with them.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::client::Client;
use crate::support::config::Config;
use crate::support::process::allow_many_open_files;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::upgrade::Upgrade;
use crate::{JOB, KEY};

const KIB: usize = 1024;
const MIB: u64 = 1024 * 1024;
/// Handshakes on their way at once: more would only wait for each other.
const AT_ONCE: usize = 100;

/// No log line for each of thousands, and no outage where the machine is only busy.
fn quiet(config: Config) -> Config {
    config.with("[log]\nlevel = \"info\"\n[redis]\ncommand_timeout = \"8s\"")
}

/// Opens all, and gives them in this order.
async fn open_all(upgrades: impl Iterator<Item = Upgrade>) -> Vec<Client> {
    allow_many_open_files();
    let opening = stream::iter(upgrades.map(Upgrade::open));
    opening.buffered(AT_ONCE).collect().await
}

/// Lets all of them read these entries at the same time, and gives them back.
async fn all_read(clients: Vec<Client>, first: u64, last: u64) -> Vec<Client> {
    let count = clients.len();
    let mut reading = JoinSet::new();
    for mut client in clients {
        reading.spawn(async move {
            client.expect_many_events(first, last).await;
            client
        });
    }
    let clients = reading.join_all().await;
    assert_eq!(clients.len(), count);
    clients
}

/// The value that so many of a hundred do not exceed.
fn percentile(mut times: Vec<Duration>, percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent).div_ceil(100) - 1]
}

#[tokio::test]
async fn s12_a_reconnect_storm_is_served_from_the_ring() {
    const CLIENTS: u64 = 2_000;
    let redis = Redis::start().await;
    let relay = Relay::start(&quiet(Config::new(&redis))).await;
    let mut watcher = relay.open(JOB).await;
    watcher.expect_live().await;
    redis.fill(KEY, 1, 100, 100).await;
    watcher.expect_events(1, 100).await;

    // Each of them has had a little more or less: the last ten entries, or none, are new to it.
    let had = |client: u64| 90 + client % 11;
    let before = redis.calls().await;
    let upgrades =
        (0..CLIENTS).map(|client| relay.upgrade(JOB).cursor(&format!("{}-0", had(client))));
    let clients = open_all(upgrades).await;
    for (mut client, number) in clients.into_iter().zip(0..) {
        client.expect_many_events(had(number) + 1, 100).await;
        assert_eq!(client.expect_live().await, "100-0");
    }
    let calls = redis.calls().await - before;
    assert!(calls < 100, "{calls} commands for {CLIENTS} clients");
}

#[tokio::test]
async fn s12_clients_far_behind_share_their_pages() {
    const CLIENTS: usize = 1_000;
    let redis = Redis::start().await;
    let relay = Relay::start(&quiet(Config::new(&redis))).await;
    redis.fill(KEY, 1, 5_001, 100).await;
    let mut watcher = relay.open(JOB).await;
    watcher.expect_live().await;

    let before = redis.calls().await;
    let upgrades = (0..CLIENTS).map(|_| relay.upgrade(JOB).cursor("1-0"));
    let clients = open_all(upgrades).await;
    for mut client in all_read(clients, 2, 5_001).await {
        assert_eq!(client.expect_live().await, "5001-0");
    }
    let calls = redis.calls().await - before;
    assert!(
        calls < 200,
        "{calls} commands for {CLIENTS} clients, 5,000 entries behind"
    );
}

/// Reads that it costs when so many clients read so many entries at full speed.
async fn reads_of_a_hot_stream(redis: &Redis, relay: &Relay, clients: usize, job: &str) -> u64 {
    const ENTRIES: u64 = 1_000;
    let (path, key) = (format!("/ws/jobs/{job}"), format!("job:{job}:updates"));
    let mut clients = open_all((0..clients).map(|_| relay.upgrade(&path))).await;
    for client in &mut clients {
        client.expect_live().await;
    }
    let before = redis.reads().await;
    tokio::join!(
        redis.fill(&key, 1, ENTRIES, 100),
        all_read(clients, 1, ENTRIES)
    );
    redis.reads().await - before
}

#[tokio::test]
async fn s13_reads_do_not_grow_with_the_clients_of_a_hot_stream() {
    let redis = Redis::start().await;
    let relay = Relay::start(&quiet(Config::new(&redis))).await;
    let few = reads_of_a_hot_stream(&redis, &relay, 2, "few").await;
    let many = reads_of_a_hot_stream(&redis, &relay, 1_000, "many").await;
    assert!(
        many <= 2 * few + 100,
        "{many} reads for 1,000 clients, {few} for 2"
    );
}

/// Bytes that the kernel holds for each client of this relay: written, and not taken.
fn unsent_bytes(relay: &Relay) -> Vec<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let local = format!("0100007F:{:04X}", relay.address().port());
    let rows = table.lines().map(|line| line.split_whitespace());
    rows.filter_map(|mut columns| {
        let established = columns.nth(1)? == local && columns.nth(1)? == "01";
        let (unsent, _) = columns.next()?.split_once(':')?;
        let unsent = u64::from_str_radix(unsent, 16).ok()?;
        established.then_some(unsent)
    })
    .collect()
}

/// The latency of the fast client is compared with that at another relay, where nobody is slow,
/// for the same entries at the same time: whatever else the machine does, it does to both. Of the
/// hundred slow ones ten read everything in the end, and the others the first 5,000 entries: five
/// gigabytes would take half a minute.
#[tokio::test]
async fn s13_clients_that_stop_reading_delay_nobody_and_cost_no_memory() {
    const SLOW: usize = 100;
    const ENTRIES: u64 = 50_000;
    let redis = Redis::start().await;
    let config = quiet(Config::new(&redis)).route("[slow]\nwrite_timeout = \"2m\"");
    let (relay, other) = (Relay::start(&config).await, Relay::start(&config).await);
    let stalled = (0..SLOW).map(|_| relay.upgrade(JOB).receive_buffer(4 * KIB));
    let mut slow = open_all(stalled).await;
    for client in &mut slow {
        client.expect_live().await;
    }
    let mut fast = relay.open(JOB).await;
    fast.expect_live().await;
    redis.fill(KEY, 1, 300, KIB).await;
    fast.expect_events(1, 300).await;

    let before = relay.rss_bytes();
    tokio::join!(
        redis.fill(KEY, 301, ENTRIES, KIB),
        fast.expect_many_events(301, ENTRIES)
    );
    let grown = relay.rss_bytes().saturating_sub(before);
    assert!(grown < 20 * MIB, "{grown} bytes");
    let unsent = unsent_bytes(&relay);
    assert!(unsent.len() > SLOW, "{unsent:?}");
    let full = unsent.iter().filter(|bytes| **bytes > 64_000).count();
    assert!(full >= SLOW, "they have stopped reading: {unsent:?}");
    // With what the kernel needs beside the bytes it is twice as much at the most.
    assert!(unsent.iter().all(|bytes| 2 * bytes < 300_000), "{unsent:?}");

    let mut control = other.open(JOB).await;
    control.expect_live().await;
    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    for number in ENTRIES + 1..=ENTRIES + 100 {
        let start = Instant::now();
        redis.fill(KEY, number, number, 100).await;
        let read = async |client: &mut Client| {
            client.expect_events(number, number).await;
            start.elapsed()
        };
        let (one, two) = tokio::join!(read(&mut fast), read(&mut control));
        beside.push(one);
        alone.push(two);
    }
    let (beside, alone) = (percentile(beside, 99), percentile(alone, 99));
    assert!(
        beside < 2 * alone + Duration::from_millis(50),
        "p99 is {beside:?} beside clients that stopped reading, {alone:?} without"
    );

    slow.iter().for_each(|client| client.widen(256 * KIB));
    let to_the_end = slow.split_off(SLOW - 10);
    tokio::join!(
        all_read(slow, 1, 5_000),
        all_read(to_the_end, 1, ENTRIES + 100)
    );
    let closed = relay.metrics().await;
    let closed = closed.value("relay_closes_total", &[("code", "4408")]);
    assert!(closed.abs() < f64::EPSILON, "{closed} were closed");
}

/// Entries are paged in when the client has taken those before: the first frame costs few reads,
/// and memory does not follow the length.
#[tokio::test]
async fn s16_a_long_history_is_paged() {
    const ENTRIES: u64 = 100_000;
    let redis = Redis::start().await;
    let relay = Relay::start(&Config::new(&redis).route(r#"history = "all""#)).await;
    redis.fill("job:warm:updates", 1, 500, KIB).await;
    let mut warm = relay.open("/ws/jobs/warm").await;
    warm.expect_events(1, 500).await;
    redis.fill(KEY, 1, ENTRIES, 200).await;

    let idle = relay.rss_bytes();
    let before = redis.reads().await;
    let upgrade = relay.upgrade(JOB).receive_buffer(4 * KIB);
    let mut client = upgrade.open().await;
    client.expect_events(1, 1).await;
    let reads = redis.reads().await - before;
    assert!(reads < 20, "{reads} reads for the first frame");
    let mut most = 0;
    for first in (2..ENTRIES).step_by(10_000) {
        let last = ENTRIES.min(first + 9_999);
        client.expect_many_events(first, last).await;
        most = relay.rss_bytes().saturating_sub(idle).max(most);
    }
    assert_eq!(client.expect_live().await, format!("{ENTRIES}-0"));
    assert!(most < 8 * MIB, "{most} bytes for 30 MB of history");
    let reads = redis.reads().await - before;
    assert!(reads > 50, "{reads} reads: this was not paged");
}

#[tokio::test]
async fn s17_connections_are_flat() {
    const SOCKETS: usize = 5_000;
    const KEYS: usize = 2_000;
    let redis = Redis::start().await;
    let relay = Relay::start(&quiet(Config::new(&redis))).await;
    let paths = (0..SOCKETS).map(|socket| format!("/ws/jobs/{}", socket % KEYS));
    let mut clients = open_all(paths.map(|path| relay.upgrade(&path))).await;
    let while_opened = redis.connections().await;
    for client in &mut clients {
        client.expect_live().await;
    }
    relay.metric_reaches("relay_sessions", &[], 5_000.0).await;
    relay.metric_reaches("relay_feeds", &[], 2_000.0).await;
    let adds = (0..KEYS).map(|job| format!("XADD job:{job}:updates 1-0 data x"));
    redis.transaction(&adds.collect::<Vec<_>>()).await;
    for client in &mut clients {
        client.expect_many_events(1, 1).await;
    }
    // One reader and a pool of eight, with room for a connection that is being replaced.
    for connections in [while_opened, redis.connections().await] {
        assert!(connections.len() <= 10, "{connections:#?}");
        let unnamed = |line: &&String| !line.contains(" name=relay");
        let unnamed: Vec<_> = connections.iter().filter(unnamed).collect();
        assert_eq!(unnamed, Vec::<&String>::new());
    }
}

/// The most streams that a route may have.
const KEYS_EACH: usize = 16;

/// A route whose clients watch so many keys each.
fn wide(config: Config) -> Config {
    let keys = (0..KEYS_EACH).map(|number| format!("\"job:{{job_id}}:{number}\""));
    let keys = keys.collect::<Vec<_>>().join(", ");
    quiet(config).route(&format!("streams = [{keys}]"))
}

/// Clients that watch at least this many keys together; all are live.
async fn wide_clients(relay: &Relay, keys: usize) -> Vec<Client> {
    let paths = (0..keys.div_ceil(KEYS_EACH)).map(|job| format!("/ws/jobs/{job}"));
    let mut clients = open_all(paths.map(|path| relay.upgrade(&path))).await;
    for client in &mut clients {
        client.expect_live().await;
    }
    clients
}

/// Adds the entries `first-0` to `last-0` to each of these clients' keys.
async fn fill_all(redis: &Redis, clients: &[Client], first: u64, last: u64) {
    for job in 0..clients.len() {
        let mut adds = Vec::new();
        for number in first..=last {
            let keys = 0..KEYS_EACH;
            adds.extend(keys.map(|key| format!("XADD job:{job}:{key} {number}-0 data x")));
        }
        redis.transaction(&adds).await;
    }
}

/// These entries of each of its keys, in order, once each, and so many times word that Redis is
/// back.
async fn expect_of_each(client: &mut Client, first: u64, last: u64, recovered: usize) {
    let mut next: HashMap<String, u64> = HashMap::new();
    let mut left = (last + 1 - first) as usize * KEYS_EACH;
    let mut oks = 0;
    while left > 0 || oks < recovered {
        let frame = client.frame().await;
        if frame["type"] == "status" {
            assert_eq!(frame["state"], "ok", "{frame}");
            oks += 1;
            continue;
        }
        let key = frame["stream"].as_str();
        let key = key.unwrap_or_else(|| panic!("{frame}")).to_owned();
        let expected = next.entry(key).or_insert(first);
        assert_eq!(frame["id"], format!("{expected}-0"), "{frame}");
        *expected += 1;
        left -= 1;
    }
    assert!(next.values().all(|next| *next == last + 1), "{next:?}");
    assert_eq!((next.len(), oks), (KEYS_EACH, recovered));
}

const NEW: &str = r#"
    name = "new"
    path = "/ws/new/{job_id}"
    streams = ["new:{job_id}"]
    [message]
    field = "data"
"#;

/// What it took from an XADD to its frame for a key that nobody has read before.
struct Took {
    time: Duration,
    reads: u64,
}

/// That in the middle of twenty tries, each by itself: a moment at which the machine is busy
/// elsewhere does not count.
async fn median_of_new_keys(redis: &Redis, relay: &Relay) -> Took {
    let (mut times, mut reads) = (Vec::new(), Vec::new());
    for job in 0..20 {
        let mut client = relay.open(&format!("/ws/new/{job}")).await;
        client.expect_live().await;
        let before = redis.reads().await;
        let start = Instant::now();
        redis.xadd(&format!("new:{job}"), "1-0", "x").await;
        client.expect_event("1-0", "x").await;
        times.push(start.elapsed());
        reads.push(redis.reads().await - before);
    }
    reads.sort_unstable();
    Took {
        time: percentile(times, 50),
        reads: reads[reads.len() / 2],
    }
}

/// No sweep is due, so only the push can bring the entry; that the others are not read for it is
/// seen by the number of reads.
#[tokio::test]
async fn s18_a_new_key_is_served_at_once_among_many() {
    let redis = Redis::start().await;
    let config = wide(Config::new(&redis)).with("[redis]\nsweep = \"1h\"");
    let relay = Relay::start(&config.another_route(NEW)).await;
    let _others = wide_clients(&relay, 2_000).await;
    let took = median_of_new_keys(&redis, &relay).await;
    assert!(took.time < Duration::from_millis(100), "{:?}", took.time);
    assert!(took.reads <= 5, "{} reads for a new key", took.reads);
    relay.metric_reaches("relay_redis_tracking", &[], 1.0).await;
}

/// A round of polls is an XREAD for each hundred keys. The new key is in the next one, or in that
/// after it. How long this is depends on the machine: polling may take a tenth of the time, and
/// where rounds are slow there are fewer. So the rounds are counted.
#[tokio::test]
async fn s18_without_tracking_it_polls() {
    const USER: &str = "[redis]\nusername = \"relay\"\npassword = \"a-password-of-redis\"";
    const ROUND: u64 = 21;
    let redis = Redis::start().await;
    redis
        .run("ACL SETUSER relay on >a-password-of-redis ~* +@all -client|tracking")
        .await;
    let config = wide(Config::new(&redis)).with(USER);
    let relay = Relay::start(&config.another_route(NEW)).await;
    let _others = wide_clients(&relay, 2_000).await;
    let took = median_of_new_keys(&redis, &relay).await;
    // Beside them the read itself, and the share of the sweep.
    let reads = took.reads;
    assert!(reads <= 2 * ROUND + 20, "{reads} reads for a new key");
    relay.metric_reaches("relay_redis_tracking", &[], 0.0).await;
    assert_eq!(polling_was_told(&relay, "TRACKING is refused"), 1);
}

/// How often the log says that streams are polled, and that this is the reason.
fn polling_was_told(relay: &Relay, reason: &str) -> usize {
    let lines = relay.log_lines().into_iter();
    lines
        .filter(|line| line.contains(reason) && line.contains("streams are polled"))
        .count()
}

/// Rings of 32 entries are soon full; those of 256, which is the default, would take half a
/// million.
#[tokio::test]
async fn s20_two_thousand_keys_with_full_rings_after_a_reconnect() {
    const KEYS: usize = 2_000;
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let config =
        wide(Config::through(&proxy)).with("[redis]\nring_entries = 32\ncommand_timeout = \"2s\"");
    let relay = Relay::start(&config).await;
    let mut clients = wide_clients(&relay, KEYS).await;
    fill_all(&redis, &clients, 1, 40).await;
    for client in &mut clients {
        expect_of_each(client, 1, 40, 0).await;
    }

    proxy.cut();
    for client in &mut clients {
        client.expect_status("degraded").await;
    }
    fill_all(&redis, &clients, 41, 42).await;
    let before = redis.reads().await;
    proxy.restore();
    for client in &mut clients {
        expect_of_each(client, 41, 42, 1).await;
    }
    let reads = redis.reads().await - before;
    assert!(reads < 2 * KEYS as u64, "{reads} reads for {KEYS} keys");
    let resyncs = relay.metrics().await.value("relay_resyncs_total", &[]);
    assert!(resyncs.abs() < f64::EPSILON, "{resyncs} resyncs");
    fill_all(&redis, &clients, 43, 43).await;
    for client in &mut clients {
        expect_of_each(client, 43, 43, 0).await;
    }
}

/// Each read evicts another key from the table, and its push causes the next read, without a
/// single write.
#[tokio::test]
async fn s21_a_full_tracking_table() {
    let redis = Redis::start().await;
    redis.run("CONFIG SET tracking-table-max-keys 10").await;
    let relay = Relay::start(&wide(Config::new(&redis))).await;
    let mut clients = wide_clients(&relay, 1_000).await;
    relay.metric_reaches("relay_redis_tracking", &[], 0.0).await;

    let (start, before) = (Instant::now(), redis.reads().await);
    clients[0].expect_silence(Duration::from_secs(2)).await;
    let reads = (redis.reads().await - before) as f64 / start.elapsed().as_secs_f64();
    assert!(reads < 2_000.0, "{reads} reads a second");
    let mut times = Vec::new();
    for (job, client) in clients.iter_mut().enumerate().step_by(3) {
        let start = Instant::now();
        redis.xadd(&format!("job:{job}:7"), "1-0", "x").await;
        client.expect_event("1-0", "x").await;
        times.push(start.elapsed());
    }
    let median = percentile(times, 50);
    assert!(median < Duration::from_millis(500), "{median:?}");
    assert_eq!(polling_was_told(&relay, "tracking table"), 1);
}
