//! A config that is wrong in any way: exit code 2, and one message that helps.

use std::time::Duration;

use crate::support::command::{Finished, Running};

const LIMIT: Duration = Duration::from_secs(10);

/// A config that passes, each line on its own.
const GOOD: &str = r#"[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
[redis]
url = "redis://127.0.0.1:1/0"
[auth]
token_from = ["header"]
[[auth.key]]
algorithms = ["HS256"]
secret = "an-hmac-secret-of-the-scenarios-48-bytes-in-all."
[[route]]
name = "job"
path = "/ws/jobs/{job_id}"
streams = ["job:{job_id}:updates"]
[route.snapshot]
url = "http://127.0.0.1:1/jobs/{job_id}"
[route.message]
field = "data"
"#;

async fn relay(subcommand: &str, config: &str) -> (Finished, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("relay.toml");
    std::fs::write(&file, config).expect("a config file");
    let file = file.display().to_string();
    let running = Running::start(&[subcommand, "--config", &file]);
    (running.finish(LIMIT).await, file)
}

/// What is changed in the good config, and what the message has to name.
struct Case {
    old: &'static str,
    new: &'static str,
    names: &'static [&'static str],
}

const fn case(old: &'static str, new: &'static str, names: &'static [&'static str]) -> Case {
    Case { old, new, names }
}

/// Each names the key, and where it can, what is expected.
const CASES: &[Case] = &[
    // An unknown key, and the nearest that is known.
    case("listen = \"127", "lissten = \"127", &["lissten", "listen"]),
    case(
        "[redis]\n",
        "[redis]\nholdd = \"1ms\"\n",
        &["holdd", "hold"],
    ),
    case("field = \"data\"", "feild = \"data\"", &["feild", "field"]),
    case("[redis]\n", "[rediss]\n", &["rediss", "redis"]),
    // Values of the wrong kind.
    case("[redis]\n", "[redis]\nhold = \"2 parsecs\"\n", &["hold"]),
    case("[redis]\n", "[redis]\nhold = 2\n", &["hold"]),
    case(
        "[redis]\n",
        "[redis]\nring_bytes = \"1 MiBs\"\n",
        &["ring_bytes"],
    ),
    case("[redis]\n", "[redis]\npool_size = 0\n", &["pool_size"]),
    case(
        "[redis]\n",
        "[redis]\nwake = \"sometimes\"\n",
        &["wake", "tracking", "poll"],
    ),
    case("127.0.0.1:0", "not an address", &["listen"]),
    case(
        "redis://127.0.0.1:1/0",
        "http://127.0.0.1:1/0",
        &["url", "redis"],
    ),
    // The environment.
    case(
        "redis://127.0.0.1:1/0",
        "${NO_SUCH_VARIABLE}",
        &["NO_SUCH_VARIABLE"],
    ),
    case(
        "redis://127.0.0.1:1/0",
        "${file:/no/such/file}",
        &["/no/such/file"],
    ),
    // Keys.
    case("scenarios-48-bytes-in-all.", "short", &["secret", "32"]),
    case("\"HS256\"", "\"HS257\"", &["algorithms", "HS257"]),
    case("\"HS256\"", "\"none\"", &["algorithms"]),
    case("\"HS256\"", "\"HS256\", \"RS256\"", &["algorithms"]),
    case(
        "token_from = [\"header\"]",
        "token_from = [\"cookie:session\"]",
        &["allowed_origins"],
    ),
    case(
        "token_from = [\"header\"]",
        "token_from = [\"haeder\"]",
        &["token_from"],
    ),
    // Routes.
    case("name = \"job\"\n", "", &["name"]),
    case(
        "streams = [\"job:{job_id}:updates\"]",
        "streams = []",
        &["streams"],
    ),
    case("job:{job_id}:updates", "job:{id}:updates", &["id"]),
    case("job:{job_id}:updates", "job:{job_id:updates", &["streams"]),
    case("{job_id}\"\nstreams", "{job_id\"\nstreams", &["path"]),
    case(
        "name = \"job\"\n",
        "name = \"job\"\nauthorize = \"claims.\"\n",
        &["authorize"],
    ),
    case(
        "name = \"job\"\n",
        "name = \"job\"\nhistory = \"some\"\n",
        &["history"],
    ),
    case(
        "name = \"job\"\n",
        "name = \"job\"\nparams = { job_id = \"[\" }\n",
        &["job_id"],
    ),
    // Messages and snapshots.
    case("field = \"data\"", "format = \"verbatim\"", &["field"]),
    case(
        "field = \"data\"",
        "format = \"xml\"",
        &["format", "envelope"],
    ),
    case(
        "[route.message]",
        "share = \"url\"\n[route.message]",
        &["share", "forward"],
    ),
    case(
        "http://127.0.0.1:1/jobs",
        "ftp://127.0.0.1:1/jobs",
        &["url", "http"],
    ),
    case(
        "[route.message]",
        "timeout = \"0s\"\n[route.message]",
        &["timeout"],
    ),
    case(
        "[route.message]",
        "[route.slow]\nthen = \"panic\"\n[route.message]",
        &["then"],
    ),
];

