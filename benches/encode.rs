//! An entry becomes a message: what each format costs, once for all clients.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use relay::config::Config;
use relay::protocol::encoder::Encoder;
use relay::stream::{Cursor, Entry, EntryId, StreamKey, StreamKeys};

const ENTRIES: u64 = 32;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    formats(&mut criterion);
    cursors(&mut criterion);
    criterion.final_summary();
}

/// One pull of 32 entries, by format and size of the payload.
fn formats(criterion: &mut Criterion) {
    let key = StreamKey::from("job:42:updates");
    let mut group = criterion.benchmark_group("encode");
    for format in ["envelope", "verbatim", "merge"] {
        let encoder = encoder(format, 1);
        for payload in [200, 2048] {
            let entries = entries(payload);
            group.throughput(Throughput::Elements(ENTRIES));
            let id = BenchmarkId::new(format, payload);
            group.bench_with_input(id, &entries, |bencher, entries| {
                bencher.iter(|| encoder.encode(black_box(&key), entries, |_| {}));
            });
        }
    }
    group.finish();
}

/// What is left to do for each client where a route has several streams.
fn cursors(criterion: &mut Criterion) {
    let names = ["job:42:updates", "job:42:log", "job:42:metrics"];
    let keys = StreamKeys::new(names.map(StreamKey::from).into());
    let encoder = encoder("envelope", names.len());
    let encoded = encoder.encode(&StreamKey::from(names[0]), &entries(200)[..1], |_| {});
    let positions = [id(0), id(1), id(2)];
    let mut out = Vec::with_capacity(1024);
    criterion.bench_function("cursor of three streams", |bencher| {
        bencher.iter(|| {
            out.clear();
            let cursor = Cursor::display(black_box(positions).into_iter(), &keys);
            encoder.push_with_cursor(&mut out, &cursor, encoded.piece(0));
        });
    });
}

fn encoder(format: &str, streams: usize) -> Encoder {
    let text = format!(
        r#"
        [auth]
        mode = "none"
        [[route]]
        name = "job"
        path = "/ws/jobs/{{job_id}}"
        streams = ["job:{{job_id}}:updates"]
        [route.message]
        format = "{format}"
        field = "data"
        "#
    );
    let config = Config::parse(&text, "relay.toml", &|_| None);
    let config = config.expect("the config is valid");
    Encoder::new(&config.routes[0].message.format, streams)
}

fn entries(payload: usize) -> Vec<Entry> {
    let text = "x".repeat(payload.saturating_sub(r#"{"progress":40,"text":""}"#.len()));
    let data = Bytes::from(format!(r#"{{"progress":40,"text":"{text}"}}"#));
    let entry = |number| Entry {
        id: id(number),
        fields: vec![(Bytes::from_static(b"data"), data.clone())],
    };
    (0..ENTRIES).map(entry).collect()
}

fn id(number: u64) -> EntryId {
    EntryId::new(1_700_000_000_000 + number, 0)
}
