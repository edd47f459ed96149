//! The command line: what is printed where, and the exit codes.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde_json::{Value, json};
use tempfile::TempDir;

const SECRET: &str = "a-secret-of-at-least-thirty-two-bytes";
const CONFIG: &str = r#"
[server]
admin_listen = "ADMIN"

[redis]
url = "redis://:of-redis@127.0.0.1:1/0"

[auth]
issuer = ["the-api"]
require = { type = "access" }

[[auth.key]]
algorithms = ["HS256"]
secret = "SECRET"

[[route]]
name = "job"
path = "/ws/jobs/{job_id}"
streams = ["job:{job_id}:updates"]
"#;

/// A directory with a relay.toml, in which the command is run.
struct Place(TempDir);

impl Place {
    fn with(config: &str) -> Self {
        let place = Self(tempfile::tempdir().expect("a directory"));
        std::fs::write(place.config(), config).expect("a config file");
        place
    }

    fn valid() -> Self {
        Self::asking("127.0.0.1:1")
    }

    /// Whose relay has its admin port here.
    fn asking(admin: &str) -> Self {
        let config = CONFIG.replace("SECRET", SECRET);
        Self::with(&config.replace("ADMIN", admin))
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("relay.toml")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_relay"))
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("RELAY_TOKEN")
            .output()
            .expect("the command runs")
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// An answer with this status line and body.
fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// A command with text on its standard input.
fn run_with_input(place: &Place, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_relay"))
        .args(arguments)
        .current_dir(place.0.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// A config whose route wants an admin of the tenant that a header names, and has a snapshot.
fn explained() -> Place {
    let config = CONFIG
        .replace("SECRET", SECRET)
        .replace("ADMIN", "127.0.0.1:1");
    Place::with(&format!(
        "{config}{}",
        r#"
authorize = "claims.role == 'admin' && headers['x-tenant'] == 'acme'"
authorize_headers = ["x-tenant"]
[route.snapshot]
url = "http://127.0.0.1:8000/jobs/{job_id}/state"
"#
    ))
}

fn minted(place: &Place, more: &[&str]) -> String {
    let output = place.run(&[&["token", "--sub", "bob", "--claim", "role=admin"], more].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    stdout(&output).trim_end().to_owned()
}

#[test]
fn an_accepted_request_is_explained() {
    let place = explained();
    let token = minted(&place, &[]);
    let arguments = [
        "explain",
        "/ws/jobs/42",
        "--header",
        "x-tenant: acme",
        "--token-file",
        "-",
    ];
    let output = run_with_input(&place, &arguments, &format!("{token}\n"));
    let said = stdout(&output);
    assert_eq!(code(&output), 0, "{said}{}", stderr(&output));
    for line in [
        "OK    route: job (/ws/jobs/{job_id})",
        "OK    params: job_id = \"42\"",
        "OK    signature: by [[auth.key]] 1, HS256",
        "OK    iss: \"the-api\"",
        "OK    authorize: true: claims.role == 'admin'",
        "OK    stream: job:42:updates",
        "OK    snapshot: GET http://127.0.0.1:8000/jobs/42/state",
        "accepted",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(
        said.contains("OK    exp: ") && said.contains("(in 59m"),
        "{said}"
    );
    assert!(!said.contains(&token), "{said}");
}

#[test]
fn a_refused_request_is_explained() {
    let place = explained();
    let good = minted(&place, &[]);
    let expired = minted(&place, &["--claim", "exp=1700000000", "--claim", "iss=x"]);
    let acme = ["--header", "x-tenant: acme"];
    let table: [(&str, &[&str], &str, &[&str]); 7] = [
        (
            "/nowhere",
            &acme,
            &good,
            &[
                "FAIL  route: ",
                "refused: no_route (status 404, close code 4404)",
            ],
        ),
        (
            "/ws/jobs/a*b",
            &acme,
            &good,
            &["FAIL  params: ", "refused: no_such_resource"],
        ),
        (
            "ws://h:1/ws/jobs/42?x=1",
            &[],
            &good,
            &[
                "FAIL  authorize: can't be evaluated (no such key",
                "refused: not_allowed (status 403, close code 4403)",
            ],
        ),
        (
            "/ws/jobs/42",
            &["--header", "x-tenant: b"],
            &good,
            &["FAIL  authorize: false: ", "refused: not_allowed"],
        ),
        (
            "/ws/jobs/42",
            &acme,
            &expired,
            &[
                "OK    signature",
                "FAIL  exp: 2023-11-14",
                "FAIL  iss: \"x\"",
                "refused: token_expired (status 401, close code 4401)",
            ],
        ),
        (
            "/ws/jobs/42",
            &acme,
            "garbage",
            &["FAIL  token: ", "refused: token_malformed"],
        ),
        (
            "wss://h/ws/jobs/42",
            &["--header", "origin: https://evil.example"],
            &good,
            &["FAIL  origin: ", "refused: origin_not_allowed"],
        ),
    ];
    for (url, more, token, lines) in table {
        let output = place.run(&[&["explain", url, "--token", token], more].concat());
        let said = stdout(&output);
        assert_eq!(code(&output), 1, "{url}: {said}{}", stderr(&output));
        for line in lines {
            assert!(said.contains(line), "{url}: {line}: {said}");
        }
    }
    // Where the config has it look, as a client would bring it.
    let header = format!("authorization: Bearer {good}");
    let output = place.run(&[&["explain", "/ws/jobs/42", "--header", &header], &acme[..]].concat());
    assert_eq!(code(&output), 0, "{}", stdout(&output));
    let output = place.run(&["explain", "/ws/jobs/42"]);
    assert!(stdout(&output).contains("refused: token_missing"));
}

#[test]
fn a_jwks_is_fetched_to_explain_and_to_check() {
    let set = include_str!("keys/jwks.json");
    let place = |answers| {
        let config = CONFIG.replace("ADMIN", "127.0.0.1:1");
        let url = format!("jwks_url = \"http://{}/jwks\"", admin_port(answers));
        let config = config.replace("secret = \"SECRET\"", &url);
        Place::with(&config.replace("HS256", "ES256"))
    };
    let there = || vec![answer("200 OK", set)];
    let output = place(there()).run(&["explain", "/ws/jobs/1", "--token", "a.b.c"]);
    let said = stdout(&output);
    assert!(
        said.contains("OK    jwks: [[auth.key]] 1 from 127.0.0.1:"),
        "{said}"
    );
    let output = place(there()).run(&["check", "--live"]);
    let said = stdout(&output);
    assert!(
        said.contains("OK    jwks: [[auth.key]] 1 from 127.0.0.1:"),
        "{said}"
    );
    assert!(said.contains("1 usable key, 1 of other kinds"), "{said}");
    let output = place(vec![answer("500 No", "")]).run(&["check", "--live"]);
    let said = stdout(&output);
    assert!(said.contains("FAIL  jwks: [[auth.key]] 1 from "), "{said}");
    assert!(said.contains("it answered 500"), "{said}");
}

/// Answers each connection with the next of these answers; then nobody listens any more.
fn admin_port(answers: Vec<String>) -> String {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = port.local_addr().expect("a bound port").to_string();
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = port.accept().expect("a question");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a whole head");
                head.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).expect("a listener");
        }
    });
    address
}

#[test]
fn the_version_is_told() {
    let output = Place::valid().run(&["--version"]);
    assert_eq!(code(&output), 0);
    let version = format!("relay {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&output), version);
}

#[test]
fn bad_usage_is_status_2() {
    let table: [&[&str]; 9] = [
        &["nonsense"],
        &["health", "--admin", "relay"],
        &["--nonsense"],
        &["tail"],
        &["tail", "http://127.0.0.1/ws"],
        &["tail", "ws://127.0.0.1/ws", "--for", "soon"],
        &["token"],
        &["token", "--sub", "bob", "--claim", "jobs=[a]"],
        &["check", "--stream", "job:1:updates"],
    ];
    for arguments in table {
        let output = Place::valid().run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert!(!stderr(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_config_that_is_not_there_is_status_2() {
    let table: [&[&str]; 4] = [&[], &["run"], &["check"], &["token", "--sub", "bob"]];
    for arguments in table {
        let output = Place::valid().run(&[arguments, &["--config", "other.toml"]].concat());
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(stderr(&output).contains("other.toml"), "{arguments:?}");
    }
}

#[test]
fn a_bad_config_is_status_2_and_one_message() {
    let table = [
        ("[server]\nlisten = 5\n", "server.listen"),
        ("[serve]\n", "serve"),
        ("[redis]\nring_entrys = 5\n", "ring_entrys"),
        ("[log]\nlevel = \"relay=loud\"\n", "log.level"),
    ];
    for (broken, named) in table {
        let valid = CONFIG.replace("SECRET", SECRET);
        let valid = valid.replace("[server]\nadmin_listen = \"ADMIN\"\n", "");
        let valid = match broken.starts_with("[redis]") {
            true => valid.replace("[redis]\nurl = \"redis://:of-redis@127.0.0.1:1/0\"\n", ""),
            false => valid,
        };
        for command in ["run", "check"] {
            let output = Place::with(&format!("{broken}{valid}")).run(&[command]);
            let message = stderr(&output);
            assert_eq!(code(&output), 2, "{broken}: {message}");
            assert!(message.contains(named), "{broken}: {message}");
            assert!(message.contains("relay.toml"), "{broken}: {message}");
            assert_eq!(stdout(&output), "", "{broken}");
        }
    }
}

#[test]
fn a_valid_config_is_summed_up() {
    let output = Place::valid().run(&["check"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let said = "relay.toml is valid: 1 route (job), tokens are verified with 1 key\n";
    assert_eq!(stdout(&output), said);
}

#[test]
fn what_is_not_there_fails_the_live_check() {
    let output = Place::valid().run(&["check", "--live"]);
    assert_eq!(code(&output), 1);
    let said = stdout(&output);
    let failure = "FAIL  redis: no connection to 127.0.0.1:1: ";
    assert!(said.contains(failure), "{said}");
    assert!(!said.contains("of-redis"), "{said}");
}

#[test]
fn a_port_in_use_is_status_1_and_names_the_key() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = CONFIG.replace("SECRET", SECRET).replace("ADMIN", &address);
    let config = config.replace("[server]", "[server]\nlisten = \"127.0.0.1:0\"");
    let output = Place::with(&config).run(&[]);
    let message = stderr(&output);
    assert_eq!(code(&output), 1, "{message}");
    assert!(message.contains("server.admin_listen"), "{message}");
    assert!(message.contains(&address), "{message}");
}

#[test]
fn a_token_satisfies_the_config() {
    let claims = ["--claim", "role=admin", "--claim", r#"jobs=["1","2"]"#];
    let arguments = [&["token", "--sub", "bob", "--ttl", "10m"], &claims[..]].concat();
    let output = Place::valid().run(&arguments);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let token = stdout(&output);
    let key = DecodingKey::from_secret(SECRET.as_bytes());
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_issuer(&["the-api"]);
    let token = decode::<Value>(token.trim_end(), &key, &validation).unwrap();
    let claims = token.claims;
    assert_eq!(claims["sub"], "bob");
    assert_eq!(claims["type"], "access");
    assert_eq!(claims["role"], "admin");
    assert_eq!(claims["jobs"], json!(["1", "2"]));
    let lifetime = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
    assert_eq!(lifetime, 600);
}

#[test]
fn without_a_secret_there_is_no_token() {
    let config =
        "[auth]\nmode = \"none\"\n[[route]]\nname = \"a\"\npath = \"/a\"\nstreams = [\"a\"]\n";
    let output = Place::with(config).run(&["token", "--sub", "bob"]);
    assert_eq!(code(&output), 2);
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("auth.mode"), "{}", stderr(&output));
}

#[test]
fn nobody_to_ask_is_status_1() {
    for arguments in [&["health"][..], &["drain"], &["drain", "--wait"]] {
        let output = Place::valid().run(arguments);
        assert_eq!(code(&output), 1, "{arguments:?}");
        assert!(stderr(&output).contains("127.0.0.1:1"), "{arguments:?}");
    }
}

#[test]
fn health_is_what_the_admin_port_says() {
    let ready = ("200 OK", r#"{"ready":true}"#);
    let not_ready = ("503 Service Unavailable", r#"{"ready":false}"#);
    let table = [
        (ready, &["health"][..], 0),
        (not_ready, &["health"], 1),
        (ready, &["health", "--live"], 0),
        (ready, &["health", "--scope", "self"], 0),
    ];
    for ((status, body), arguments, expected) in table {
        let address = admin_port(vec![answer(status, body)]);
        let output = Place::asking(&address).run(arguments);
        assert_eq!(
            code(&output),
            expected,
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_relay_is_asked_by_name() {
    let address = admin_port(vec![answer("200 OK", r#"{"ready":true}"#)]);
    let (_, port) = address.split_once(':').expect("a port");
    // The config names another, and is not read.
    let place = Place::with("nonsense");
    let output = place.run(&["health", "--admin", &format!("localhost:{port}")]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));

    let name = "nobody.invalid:9091";
    let output = place.run(&["health", "--admin", name]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains(name), "{}", stderr(&output));
}

#[test]
fn a_relay_that_does_not_answer_is_given_up() {
    // The kernel accepts; nobody reads.
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = port.local_addr().expect("a bound port").to_string();
    let output = Place::valid().run(&["health", "--admin", &address]);
    assert_eq!(code(&output), 1);
    let said = stderr(&output);
    assert!(said.contains("no answer within 5s"), "{said}");
}

#[test]
fn a_relay_that_goes_while_it_drains_has_drained() {
    let accepted = answer("202 Accepted", r#"{"phase":"ending","longest_ms":1}"#);
    // The second connection is dropped without an answer.
    let address = admin_port(vec![accepted, String::new()]);
    let output = Place::valid().run(&["drain", "--wait", "--admin", &address]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stdout(&output), "drained\n");
}

#[test]
fn whoever_may_not_drain_is_told_why() {
    let address = admin_port(vec![answer("403 Forbidden", "")]);
    let output = Place::asking(&address).run(&["drain"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("loopback"), "{}", stderr(&output));
}
