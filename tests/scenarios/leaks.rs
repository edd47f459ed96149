//! What is secret is in no log line, no metric, no status, no refusal and no output of a command,
//! at any level, on any path, in any notation.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::api::{FakeApi, Reply};
use crate::support::client::{Client, Received};
use crate::support::command::Running;
use crate::support::config::Config;
use crate::support::http::get;
use crate::support::jwks::{IssuerKey, key_of, set};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::tls::{Identity, Mount};
use crate::support::token::{claims_of, forged, now, signed};
use crate::support::upgrade::{Answer, Upgrade};
use crate::support::wait::{DEADLINE, eventually, within};
use crate::{JOB, KEY};

/// Secrets that a test has planted, and all that was said where they must not be.
#[derive(Default)]
struct Watch {
    canaries: Vec<String>,
    said: Vec<(String, String)>,
}

impl Watch {
    /// A new secret, to be told from all others.
    fn plant(&mut self, name: &str) -> String {
        let canary = format!("canary-{name}-{:016x}-of-48-bytes", rand::random::<u64>());
        self.canaries.push(canary.clone());
        canary
    }

    fn heard(&mut self, place: &str, text: impl Into<String>) {
        self.said.push((place.to_owned(), text.into()));
    }

    /// What the relay shows on its admin port.
    async fn hear_ports(&mut self, relay: &Relay) {
        for path in ["/metrics", "/statusz", "/readyz", "/livez"] {
            let shown = get(relay.admin_address(), path).await.text();
            self.heard(path, shown);
        }
    }

    /// The same, and all that it has logged to its end.
    async fn hear(&mut self, relay: &mut Relay) {
        self.hear_ports(relay).await;
        let log = relay.whole_log().await.join("\n");
        assert!(log.contains("\"DEBUG\""), "the log has only a part");
        self.heard("log", log);
    }

    /// What a refused client is told, apart from its own subprotocol, which is sent back to it.
    async fn refused(&mut self, upgrade: Upgrade) {
        match upgrade.send().await {
            Answer::Status(response) => self.heard("status", format!("{response:?}")),
            Answer::Dropped => {}
            Answer::Upgraded(client) => self.heard("close", format!("{:?}", client.drain().await)),
        }
    }

    fn nothing_has_leaked(&self) {
        assert!(!self.canaries.is_empty() && !self.said.is_empty());
        for canary in &self.canaries {
            for (place, text) in &self.said {
                for form in forms(canary) {
                    let line = text.lines().find(|line| line.contains(&form));
                    assert!(line.is_none(), "{canary} in {place}: {line:?}");
                }
            }
        }
    }
}

/// What a secret looks like in a log: as it is, or as this or that `Debug` shows bytes.
fn forms(canary: &str) -> Vec<String> {
    let bytes = canary.as_bytes();
    let each = |form: &dyn Fn(&u8) -> String, between: &str| {
        bytes.iter().map(form).collect::<Vec<_>>().join(between)
    };
    // A part of it does: it may begin within a group of three, and end before the text does.
    let in_base64 = |skip: usize| {
        let whole = &bytes[skip..];
        let whole = &whole[..whole.len() / 3 * 3];
        [STANDARD.encode(whole), URL_SAFE_NO_PAD.encode(whole)]
    };
    let mut forms = vec![
        canary.to_owned(),
        canary.replace('-', "%2D"),
        canary.replace('-', "%2d"),
        each(&|byte| format!("{byte:02x}"), ""),
        each(&|byte| format!("{byte:02X}"), ""),
        each(&|byte| format!("{byte:02x}"), " "),
        each(&|byte| format!("{byte:x}"), ", "),
        each(&|byte| byte.to_string(), ", "),
        each(&|byte| format!("%{byte:02X}"), ""),
    ];
    forms.extend((0..3).flat_map(in_base64));
    forms
}