fn broken(case: &Case) -> (String, usize) {
    assert!(
        GOOD.contains(case.old),
        "{:?} is not in the config",
        case.old
    );
    let config = GOOD.replacen(case.old, case.new, 1);
    let first_changed = GOOD.lines().zip(config.lines());
    let line = first_changed.take_while(|(old, new)| old == new).count() + 1;
    (config, line)
}

#[tokio::test]
async fn s31_the_message_names_file_line_and_key() {
    assert!(!CASES.is_empty());
    for case in CASES {
        let (config, line) = broken(case);
        let (finished, file) = relay("run", &config).await;
        let said = &finished.output;
        assert_eq!(finished.code, Some(2), "{:?}: {said}", case.new);
        assert!(said.contains(&file), "{:?}: no file in {said}", case.new);
        let lines = [line - 1, line, line + 1, line + 2];
        let names_line = |line: &usize| {
            said.contains(&format!(":{line}")) || said.contains(&format!("line {line}"))
        };
        assert!(
            lines.iter().any(names_line),
            "{:?}: no line {line} in {said}",
            case.new
        );
        for name in case.names {
            assert!(said.contains(name), "{:?}: no {name:?} in {said}", case.new);
        }
        assert!(
            said.lines().count() <= 8,
            "{:?}: more than a message: {said}",
            case.new
        );
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn s31_check_says_the_same() {
    let (good, _) = relay("check", GOOD).await;
    assert_eq!(good.code, Some(0), "{}", good.output);
    let (bad, file) = relay("check", &GOOD.replace("field =", "feild =")).await;
    assert_eq!(bad.code, Some(2), "{}", bad.output);
    assert!(
        bad.output.contains(&file) && bad.output.contains("feild"),
        "{}",
        bad.output
    );
}

#[tokio::test]
async fn s31_a_secret_is_not_shown() {
    let secret = "short-but-secret";
    let config = GOOD.replace("an-hmac-secret-of-the-scenarios-48-bytes-in-all.", secret);
    let (finished, _) = relay("run", &config).await;
    assert_eq!(finished.code, Some(2), "{}", finished.output);
    assert!(!finished.output.contains(secret), "{}", finished.output);
}

#[tokio::test]
async fn s31_no_file_and_no_toml() {
    let running = Running::start(&["run", "--config", "/no/such/relay.toml"]);
    let finished = running.finish(LIMIT).await;
    assert_eq!(finished.code, Some(2), "{}", finished.output);
    assert!(
        finished.output.contains("/no/such/relay.toml"),
        "{}",
        finished.output
    );
    let (finished, file) = relay("run", "[server\n").await;
    assert_eq!(finished.code, Some(2), "{}", finished.output);
    assert!(finished.output.contains(&file), "{}", finished.output);
    let (finished, _) = relay("run", "").await;
    assert_eq!(finished.code, Some(2), "no route: {}", finished.output);
}

#[tokio::test]
async fn a_port_that_is_taken_is_a_failure_of_its_own() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (finished, _) = relay("run", &GOOD.replacen("127.0.0.1:0", &address, 1)).await;
    assert_eq!(finished.code, Some(1), "{}", finished.output);
    assert!(finished.output.contains(&address), "{}", finished.output);
}
