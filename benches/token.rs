//! A request is admitted: its token found and verified, its streams resolved.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use criterion::Criterion;
use futures_util::FutureExt;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use relay::auth::{Authority, Request};
use relay::config::Config;
use relay::metrics::Metrics;
use serde_json::json;

const SECRET: &str = "a secret of the benchmark, 32 bytes or more";

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    admission(&mut criterion);
    criterion.final_summary();
}

fn admission(criterion: &mut Criterion) {
    let config = config();
    let route = &config.routes[0];
    let authority = Authority::new(&config, &Metrics::new());
    let params = BTreeMap::from([("job_id".to_owned(), "42".to_owned())]);
    let mut group = criterion.benchmark_group("admit");
    for (algorithm, key) in signing_keys() {
        let mut headers = HeaderMap::new();
        let token = format!("Bearer {}", token(algorithm, &key));
        headers.insert(AUTHORIZATION, token.parse().expect("tokens are ASCII"));
        let request = Request {
            headers: &headers,
            params: &params,
            query: &BTreeMap::new(),
            message: None,
        };
        group.bench_function(format!("{algorithm:?}"), |bencher| {
            bencher.iter(|| {
                // No key has to be fetched, so there is nothing to wait for.
                let admitted = authority.admit(route, &request).now_or_never();
                assert!(matches!(admitted, Some(Ok(_))), "the token is good");
            });
        });
    }
    group.finish();
}

fn config() -> Config {
    let (rsa, p256) = (
        include_str!("../tests/keys/rsa.pub.pem"),
        include_str!("../tests/keys/p256.pub.pem"),
    );
    let text = format!(
        r#"
        [[auth.key]]
        algorithms = ["HS256"]
        secret = "{SECRET}"
        [[auth.key]]
        algorithms = ["RS256"]
        public_key = """{rsa}"""
        [[auth.key]]
        algorithms = ["ES256"]
        public_key = """{p256}"""
        [[route]]
        name = "job"
        path = "/ws/jobs/{{job_id}}"
        streams = ["job:{{job_id}}:updates"]
        "#
    );
    Config::parse(&text, "relay.toml", &|_| None).expect("the config is valid")
}

fn signing_keys() -> [(Algorithm, EncodingKey); 3] {
    let rsa = EncodingKey::from_rsa_pem(include_bytes!("../tests/keys/rsa.pem"));
    let p256 = EncodingKey::from_ec_pem(include_bytes!("../tests/keys/p256.pem"));
    [
        (
            Algorithm::HS256,
            EncodingKey::from_secret(SECRET.as_bytes()),
        ),
        (Algorithm::RS256, rsa.expect("the key is valid")),
        (Algorithm::ES256, p256.expect("the key is valid")),
    ]
}

fn token(algorithm: Algorithm, key: &EncodingKey) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("the clock is past 1970").as_secs();
    let claims = json!({ "sub": "alice", "exp": now + 24 * 3600, "role": "viewer" });
    encode(&Header::new(algorithm), &claims, key).expect("claims can be signed")
}