#[test]
fn a_secret_is_seen_in_every_notation() {
    let mut watch = Watch::default();
    let canary = watch.plant("itself");
    let debug = format!("{:?}", canary.as_bytes());
    let token = URL_SAFE_NO_PAD.encode(json!({ "sub": canary, "exp": 1 }).to_string());
    let hex: String = canary.bytes().map(|byte| format!("{byte:02x}")).collect();
    for text in [&*canary, &debug, &token, &hex] {
        let shown = format!("a line\n{text} and more\n");
        assert!(
            forms(&canary).iter().any(|form| shown.contains(form)),
            "{text}"
        );
    }
}

/// What all relays of these tests say, and to what.
fn talkative(config: Config) -> Config {
    config.with("[log]\nlevel = \"trace\"")
}

/// Even when the environment wants to hear more.
const ENVIRONMENT: [(&str, &str); 2] = [("RUST_LOG", "trace"), ("RUST_BACKTRACE", "1")];

async fn start(config: Config) -> Relay {
    Relay::start_in(&talkative(config), &ENVIRONMENT).await
}

/// Where a token can be, and how a request brings it there.
const SOURCES: [fn(Upgrade, &str) -> Upgrade; 4] = [
    |upgrade, token| upgrade.token(token),
    |upgrade, token| upgrade.no_token().protocol(&format!("bearer.{token}")),
    |upgrade, token| {
        let cookie = format!("session={token}");
        upgrade.no_token().header("cookie", &cookie)
    },
    |upgrade, token| upgrade.no_token().query("token", token),
];

const FROM_EVERYWHERE: &str = r#"
[server]
allowed_origins = ["https://app.example"]
trusted_proxies = ["127.0.0.1"]
[auth]
token_from = ["header", "subprotocol:bearer.", "cookie:session", "query:token", "first_message"]
"#;

struct Secrets {
    hmac: String,
    claim: String,
    kid: String,
}

impl Secrets {
    fn plant(watch: &mut Watch) -> Self {
        Self {
            hmac: watch.plant("hmac"),
            claim: watch.plant("claim"),
            kid: watch.plant("kid"),
        }
    }

    fn claims(&self, changes: Value) -> Value {
        let mut claims = claims_of("alice", changes);
        claims["private"] = self.claim.clone().into();
        claims
    }

    fn good(&self) -> String {
        signed(self.hmac.as_bytes(), &self.claims(json!({})))
    }

    /// Refused for many reasons, some only after all of it was read.
    fn bad(&self, watch: &mut Watch) -> Vec<String> {
        let header = |alg: &str| json!({ "alg": alg, "kid": self.kid, "typ": self.claim });
        let claims = self.claims(json!({}));
        vec![
            watch.plant("garbage"),
            format!("{0}.{0}.{0}", watch.plant("parts")),
            forged(&header("HS256"), &claims, self.claim.as_bytes()),
            forged(&header("none"), &claims, b""),
            forged(&header(&self.claim), &claims, b"x"),
            forged(&header("ES256"), &claims, b"x"),
            signed(self.claim.as_bytes(), &claims),
            signed(self.hmac.as_bytes(), &self.claims(json!({ "exp": 1 }))),
            signed(
                self.hmac.as_bytes(),
                &self.claims(json!({ "iss": [self.claim] })),
            ),
            signed(
                self.hmac.as_bytes(),
                &self.claims(json!({ "sub": self.claim, "nbf": now() + 3600 })),
            ),
        ]
    }
}

/// A relay whose one key is this secret, with a Redis and an API.
fn config_of(secrets: &Secrets, redis: &Redis, api: &FakeApi, mode: &str) -> Config {
    let key = &secrets.hmac;
    Config::new(redis)
        .snapshot_from(api)
        .with(FROM_EVERYWHERE)
        .with(&format!(
            "[auth]\nreject = \"{mode}\"\n[[auth.key]]\nalgorithms = [\"HS256\"]\nsecret = \"{key}\""
        ))
}

/// What a request has beside its token.
fn dressed(upgrade: Upgrade, private: &str) -> Upgrade {
    upgrade
        .query("private", private)
        .cursor(private)
        .header("x-forwarded-for", &format!("{private}, {private}"))
        .header("x-private", private)
        .header("user-agent", private)
}

