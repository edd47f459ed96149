//! The papers against the code: snippets parse, frames are those that the relay sends, outcomes
//! and reasons are those that it gives.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use regex::Regex;
use relay::auth::TokenFault;
use relay::config::{Config, ConfigError, Message};
use relay::protocol::encoder::{Encoder, Omitted};
use relay::protocol::outcome::Outcome;
use relay::protocol::{
    ClientMessage, ControlFrame, LossReason, SUBPROTOCOL, State, framed, snapshot_framed,
};
use relay::store::live::commands;
use relay::stream::{Cursor, Entry, EntryId, StreamKey, StreamKeys};

const README: &str = include_str!("../README.md");
const PROTOCOL: &str = include_str!("../docs/PROTOCOL.md");
const SECURITY: &str = include_str!("../docs/SECURITY.md");

const FIRST_MS: u64 = 1_700_000_000_000;
const STATE: &str = r#"{"progress":40}"#;

/// What a route needs beside the message that an example is about.
const ROUTE: &str = r#"
[auth]
mode = "none"
[[route]]
name = "job"
path = "/ws/jobs/{job_id}"
streams = ["job:{job_id}:updates"]
[route.snapshot]
url = "http://127.0.0.1:8000/state"
"#;

/// The fenced examples of this language, in their order.
fn fences<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    let opening = format!("```{language}\n");
    let bodies = text.split(&opening).skip(1);
    let bodies: Vec<_> = bodies.filter_map(|rest| rest.split("```").next()).collect();
    assert!(!bodies.is_empty(), "no {language}");
    bodies
}

fn section<'t>(text: &'t str, title: &str) -> &'t str {
    let heading = format!("\n## {title}\n");
    let (_, rest) = text.split_once(&heading).expect("the section is there");
    rest.split("\n## ").next().unwrap_or_default()
}

/// The cells of a table's rows, without its head.
fn table<'t>(text: &'t str, head: &str) -> Vec<Vec<&'t str>> {
    let (_, rest) = text.split_once(head).expect("the table is there");
    let rows = rest
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let rows: Vec<Vec<_>> = rows
        .map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(!rows.is_empty(), "{head} has no rows");
    rows
}

/// What a framed message says.
fn text(framed: &[u8]) -> String {
    let head = if framed[1] < 126 { 2 } else { 4 };
    String::from_utf8(framed[head..].to_vec()).expect("frames are text")
}

fn id(entry: u64) -> EntryId {
    EntryId::new(FIRST_MS + entry, 0)
}

fn entry(number: u64, field: &str, value: &str) -> Entry {
    Entry {
        id: id(number),
        fields: vec![(
            Bytes::copy_from_slice(field.as_bytes()),
            Bytes::copy_from_slice(value.as_bytes()),
        )],
    }
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    let secret = |name: &str| (name == "JWT_SECRET").then(|| "x".repeat(32));
    Config::parse(text, "relay.toml", &secret)
}

/// The messages of a route that has this in its config.
fn message(toml: &str) -> Message {
    let config = parse(&format!("{ROUTE}{toml}"));
    let config = config.unwrap_or_else(|error| panic!("{toml}: {error}"));
    config.routes[0].message.clone()
}

fn snapshot(message: &Message) -> String {
    text(&snapshot_framed(message, "connect", &id(0), STATE))
}

fn event(message: &Message, entry: &Entry) -> String {
    let encoder = Encoder::new(&message.format, 1);
    let key = StreamKey::from("job:42:updates");
    let encoded = encoder.encode(&key, std::slice::from_ref(entry), |_| {});
    text(&encoded.from(0))
}

