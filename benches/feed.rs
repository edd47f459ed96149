//! What every read and every wake-up comes to: the proof that nothing is missing, and the part
//! of a chunk that a session has not sent yet.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion};
use relay::config::Config;
use relay::hub::chunk::{Chunk, Formats, Slice};
use relay::hub::continuity::{Digest, Known, judge};
use relay::metrics::Metrics;
use relay::store::Answer;
use relay::stream::{Entry, EntryId, StreamKey};

const COUNT: usize = 1000;
const CONFIG: &str = r#"
    [auth]
    mode = "none"
    [[route]]
    name = "job"
    path = "/ws/jobs/{job_id}"
    streams = ["job:{job_id}:updates"]
    [route.message]
    field = "data"
"#;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    proof(&mut criterion);
    slices(&mut criterion);
    criterion.final_summary();
}

/// An answer that proves itself, as nearly every one does.
fn proof(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("judge");
    for new in [1, 32, 256] {
        let entries = entries(new + 1);
        let known = Known {
            digest: Some(Digest::of(&entries[0])),
            ..Known::at(entries[0].id)
        };
        group.bench_with_input(BenchmarkId::from_parameter(new), &entries, |bencher, _| {
            let answer = || Answer {
                entries: entries.clone(),
                info: None,
            };
            bencher.iter_batched(
                answer,
                |answer| judge(black_box(&known), answer, COUNT),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// From a position to the bytes that follow it, which are encoded already.
fn slices(criterion: &mut Criterion) {
    let config = Config::parse(CONFIG, "relay.toml", &|_| None);
    let config = config.expect("the config is valid");
    let formats = Formats::new(&config.routes, &Metrics::new());
    let format = formats.find(&config.routes[0]);
    let format = format.expect("the route's format is among them");
    let mut group = criterion.benchmark_group("messages after a position");
    for length in [1, 32, 256] {
        let entries = entries(length);
        let middle = EntryId::new(entries[length as usize / 2].id.ms - 1, 0);
        let chunk = Chunk::new(&StreamKey::from("job:42:updates"), entries, &formats);
        let chunk = Arc::new(chunk.expect("there are entries"));
        group.bench_with_input(BenchmarkId::from_parameter(length), &chunk, |bencher, _| {
            bencher.iter(|| Slice::after(&chunk, black_box(middle)).map(|s| s.messages(format)));
        });
    }
    group.finish();
}

fn entries(count: u64) -> Vec<Entry> {
    let data = Bytes::from(format!(r#"{{"text":"{}"}}"#, "x".repeat(189)));
    let entry = |number| Entry {
        id: EntryId::new(1_700_000_000_000 + number, 0),
        fields: vec![(Bytes::from_static(b"data"), data.clone())],
    };
    (0..count).map(entry).collect()
}
