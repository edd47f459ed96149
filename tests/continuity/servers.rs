//! The redis-servers of a run, which all its cases share. Each case has a key of its own.

use std::cell::Cell;
use std::time::Duration;

use redis::{Client, Connection, cmd};

use crate::support::redis::Redis;

pub(crate) struct Servers {
    primary: Redis,
    replica: Option<Redis>,
    keys: Cell<u64>,
}

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const LOOKS: u32 = 4_000;
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

impl Servers {
    pub(crate) async fn one() -> Self {
        Self {
            primary: Redis::start().await,
            replica: None,
            keys: Cell::new(0),
        }
    }

    pub(crate) async fn pair() -> Self {
        // A replica is served as soon as it asks.
        let at_once = ["--repl-diskless-sync-delay", "0"];
        Self {
            primary: Redis::start_with(&at_once).await,
            replica: Some(Redis::start_with(&at_once).await),
            keys: Cell::new(0),
        }
    }

    pub(crate) fn primary(&self) -> &Redis {
        &self.primary
    }

    pub(crate) fn replica(&self) -> Option<&Redis> {
        self.replica.as_ref()
    }

    pub(crate) fn next_key(&self) -> String {
        self.keys.set(self.keys.get() + 1);
        format!("stream:{}", self.keys.get())
    }

    /// A connection that blocks: nothing else happens in this process until Redis has answered.
    pub(crate) fn connect(redis: &Redis) -> Connection {
        let client = Client::open(redis.url()).expect("the URL is well-formed");
        let connection = client
            .get_connection_with_timeout(ANSWER_TIMEOUT)
            .expect("redis-server accepts connections");
        for set in [Connection::set_read_timeout, Connection::set_write_timeout] {
            set(&connection, Some(ANSWER_TIMEOUT)).expect("a timeout can be set");
        }
        connection
    }

    /// Empties the servers, and lets the replica follow its primary again.
    pub(crate) fn pair_up(&self) {
        let Some(replica) = &self.replica else {
            return;
        };
        let (mut primary, mut follower) = (Self::connect(&self.primary), Self::connect(replica));
        cmd("FLUSHALL").exec(&mut primary).expect("FLUSHALL");
        cmd("REPLICAOF")
            .arg("127.0.0.1")
            .arg(self.primary.port())
            .exec(&mut follower)
            .expect("REPLICAOF");
        let is_up = (0..LOOKS).any(|_| {
            let info: String = cmd("INFO")
                .arg("replication")
                .query(&mut follower)
                .expect("INFO");
            let is_up = info.contains("master_link_status:up");
            if !is_up {
                std::thread::sleep(BETWEEN_LOOKS);
            }
            is_up
        });
        assert!(is_up, "the replica does not follow");
    }

    /// From now on the replica goes its own way, with all that the primary has so far.
    pub(crate) fn part(primary: &mut Connection, replica: &mut Connection) {
        let role: String = role(replica);
        if role == "master" {
            return;
        }
        let replicas: u64 = cmd("WAIT").arg(1).arg(20_000).query(primary).expect("WAIT");
        assert_eq!(replicas, 1, "the replica does not keep up");
        cmd("REPLICAOF")
            .arg("NO")
            .arg("ONE")
            .exec(replica)
            .expect("REPLICAOF NO ONE");
    }
}

fn role(connection: &mut Connection) -> String {
    let info: String = cmd("INFO")
        .arg("replication")
        .query(connection)
        .expect("INFO");
    let role = info.lines().find_map(|line| line.strip_prefix("role:"));
    role.expect("a server has a role").to_owned()
}