#[tokio::test]
async fn tokens_leave_no_trace_wherever_they_are() {
    for mode in ["close", "http", "abort"] {
        let (redis, api) = (Redis::start().await, FakeApi::start().await);
        let mut watch = Watch::default();
        let secrets = Secrets::plant(&mut watch);
        let bad = secrets.bad(&mut watch);
        let private = watch.plant("request");
        let mut relay = start(config_of(&secrets, &redis, &api, mode)).await;
        let request = || dressed(relay.upgrade(JOB), &private);
        for bring in SOURCES {
            let mut client = bring(request(), &secrets.good()).open().await;
            client.expect_snapshot("connect").await;
            for token in &bad {
                watch.refused(bring(request(), token)).await;
                watch
                    .refused(bring(request(), &secrets.good()).header("origin", token))
                    .await;
            }
        }
        for token in bad.iter().chain([&secrets.good(), &private]) {
            let mut client = request().no_token().open().await;
            client.send(auth(token)).await;
            let received = client.next().await;
            if *token != secrets.good() {
                watch.heard("first message", format!("{received:?}"));
            }
            let mut client = request().token(secrets.good()).open().await;
            client.expect_snapshot("connect").await;
            client.send(auth(token)).await;
            client.send("ping").await;
            watch.heard("renewal", format!("{:?}", client.next().await));
        }
        redis.run(&format!("DEL {KEY}")).await;
        watch.hear(&mut relay).await;
        watch.nothing_has_leaked();
    }
}

fn auth(token: &str) -> String {
    json!({ "type": "auth", "token": token }).to_string()
}

/// Says all that comes to the end of the connection, so that the relay has done its part.
async fn ended(client: Client) -> Received {
    client.drain().await.1
}

#[tokio::test]
async fn what_clients_and_publishers_say_leaves_no_trace() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let mut watch = Watch::default();
    let secrets = Secrets::plant(&mut watch);
    let (payload, message) = (watch.plant("payload"), watch.plant("message"));
    let config = config_of(&secrets, &redis, &api, "close")
        .route("[slow]\nmax_lag = 2\nthen = \"conflate\"\nconflate_by = \"/id\"");
    let mut relay = start(config).await;
    let mut client = relay.upgrade(JOB).token(secrets.good()).open().await;
    client.expect_snapshot("connect").await;
    client.expect_live().await;
    let payloads = [
        json!({ "id": payload, "x": payload }).to_string(),
        payload.clone(),
        format!("{{\"id\":{payload}"),
        "[".repeat(300) + &payload,
    ];
    for payload in &payloads {
        redis.xadd(KEY, "*", payload).await;
        client.expect("event").await;
    }
    let not_text = [payload.as_bytes(), b"\xff"].concat();
    redis.xadd_fields(KEY, "*", &[("data", &not_text)]).await;
    assert_eq!(client.expect("event").await["omitted"], "not_text");
    redis
        .xadd_fields(KEY, "*", &[("other", payload.as_bytes())])
        .await;
    assert_eq!(client.expect("event").await["omitted"], "no_field");
    client.send(message.clone()).await;
    client.send(json!({ "type": message }).to_string()).await;
    client.send("ping").await;
    client.expect("pong").await;
    redis.run(&format!("DEL {KEY}")).await;
    redis.xadd(KEY, "*", &payload).await;
    client.expect("resync").await;
    client.send(message.repeat(1000)).await;
    ended(client).await;
    watch.hear(&mut relay).await;
    watch.nothing_has_leaked();
}

