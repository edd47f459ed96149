//! The least that Redis has to allow: the line that `relay check --live` prints.

use crate::support::api::FakeApi;
use crate::support::command::{Finished, Running};
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::wait::{DEADLINE, eventually};
use crate::{JOB, KEY};

const PASSWORD: &str = "a-password-of-redis";

/// `relay check --live` of a config.
async fn check(config: &Config) -> Finished {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    std::fs::write(&file, config.text()).unwrap();
    let file = file.to_str().unwrap();
    Running::start(&["check", "--live", "--config", file])
        .finish(DEADLINE)
        .await
}

/// The ACL line in what it says, with a password.
fn line(said: &Finished) -> String {
    let line = said
        .output
        .lines()
        .find_map(|line| line.split_once("ACL SETUSER "));
    let (_, rest) = line.unwrap_or_else(|| panic!("no line in {}", said.output));
    format!("ACL SETUSER {}", rest.replace("PASSWORD", PASSWORD))
}

fn as_user(config: Config, user: &str) -> Config {
    config.with(&format!(
        "[redis]\nusername = \"{user}\"\npassword = \"{PASSWORD}\""
    ))
}

#[tokio::test]
async fn a_user_with_no_more_than_the_line_is_enough() {
    let (redis, api) = (Redis::start().await, FakeApi::start().await);
    let config = || {
        Config::new(&redis)
            .snapshot_from(&api)
            .route("history = \"all\"")
    };
    let said = check(&config()).await;
    assert_eq!(said.code, Some(0), "{}", said.output);
    redis.run(&line(&said)).await;
    let said = check(&as_user(config(), "relay")).await;
    assert_eq!(said.code, Some(0), "{}", said.output);
    assert!(said.output.contains("OK    acl: "), "{}", said.output);

    // Everything that reads: a history, a snapshot, live entries, a cursor, a gap, a reconnect.
    redis.run("ACL LOG RESET").await;
    redis.fill(KEY, 1, 3, 10).await;
    let relay = Relay::start(&as_user(config(), "relay")).await;
    relay.metric_reaches("relay_redis_tracking", &[], 1.0).await;
    let mut client = relay.open(JOB).await;
    client.expect_snapshot("connect").await;
    client.expect_events_around_live(1, 3).await;
    client.ignore("live");
    redis.fill(KEY, 4, 4, 10).await;
    client.expect_events(4, 4).await;
    let cursor = client.cursor();
    client.vanish();
    // More than the ring has, so that pages are read.
    redis.fill(KEY, 5, 1_000, 10).await;
    let mut client = relay.upgrade(JOB).cursor(&cursor).open().await;
    client.expect_events_around_live(5, 1_000).await;
    client.ignore("live");
    redis.run(&format!("DEL {KEY}")).await;
    redis.fill(KEY, 2_000, 2_000, 10).await;
    client.expect("resync").await;
    client.expect("snapshot").await;
    redis.run("CLIENT KILL TYPE normal SKIPME yes").await;
    eventually("the reader is back", async || {
        let reconnects = relay
            .metrics()
            .await
            .value("relay_redis_reconnects_total", &[]);
        (reconnects > 0.0 && relay.readyz().await.0 == 200).then_some(())
    })
    .await;
    redis.run(&format!("XADD {KEY} 3000-0 data last")).await;
    client.ignore("status");
    while client.expect("event").await["id"] != "3000-0" {}
    let log: Vec<Vec<String>> = redis.query("ACL LOG").await;
    assert!(log.is_empty(), "Redis has refused {log:?}");
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let redis = Redis::start().await;
    let said = check(&Config::new(&redis)).await;
    redis.run(&line(&said)).await;
    for command in ["xrange", "xrevrange", "xread", "xinfo|stream"] {
        redis.run(&format!("ACL SETUSER relay -{command}")).await;
        let said = check(&as_user(Config::new(&redis), "relay")).await;
        assert_eq!(said.code, Some(1), "{}", said.output);
        let finding = format!("FAIL  acl: may not send {command} for job:*:updates");
        assert!(said.output.contains(&finding), "{}", said.output);
        redis.run(&format!("ACL SETUSER relay +{command}")).await;
    }
    redis.run("ACL SETUSER relay resetkeys ~other:*").await;
    let said = check(&as_user(Config::new(&redis), "relay")).await;
    assert_eq!(said.code, Some(1), "{}", said.output);
    redis
        .run("ACL SETUSER relay resetkeys ~* -client|tracking")
        .await;
    let said = check(&as_user(Config::new(&redis), "relay")).await;
    assert!(
        said.output
            .contains("WARN  wake: CLIENT TRACKING is refused"),
        "{}",
        said.output
    );
}

#[tokio::test]
async fn the_line_lets_nobody_write_or_read_elsewhere() {
    let redis = Redis::start().await;
    let said = check(&Config::new(&redis)).await;
    redis.run(&line(&said)).await;
    redis.xadd("secret", "1-0", "x").await;
    let url = redis
        .url()
        .replace("redis://", &format!("redis://relay:{PASSWORD}@"));
    let client = ::redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    for line in [
        "XADD job:1:updates * data x",
        "DEL job:1:updates",
        "XTRIM job:1:updates MAXLEN 0",
        "EXPIRE job:1:updates 1",
        "XGROUP CREATE job:1:updates g 0 MKSTREAM",
        "XRANGE secret - +",
        "XREAD STREAMS secret 0",
        "XINFO STREAM secret",
        "KEYS *",
        "SCAN 0",
        "CONFIG GET requirepass",
        "ACL LIST",
        "EVAL return 0",
        "FLUSHALL",
        "MONITOR",
        "SUBSCRIBE x",
        "CLIENT KILL TYPE normal",
        "SHUTDOWN NOSAVE",
    ] {
        let mut command = ::redis::Cmd::new();
        command.arg(line.split(' ').collect::<Vec<_>>());
        let refused = command.exec_async(&mut connection).await.unwrap_err();
        assert_eq!(refused.code(), Some("NOPERM"), "{line}: {refused}");
    }
}