/// Of the second of two streams.
fn event_of_two(message: &Message) -> String {
    let keys = ["job:42:updates", "job:42:log"].map(StreamKey::from);
    let entry = entry(5, "data", r#"{"line":"done"}"#);
    let encoder = Encoder::new(&message.format, keys.len());
    let encoded = encoder.encode(&keys[1], &[entry], |_| {});
    let keys = StreamKeys::new(keys.into());
    let cursor = Cursor::display([id(1), id(5)].into_iter(), &keys);
    let mut out = Vec::new();
    encoder.push_with_cursor(&mut out, &cursor, encoded.piece(0));
    text(&out)
}

fn control(frame: &ControlFrame<'_>) -> String {
    text(&frame.framed())
}

/// What the relay sends, in the order of the paper.
fn frames() -> Vec<String> {
    let with_field = message("[route.message]\nfield = \"data\"");
    let small = message("[route.message]\nfield = \"data\"\nmax_bytes = \"8B\"");
    let lost = EntryId::new(1_690_000_000_000, 0).to_string();
    let status = |state, as_of| control(&ControlFrame::Status { state, as_of });
    vec![
        snapshot(&with_field),
        event(&with_field, &entry(1, "data", r#"{"progress":41}"#)),
        event(&small, &entry(2, "data", r#"{"progress":42}"#)),
        control(&ControlFrame::Live {
            cursor: &id(2).to_string(),
        }),
        control(&ControlFrame::Resync {
            reason: LossReason::Trimmed,
            lost: &lost,
        }),
        control(&ControlFrame::Conflated {
            stream: "job:42:updates",
            folded: 1290,
        }),
        status(State::Degraded, FIRST_MS),
        status(State::Ok, FIRST_MS + 9_000),
        status(State::NoSnapshot, FIRST_MS + 9_000),
        control(&ControlFrame::Goaway {
            reason: "drain",
            retry_after_ms: 1_800,
        }),
        control(&ControlFrame::Expiring {
            expires_in_ms: 60_000,
        }),
        control(&ControlFrame::Pong),
        event_of_two(&with_field),
    ]
}

#[test]
fn frames_are_those_that_the_relay_sends() {
    let (before_formats, _) = PROTOCOL.split_once("\n## Formats\n").unwrap();
    let documented: Vec<_> = fences(before_formats, "json")
        .iter()
        .flat_map(|fence| fence.lines())
        .collect();
    assert_eq!(documented, frames());
}

#[test]
fn formats_make_what_the_paper_shows() {
    let formats = section(PROTOCOL, "Formats");
    let configs = fences(formats, "toml");
    let results = fences(formats, "json");
    assert_eq!(configs.len(), results.len());
    let entry = entry(1, "data", r#"{"id":"a7","progress":41}"#);
    for (config, result) in configs.into_iter().zip(results) {
        let message = message(config);
        let made = [snapshot(&message), event(&message, &entry)];
        assert_eq!(result.lines().collect::<Vec<_>>(), made, "{config}");
    }
}

#[test]
fn what_clients_may_say_is_understood() {
    assert!(PROTOCOL.contains("`{\"type\":\"ping\"}` or the bare text `ping`"));
    for text in [r#"{"type":"ping"}"#, "ping"] {
        assert_eq!(ClientMessage::parse(text), ClientMessage::Ping);
    }
    assert!(PROTOCOL.starts_with(&format!("# The protocol {SUBPROTOCOL}\n")));
    assert_eq!(text(&framed(b"x")), "x");
}

#[test]
fn every_reason_for_a_loss_or_an_omission_is_told() {
    let first = |head: &str| -> BTreeSet<String> {
        let rows = table(PROTOCOL, head);
        rows.iter().map(|row| row[0].replace('`', "")).collect()
    };
    let omitted = Omitted::ALL.map(|omitted| omitted.as_str().to_owned());
    assert_eq!(first("| omitted | why |"), omitted.into());
    let losses = [
        LossReason::Trimmed,
        LossReason::Deleted,
        LossReason::RolledBack,
        LossReason::Lagged,
    ];
    let losses = losses.map(|reason| reason.as_str().to_owned());
    assert_eq!(first("| reason | why |"), losses.into());
}

/// Exhaustive, so that a new outcome is missed here.
fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::BadRequest => "bad request",
        Outcome::Unauthenticated => "token missing, invalid or expired",
        Outcome::Forbidden => "not allowed",
        Outcome::NotFound => "no such route or resource",
        Outcome::TooSlow => "too slow",
        Outcome::ContinuityLost => "continuity lost for good",
        Outcome::TooMany => "too many connections or messages",
        Outcome::MessageTooBig => "message too big",
        Outcome::Overloaded => "overloaded, Redis unknown, draining",
        Outcome::CallbackFailed => "callback failed",
        Outcome::Internal => "stream unreadable, internal",
        Outcome::Restart => "restart, maximum age",
    }
}

const OUTCOMES: [Outcome; 12] = [
    Outcome::BadRequest,
    Outcome::Unauthenticated,
    Outcome::Forbidden,
    Outcome::NotFound,
    Outcome::TooSlow,
    Outcome::ContinuityLost,
    Outcome::TooMany,
    Outcome::MessageTooBig,
    Outcome::Overloaded,
    Outcome::CallbackFailed,
    Outcome::Internal,
    Outcome::Restart,
];

/// Before the upgrade there are no such endings.
fn has_status(outcome: Outcome) -> bool {
    !matches!(
        outcome,
        Outcome::TooSlow | Outcome::ContinuityLost | Outcome::Restart
    )
}

#[test]
fn outcomes_have_the_codes_of_the_table() {
    let documented: Vec<_> = table(PROTOCOL, "| outcome | status | close | come back? |")
        .into_iter()
        .map(|row| row[..3].join(" | "))
        .collect();
    let real = OUTCOMES.map(|outcome| {
        let status = outcome.status().as_u16().to_string();
        let status = if has_status(outcome) { &status } else { "–" };
        format!("{} | {status} | {}", name(outcome), outcome.close_code())
    });
    assert_eq!(documented, real);
}

/// The text of every file below `folder`.
fn sources(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    let paths = entries.map(|entry| entry.expect("the entry can be read").path());
    let (folders, files): (Vec<PathBuf>, Vec<_>) = paths.partition(|path| path.is_dir());
    let files = files
        .iter()
        .map(|path| fs::read_to_string(path).expect("it can be read"));
    let below = folders.iter().flat_map(|folder| sources(folder));
    files.chain(below).collect()
}

#[test]
fn every_reason_is_documented_and_given() {
    let source = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let source = source.join("\n");
    let refusals = Regex::new(r#"(?s)Refusal::(?:new|retry)\(\s*Outcome::\w+,\s*"(\w+)""#);
    let refusals = refusals.expect("the pattern is valid");
    let snapshots = Regex::new(r#"=> "(snapshot_\w+)""#).expect("the pattern is valid");
    let mut reasons: BTreeSet<&str> = TokenFault::ALL.iter().map(|fault| fault.reason()).collect();
    for pattern in [&refusals, &snapshots] {
        let found: Vec<_> = pattern.captures_iter(&source).collect();
        assert!(!found.is_empty(), "{pattern}");
        reasons.extend(found.iter().filter_map(|c| c.get(1)).map(|m| m.as_str()));
    }
    let rows = table(PROTOCOL, "| reason | what it means |");
    let documented: BTreeSet<_> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    let missing: Vec<_> = reasons.difference(&documented).collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
    for reason in documented {
        assert!(
            source.contains(&format!("\"{reason}\"")),
            "{reason} is never given"
        );
    }
}

#[test]
fn the_whole_client_is_the_same_everywhere() {
    let readme = fences(README, "js");
    assert_eq!(readme, fences(PROTOCOL, "js"));
    let lines = readme[0].lines().count();
    assert!(lines <= 10, "{lines} lines");
}

#[test]
fn the_config_of_the_readme_is_valid() {
    let mut text = String::new();
    for fence in fences(README, "toml") {
        // The later ones are added to the first.
        text.push_str(fence);
        if let Err(error) = parse(&text) {
            panic!("{error} in\n{text}");
        }
    }
}

#[test]
fn the_acl_line_has_the_commands_that_are_sent() {
    let config = parse(ROUTE).unwrap_or_else(|error| panic!("{error}"));
    let commands = commands(&config.redis).unwrap();
    assert!(!commands.is_empty());
    let commands: String = commands.iter().map(|name| format!(" +{name}")).collect();
    let line = format!("~job:*:updates -@all{commands}\n");
    let operations = include_str!("../docs/OPERATIONS.md");
    assert!(operations.contains(&line), "expected {line}");
}

#[test]
fn what_shows_a_promise_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let promises = table(SECURITY, "| promise | where | tests |");
    let (file, test) = (
        Regex::new(r"`([a-z_/]+\.rs)`").unwrap(),
        Regex::new(r"`([a-z_]+)::([a-z0-9_]+)`").unwrap(),
    );
    for promise in promises {
        for place in file.captures_iter(promise[1]) {
            assert!(root.join("src").join(&place[1]).exists(), "{promise:?}");
        }
        let tests: Vec<_> = test.captures_iter(promise[2]).collect();
        assert!(!tests.is_empty(), "nothing shows {promise:?}");
        for test in tests {
            let text = fs::read_to_string(root.join(format!("tests/scenarios/{}.rs", &test[1])));
            let text = text.unwrap_or_else(|error| panic!("{}: {error}", &test[1]));
            let declared = format!("#[tokio::test]\nasync fn {}()", &test[2]);
            assert!(text.contains(&declared), "{} is no test", &test[0]);
        }
    }
}

#[test]
fn the_python_of_the_readme_compiles() {
    for fence in fences(README, "python") {
        let mut compiler = Command::new("python3")
            .args(["-c", "import ast, sys; ast.parse(sys.stdin.read())"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("python3 is needed: {error}"));
        let mut stdin = compiler.stdin.take().expect("it is piped");
        stdin.write_all(fence.as_bytes()).unwrap();
        drop(stdin);
        assert!(compiler.wait().unwrap().success(), "{fence}");
    }
}
