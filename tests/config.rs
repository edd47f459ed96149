//! The config as users write it: what is accepted, what is refused and in which words, and that
//! `relay.toml` tells the truth about defaults.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use proptest::prelude::*;
use relay::config::{
    Config, ConfigError, FixedKey, FormatKind, History, KeyOrigin, OriginPattern, Share,
    TokenSource, VerificationKey, WhenLagging,
};
use serde_json::json;

const REFERENCE: &str = include_str!("../relay.toml");

/// Keys of `relay.toml` that have no default, and hold examples.
const WITHOUT_DEFAULT: [&str; 8] = [
    "auth.key.algorithms",
    "auth.key.secret",
    "route.name",
    "route.path",
    "route.streams",
    "route.authorize",
    "route.snapshot.url",
    "route.message.field",
];

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "JWT_SECRET" => "0123456789abcdef0123456789abcdef",
        "SHORT" => "hunter2",
        "EMPTY" => "",
        "NUMBER" => "1_000",
        "FLAG" => "false",
        "QUOTES" => "a\"b\nc = ${JWT_SECRET}",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "relay.toml", &environment)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn fixtures(kind: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/config")
        .join(kind);
    let mut files = fs::read_dir(folder)
        .expect("the folder of fixtures is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .map(|path| (path.clone(), read(&path)))
        .collect::<Vec<_>>();
    files.sort();
    files
}

/// `section.key` of a line, if it has a key.
fn key_of(line: &str, section: &str) -> Option<String> {
    let (key, _) = line.split_once(" = ")?;
    let is_key = !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_key.then(|| format!("{section}.{key}"))
}

fn section_of(line: &str) -> Option<&str> {
    let name = line.strip_prefix('[')?.split(']').next()?;
    Some(name.trim_start_matches('['))
}

#[test]
fn the_reference_holds_the_defaults() {
    let mut section = "";
    let mut kept = BTreeSet::new();
    let minimal = REFERENCE
        .lines()
        .filter(|line| {
            section = section_of(line).unwrap_or(section);
            let Some(key) = key_of(line, section) else {
                return true;
            };
            let keep = WITHOUT_DEFAULT.contains(&key.as_str());
            if keep {
                kept.insert(key);
            }
            keep
        })
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(kept, WITHOUT_DEFAULT.map(str::to_owned).into());
    let reference = format!("{:#?}", parse(REFERENCE).unwrap());
    let minimal = format!("{:#?}", parse(&minimal).unwrap());
    assert_eq!(reference, minimal);
}

#[test]
fn valid_configs_are_accepted() {
    let files = fixtures("valid");
    assert!(files.len() >= 8, "only {} files", files.len());
    for (path, text) in files {
        if let Err(error) = parse(&text) {
            panic!("{}: {error}", path.display());
        }
    }
}

#[test]
fn invalid_configs_are_refused_in_one_clear_message() {
    let files = fixtures("invalid");
    assert!(files.len() >= 60, "only {} files", files.len());
    let mut wrong = Vec::new();
    for (path, text) in files {
        let expected = text.lines().next().unwrap_or_default();
        let expected = expected.strip_prefix("# error: ").unwrap_or_default();
        let found = match parse(&text) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        for secret in ["hunter2", "0123456789abcdef"] {
            assert!(!found.contains(secret), "{}: {found}", path.display());
        }
        if found != expected {
            wrong.push(format!(
                "{}\n  expected {expected}\n  found    {found}",
                path.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("no/such/relay.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no/such/relay.toml: can't be read: No such file or directory (os error 2)"
    );
}

fn valid(name: &str) -> Config {
    let path = format!("tests/config/valid/{name}.toml");
    parse(&read(Path::new(&path))).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_environment_brings_numbers_flags_and_any_text() {
    let config = valid("environment");
    assert_eq!(config.server.max_connections, 1000);
    assert_eq!(config.redis.pool_size, 16);
    assert!(!config.routes[0].message.control);
    assert_eq!(config.routes[0].slow.max_lag, None);
    assert_eq!(config.redis.username, "a ${b} $c ");
    assert_eq!(
        config.redis.url.expose(),
        "valkey://:p%40ss@10.0.0.1:6380/3"
    );
    assert_eq!(config.redis.password.expose(), "a\"b\nc = ${JWT_SECRET}");
}

#[test]
fn patterns_hold_for_the_whole_value_and_have_a_default() {
    let config = valid("public");
    let lang = &config.routes[0].params["query.lang"];
    assert!(lang.is_match("en"));
    for value in ["eng", "e", "", "en\n", "\nen", "EN"] {
        assert!(!lang.is_match(value), "{value:?}");
    }
    let config = valid("minimal");
    let job_id = &config.routes[0].params["job_id"];
    assert!(job_id.is_match("a.b-c_d~e@F9"));
    assert!(job_id.is_match(&"x".repeat(128)));
    for value in ["", "a b", "a/b", "a:b", "é", "a\n", "*", &"x".repeat(129)] {
        assert!(!job_id.is_match(value), "{value:?}");
    }
}

#[test]
fn a_pattern_with_alternatives_holds_for_each_as_a_whole() {
    let text = include_str!("config/valid/minimal.toml").to_owned();
    let config = parse(&(text + "params = { job_id = \"a|b\" }")).unwrap();
    let pattern = &config.routes[0].params["job_id"];
    assert!(pattern.is_match("a") && pattern.is_match("b"));
    assert!(!pattern.is_match("ac") && !pattern.is_match("cb"));
}

#[test]
fn every_variable_in_use_has_a_pattern() {
    let config = valid("snapshots");
    let names = config.routes[0].params.keys().collect::<Vec<_>>();
    assert_eq!(names, ["job_id", "query.lang"]);
}

#[test]
fn without_tokens_every_route_is_public() {
    let config = valid("public");
    assert!(config.auth.jwt.is_none());
    assert!(config.routes[0].public);
    assert_eq!(config.routes[0].history, History::All);
    let config = valid("cookies");
    assert!(config.auth.jwt.is_some());
    let public = config.routes.iter().map(|route| route.public);
    assert_eq!(public.collect::<Vec<_>>(), [true, false]);
}

#[test]
fn tokens_and_origins_are_understood() {
    let config = valid("cookies");
    let below = OriginPattern::Below {
        scheme: "https".to_owned(),
        suffix: ".example.com:8443".to_owned(),
    };
    assert_eq!(config.server.allowed_origins[1], below);
    let sources = config.auth.jwt.unwrap().token_from;
    let name = |name: &str| name.to_owned();
    let expected = [
        TokenSource::Cookie {
            name: name("__Host-session"),
        },
        TokenSource::Query {
            name: name("token"),
        },
        TokenSource::Subprotocol {
            prefix: name("Bearer-"),
        },
        TokenSource::Header,
    ];
    assert_eq!(sources, expected);
}

#[test]
fn required_claims_are_json() {
    let jwt = valid("keys").auth.jwt.unwrap();
    let expected = json!({
        "type": "access",
        "level": 2,
        "admin": false,
        "org": { "plan": ["a", 1.5] },
    });
    assert_eq!(json!(jwt.require), expected);
    assert_eq!(
        jwt.keys[0].issuer,
        ["https://id.example.com", "https://other.example.com"]
    );
    assert_eq!(jwt.keys[1].issuer, ["https://before.example.com"]);
    assert_eq!(jwt.leeway, Duration::from_secs(3600));
}

#[test]
fn keys_keep_to_their_algorithms_and_are_not_shown() {
    let jwt = valid("keys").auth.jwt.unwrap();
    let algorithms = jwt.keys.iter().map(|key| key.algorithms.len());
    assert_eq!(algorithms.collect::<Vec<_>>(), [3, 1, 6, 1, 1, 1, 1]);
    assert_eq!(jwt.keys[6].algorithms, [Algorithm::EdDSA]);
    let with_secret = jwt.keys.iter().filter(|key| key.secret().is_some()).count();
    assert_eq!(with_secret, 2);
    let shown = format!("{:?}", valid("keys"));
    assert!(!shown.contains("0123456789abcdef"), "{shown}");
    assert!(!shown.contains("the one before"), "{shown}");
}

fn fixed(key: &VerificationKey) -> &FixedKey {
    match &key.origin {
        KeyOrigin::Fixed(fixed) => fixed,
        KeyOrigin::Jwks(jwks) => panic!("{jwks:?}"),
    }
}

#[tokio::test]
async fn a_key_from_a_file_is_read_again() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "the first secret, which is long enough\n").unwrap();
    let text = include_str!("config/valid/minimal.toml");
    let text = text.replace("JWT_SECRET", &format!("file:{}", file.path().display()));
    let jwt = parse(&text).unwrap().auth.jwt.unwrap();
    let (key, algorithms) = (fixed(&jwt.keys[0]), &jwt.keys[0].algorithms);
    assert_eq!(&key.read_again(algorithms).await.unwrap(), key);
    fs::write(file.path(), "the second secret, which is long enough\n").unwrap();
    let again = key.read_again(algorithms).await.unwrap();
    let secret = again.secret.unwrap();
    assert_eq!(secret.expose(), "the second secret, which is long enough");
    fs::write(file.path(), "short").unwrap();
    let error = key.read_again(algorithms).await.unwrap_err().to_string();
    assert!(error.contains("is too short"), "{error}");
    let jwt = valid("minimal").auth.jwt.unwrap();
    let key = fixed(&jwt.keys[0]);
    assert!(key.file.is_none());
    assert_eq!(&key.read_again(algorithms).await.unwrap(), key);
}

#[test]
fn a_jwks_has_its_url_and_its_times() {
    let jwt = valid("jwks").auth.jwt.unwrap();
    let jwks = jwt.keys.iter().filter_map(|key| match &key.origin {
        KeyOrigin::Jwks(jwks) => Some((
            jwks.authority(),
            jwks.refresh.as_secs(),
            jwks.cooldown.as_secs(),
            jwks.ca_file.is_some(),
        )),
        KeyOrigin::Fixed(_) => None,
    });
    let expected = [
        ("id.example.com", 600, 30, false),
        ("127.0.0.1:8000", 60, 5, false),
        ("keycloak.example.com:8443", 600, 30, true),
    ];
    assert_eq!(jwks.collect::<Vec<_>>(), expected);
    assert_eq!(jwt.typ, ["application/at+jwt", "application/jwt"]);
    let shown = format!("{jwt:?}");
    assert!(!shown.contains("of-the-query"), "{shown}");
}

#[test]
fn snapshots_messages_and_lag_are_understood() {
    let config = valid("snapshots");
    let job = &config.routes[0];
    let snapshot = job.snapshot.as_ref().unwrap();
    let ttl = Duration::from_millis(250);
    assert_eq!(snapshot.share, Share::Url { ttl });
    assert_eq!(snapshot.method, "POST");
    assert_eq!(snapshot.headers.len(), 2);
    assert_eq!(job.history, History::Since(Duration::from_secs(10)));
    assert_eq!(job.slow.max_lag, Some(1000));
    assert_eq!(job.slow.then, WhenLagging::Resync);
    let merge = FormatKind::Merge {
        field: "data".to_owned(),
        id_key: "cursor".to_owned(),
    };
    assert_eq!(job.message.format.kind, merge);
    let log = &config.routes[1];
    assert_eq!(log.history, History::Last(NonZeroU64::new(100).unwrap()));
    // The header that is set stands in for the one that is forwarded by default.
    let forward = &log.snapshot.as_ref().unwrap().forward;
    assert_eq!(forward, &["authorization", "traceparent", "x-request-id"]);
    let envelope = FormatKind::Envelope { field: None };
    assert_eq!(valid("minimal").routes[0].message.format.kind, envelope);
}

#[test]
fn zero_max_age_is_never() {
    assert_eq!(valid("minimal").keepalive.max_age, None);
    let hour = Duration::from_secs(3600);
    assert_eq!(valid("inline").keepalive.max_age, Some(hour));
}

proptest! {
    #[test]
    fn no_value_breaks_the_config(
        at in 0..REFERENCE.lines().count(),
        value in "\"[a-z0-9{}$.:/*-]{0,12}\"|[0-9]{1,30}|-1|true|\\[\"?[a-z]{0,3}\"?\\]|\\{\\}|.{0,12}",
    ) {
        let lines = REFERENCE.lines().enumerate().map(|(line, text)| {
            match text.split_once(" = ") {
                Some((key, _)) if line == at => format!("{key} = {value}"),
                _ => text.to_owned(),
            }
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        if let Err(error) = parse(&text) {
            let error = error.to_string();
            prop_assert!(error.starts_with("relay.toml:"), "{}", error);
            prop_assert!(!error.contains('\n'), "{}", error);
        }
    }
}