#[tokio::test]
async fn the_api_s_secrets_leave_no_trace() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let mut watch = Watch::default();
    let secrets = Secrets::plant(&mut watch);
    let [url, header, body, cookie] =
        ["url", "header", "body", "cookie"].map(|name| watch.plant(name));
    let at = api.url(&format!("/{url}/jobs/{{job_id}}?key={url}"));
    let config = config_of(&secrets, &redis, &api, "close").route(&format!(
        "[snapshot]\nurl = \"{at}\"\ntimeout = \"300ms\"\nretries = 1\n\
         forward = [\"authorization\", \"cookie\", \"x-forwarded-for\"]\n\
         headers = {{ x-api-key = \"{header}\", x-claim = \"{{claims.private}}\" }}"
    ));
    let mut relay = start(config).await;
    let request = || {
        let upgrade = relay.upgrade(JOB).token(secrets.good());
        upgrade.header("cookie", &format!("theme={cookie}"))
    };
    let mut client = request().open().await;
    client.expect_snapshot("connect").await;
    assert!(api.calls()[0].path.contains(&url), "it was asked so");
    let of = |reply: Reply| {
        let reply = reply
            .header("set-cookie", &body)
            .header("relay-cursor", &body);
        reply
            .header("location", &format!("/{body}"))
            .header(&body, "x")
    };
    let failures = [
        Reply::text(401, body.clone()),
        Reply::text(403, body.clone()),
        Reply::text(404, body.clone()),
        Reply::text(500, body.clone()),
        Reply::text(503, body.clone()),
        Reply::text(302, body.clone()),
        Reply::text(200, format!("{{\"state\": {body}")),
        Reply::text(200, format!("\"{}\"", body.repeat(40_000))),
        Reply::text(200, body.clone()).delay(Duration::from_secs(1)),
    ];
    for reply in failures {
        api.answer(of(reply));
        watch.refused(request()).await;
    }
    // The cursor header is no id, and said to be ignored.
    api.answer(of(Reply::json(&json!({ "state": body }))));
    request().open().await.expect_snapshot("connect").await;
    // And once more, for a client that has lost its place.
    api.answer(of(Reply::text(500, body.clone())));
    client.ignore("live");
    redis.xadd(KEY, "1-0", "x").await;
    client.expect_event("1-0", "x").await;
    redis.run(&format!("DEL {KEY}")).await;
    redis.xadd(KEY, "2-0", "x").await;
    let calls = api.calls().len();
    client.expect("resync").await;
    api.called(calls + 2).await;
    client.vanish();
    drop(api);
    watch.refused(request()).await;
    watch.hear(&mut relay).await;
    commands(&relay, &mut watch, &secrets).await;
    watch.nothing_has_leaked();
}

/// What commands print that is not what they were asked for: `explain` shows claims and the
/// callback's address, on standard output.
async fn commands(relay: &Relay, watch: &mut Watch, secrets: &Secrets) {
    let file = relay.config_file();
    let token = forged(
        &json!({ "alg": "HS256" }),
        &secrets.claims(json!({})),
        b"wrong",
    );
    for arguments in [
        vec!["check"],
        vec!["check", "--live"],
        vec!["explain", JOB, "--token", &token],
        vec!["token", "--sub", "alice", "--claim", "broken"],
        vec!["health", "--live", "--admin", "127.0.0.1:1"],
    ] {
        let file = file.to_str().expect("a path of text");
        let running = Running::start(&[&arguments[..], &["--config", file]].concat());
        let output = running.finish(DEADLINE).await.output;
        watch.heard(arguments[0], output);
    }
}

#[tokio::test]
async fn the_password_of_redis_leaves_no_trace() {
    let redis = Redis::start().await;
    let mut watch = Watch::default();
    let secrets = Secrets::plant(&mut watch);
    let password = watch.plant("password");
    let wrong = watch.plant("wrong-password");
    redis
        .run(&format!("ACL SETUSER watched on >{password} ~* +@all"))
        .await;
    let api = FakeApi::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let at = proxy.address();
    let written = [
        format!("url = \"redis://watched:{password}@{at}/0\""),
        format!("url = \"redis://{at}/0\"\nusername = \"watched\"\npassword = \"{password}\""),
        format!("url = \"redis://watched:{wrong}@{at}/0\""),
        format!("url = \"redis://{at}/0\"\nusername = \"watched\"\npassword = \"{wrong}\""),
    ];
    for redis_section in written {
        let is_right = redis_section.contains(&password);
        let config = config_of(&secrets, &redis, &api, "close")
            .with(&format!("[redis]\n{redis_section}\ngrace = \"0ms\""));
        let mut relay = start(config).await;
        let request = || relay.upgrade(JOB).token(secrets.good());
        if is_right {
            let mut client = request().open().await;
            client.expect_snapshot("connect").await;
            client.expect_live().await;
            proxy.cut();
            client.expect_status("degraded").await;
            watch
                .refused(relay.upgrade("/ws/jobs/another").token(secrets.good()))
                .await;
            watch.hear_ports(&relay).await;
            proxy.restore();
            client.expect_status("ok").await;
        } else {
            watch.refused(request()).await;
            eventually("the log says that Redis refuses", async || {
                let lines = relay.log_lines().join("\n").to_lowercase();
                lines.contains("wrongpass").then_some(())
            })
            .await;
        }
        watch.hear(&mut relay).await;
        commands(&relay, &mut watch, &secrets).await;
    }
    watch.nothing_has_leaked();
}

#[tokio::test]
async fn what_an_issuer_answers_leaves_no_trace() {
    let (redis, issuer) = (Redis::start().await, FakeApi::start().await);
    let mut watch = Watch::default();
    let answer = watch.plant("jwks");
    let in_url = watch.plant("jwks-url");
    let key = IssuerKey::new(&watch.plant("kid"));
    issuer.answer(Reply::text(200, format!("{{\"keys\": {answer}")));
    let keys = key_of(&issuer, "refresh = \"1s\"\ncooldown = \"1s\"")
        .replace("/jwks.json", &format!("/jwks.json?key={in_url}"));
    let mut relay = start(Config::new(&redis).with(&keys)).await;
    for (number, reply) in [
        Reply::text(500, answer.clone()).header("location", &answer),
        Reply::text(302, answer.clone()).header("location", &format!("/{answer}")),
        Reply::text(200, format!("\"{}\"", answer.repeat(40_000))),
        Reply::json(&json!({ "keys": [{ "kty": answer, "kid": answer, "k": answer }] })),
        set(&[&key]),
    ]
    .into_iter()
    .enumerate()
    {
        issuer.answer(reply);
        issuer.called(number + 2).await;
        watch
            .refused(
                relay
                    .upgrade(JOB)
                    .token(key.sign_as(Some(&answer), &claims_of("alice", json!({})))),
            )
            .await;
    }
    relay.metric_reaches("relay_jwks_keys", &[], 1.0).await;
    let token = key.sign(&claims_of("alice", json!({})));
    relay
        .upgrade(JOB)
        .token(&*token)
        .open()
        .await
        .expect_live()
        .await;
    issuer.answer(Reply::text(200, answer.clone()));
    // When it is asked again, it has dealt with the answer before.
    issuer.called(issuer.calls().len() + 2).await;
    watch.hear(&mut relay).await;
    watch.nothing_has_leaked();
}

#[tokio::test]
async fn nothing_is_shown_of_what_goes_over_tls() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let mut watch = Watch::default();
    let secrets = Secrets::plant(&mut watch);
    let private = watch.plant("request");
    let identity = Identity::new();
    let mount = Mount::new(&identity);
    let key = identity.key_pem();
    let line = key.lines().nth(1).expect("PEM has lines").to_owned();
    watch.canaries.push(line);
    let mut relay = start(config_of(&secrets, &redis, &api, "close").with(&mount.config())).await;
    for token in [secrets.good(), private.clone()] {
        let upgrade = relay.upgrade(JOB).token(&*token).query("private", &private);
        let mut client = upgrade.open_tls(identity.trust()).await.expect("a client");
        if token == private {
            client.expect_close(4401).await;
        } else {
            client.expect_snapshot("connect").await;
            client.send(&*private).await;
            client.send("ping").await;
            client.expect_live().await;
            client.expect("pong").await;
        }
    }
    // Bytes that are no handshake, and a plain request.
    for bytes in [private.clone(), format!("GET /?{private} HTTP/1.1\r\n\r\n")] {
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        within(DEADLINE, "the end", stream.read_to_end(&mut answer))
            .await
            .ok();
    }
    watch.hear(&mut relay).await;
    watch.nothing_has_leaked();
}
