//! A redis-server of the test's own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, FromRedisValue, RedisResult, Value};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::process::Process;
use super::wait::{DEADLINE, eventually};

/// By this name the test's own connection is told from the relay's.
const OWN_NAME: &str = "scenario";
const LOG: &str = "redis.log";
const START_ATTEMPTS: usize = 5;
const PIPELINE: usize = 500;
/// Longer than a busy machine needs, so that only a dead server shows.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Redis {
    dir: TempDir,
    port: u16,
    arguments: Vec<String>,
    server: Process,
    connection: OnceCell<MultiplexedConnection>,
}

impl Redis {
    /// An empty server that keeps nothing on disk unless it is told to.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with further arguments, such as `["--tracking-table-max-keys", "10"]`.
    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        for _ in 0..START_ATTEMPTS {
            let dir = tempfile::tempdir().expect("a directory for redis-server");
            let port = free_port();
            let server = spawn(&dir, port, &arguments);
            let mut redis = Self {
                dir,
                port,
                arguments: arguments.clone(),
                server,
                connection: OnceCell::new(),
            };
            if redis.wait_ready().await {
                return redis;
            }
        }
        panic!("redis-server has not started in {START_ATTEMPTS} attempts");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}/0", self.address())
    }

    /// Ends the server at once. What `SAVE` has written is still there.
    pub(crate) fn kill(&mut self) {
        self.server.kill();
        self.connection = OnceCell::new();
    }

    /// Ends the server as an operator does: what it keeps on disk is written.
    pub(crate) async fn stop(&mut self) {
        self.server.signal(Signal::TERM);
        self.server.wait_exit(DEADLINE).await;
        self.connection = OnceCell::new();
    }

    /// Starts it again on the same port, with what was saved.
    pub(crate) async fn start_again(&mut self) {
        self.server.kill();
        self.connection = OnceCell::new();
        self.server = spawn(&self.dir, self.port, &self.arguments);
        assert!(self.wait_ready().await, "redis-server has not come back");
    }

    /// Forgets what was saved: the next start is an empty one.
    pub(crate) fn wipe(&self) {
        let dump = self.dir.path().join("dump.rdb");
        if dump.exists() {
            std::fs::remove_file(dump).expect("the dump can be removed");
        }
        let appended = self.dir.path().join("appendonlydir");
        if appended.exists() {
            std::fs::remove_dir_all(appended).expect("the append-only files can be removed");
        }
    }

    /// What the server has printed, over all its starts.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.dir.path().join(LOG)
    }

    /// Stops the whole process: connections stay open, nothing is answered.
    pub(crate) fn pause(&self) {
        self.server.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.server.signal(Signal::CONT);
    }

    /// A command, its arguments parted by spaces.
    pub(crate) async fn run(&self, line: &str) -> Value {
        self.query(line).await
    }

    /// A command, its arguments parted by spaces, and its answer.
    pub(crate) async fn query<T: FromRedisValue>(&self, line: &str) -> T {
        let parts: Vec<&str> = line.split_whitespace().collect();
        let answer: RedisResult<T> = command(&parts)
            .query_async(&mut self.connection().await)
            .await;
        answer.unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Several commands that nobody sees the middle of.
    pub(crate) async fn transaction(&self, lines: &[String]) {
        let mut pipeline = ::redis::pipe();
        pipeline.atomic();
        for line in lines {
            let parts: Vec<&str> = line.split_whitespace().collect();
            pipeline.add_command(command(&parts)).ignore();
        }
        let done: RedisResult<()> = pipeline.query_async(&mut self.connection().await).await;
        done.unwrap_or_else(|error| panic!("{lines:?}: {error}"));
    }

    /// Adds an entry whose field `data` has this value, and says its id.
    pub(crate) async fn xadd(&self, key: &str, id: &str, data: impl Display) -> String {
        self.xadd_fields(key, id, &[("data", data.to_string().as_bytes())])
            .await
    }

    /// Adds an entry with these fields, and says its id.
    pub(crate) async fn xadd_fields(
        &self,
        key: &str,
        id: &str,
        fields: &[(&str, &[u8])],
    ) -> String {
        let mut xadd = ::redis::cmd("XADD");
        xadd.arg(key).arg(id);
        for (name, value) in fields {
            xadd.arg(name).arg(value);
        }
        let id: RedisResult<String> = xadd.query_async(&mut self.connection().await).await;
        id.unwrap_or_else(|error| panic!("XADD {key}: {error}"))
    }

    /// Adds the entries `first-0` to `last-0`, the data of each being its number and a filling
    /// up to this size.
    pub(crate) async fn fill(&self, key: &str, first: u64, last: u64, size: usize) {
        self.fill_with(key, first, last, |number| filled(number, size))
            .await;
    }

    /// Adds the entries `first-0` to `last-0`, with this data.
    pub(crate) async fn fill_with(
        &self,
        key: &str,
        first: u64,
        last: u64,
        data: impl Fn(u64) -> String,
    ) {
        let numbers: Vec<u64> = (first..=last).collect();
        for chunk in numbers.chunks(PIPELINE) {
            let mut pipeline = ::redis::pipe();
            for number in chunk {
                let data = data(*number);
                pipeline
                    .cmd("XADD")
                    .arg(key)
                    .arg(format!("{number}-0"))
                    .arg("data")
                    .arg(data)
                    .ignore();
            }
            let done: RedisResult<()> = pipeline.query_async(&mut self.connection().await).await;
            done.unwrap_or_else(|error| panic!("XADD {key} {chunk:?}: {error}"));
        }
    }

    /// How often each command has been called, the test's own calls included.
    pub(crate) async fn commands(&self) -> BTreeMap<String, u64> {
        let info: String = self.query("INFO commandstats").await;
        info.lines()
            .filter_map(|line| {
                let (name, numbers) = line.strip_prefix("cmdstat_")?.split_once(':')?;
                let calls = numbers.strip_prefix("calls=")?.split(',').next()?;
                Some((name.to_owned(), calls.parse().ok()?))
            })
            .collect()
    }

    /// How many commands have read a stream or asked about one.
    pub(crate) async fn reads(&self) -> u64 {
        const READS: [&str; 5] = ["xread", "xrange", "xrevrange", "xinfo|stream", "xlen"];
        let commands = self.commands().await;
        READS.iter().filter_map(|name| commands.get(*name)).sum()
    }

    /// How many commands there have been, apart from such that ask for this number.
    pub(crate) async fn calls(&self) -> u64 {
        let commands = self.commands().await;
        let others = commands.iter().filter(|(name, _)| *name != "info");
        others.map(|(_, calls)| calls).sum()
    }

    /// One field of INFO.
    pub(crate) async fn info(&self, section: &str, field: &str) -> String {
        let info: String = self.query(&format!("INFO {section}")).await;
        let prefix = format!("{field}:");
        info.lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .unwrap_or_else(|| panic!("INFO {section} has no {field}"))
            .to_owned()
    }

    /// Connections that are not the test's own, as CLIENT LIST has them.
    pub(crate) async fn connections(&self) -> Vec<String> {
        let list: String = self.query("CLIENT LIST").await;
        let own = format!(" name={OWN_NAME} ");
        list.lines()
            .filter(|line| !line.contains(&own))
            .map(ToOwned::to_owned)
            .collect()
    }

    async fn connection(&self) -> MultiplexedConnection {
        let connect = async || {
            let client = ::redis::Client::open(self.url()).expect("the URL is well-formed");
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(ANSWER_TIMEOUT))
                .set_response_timeout(Some(ANSWER_TIMEOUT));
            let mut connection = client
                .get_multiplexed_async_connection_with_config(&config)
                .await
                .expect("redis-server accepts connections");
            command(&["CLIENT", "SETNAME", OWN_NAME])
                .exec_async(&mut connection)
                .await
                .expect("a connection can be named");
            connection
        };
        self.connection.get_or_init(connect).await.clone()
    }

    /// False if it has ended instead, the port being taken by somebody else.
    async fn wait_ready(&mut self) -> bool {
        let client = ::redis::Client::open(self.url()).expect("the URL is well-formed");
        eventually("redis-server answers", async || {
            if self.server.exited().is_some() {
                return Some(false);
            }
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            let info: String = command(&["INFO", "server"])
                .query_async(&mut connection)
                .await
                .ok()?;
            let own = format!("process_id:{}\r\n", self.server.id());
            // PING fails while a dump is being loaded, INFO does not.
            let answer: String = command(&["PING"]).query_async(&mut connection).await.ok()?;
            (info.contains(&own) && answer == "PONG").then_some(true)
        })
        .await
    }
}

/// What `fill` puts into the entry of this number.
pub(crate) fn filled(number: u64, size: usize) -> String {
    format!("{number:.<size$}")
}

fn command(parts: &[&str]) -> ::redis::Cmd {
    let mut command = ::redis::Cmd::new();
    command.arg(parts);
    command
}

fn spawn(dir: &TempDir, port: u16, arguments: &[String]) -> Process {
    let mut appending = std::fs::File::options();
    let log = appending.create(true).append(true);
    let log = log.open(dir.path().join(LOG));
    let log = log.expect("a log for redis-server");
    Process::spawn(
        Command::new(server_binary())
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log twice"))
            .stderr(log),
    )
}

pub(crate) fn server_binary() -> OsString {
    if let Some(binary) = std::env::var_os("REDIS_SERVER") {
        return binary;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    ["redis-server", "valkey-server"]
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |dir| dir.join(name)))
        .find(|binary| binary.is_file())
        .expect("redis-server or valkey-server on PATH, or REDIS_SERVER naming one")
        .into_os_string()
}

/// A port below those that the kernel gives to outgoing connections: a server that is
/// restarted finds it free again.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const PORTS: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let of_this_process = u16::try_from(std::process::id() % u32::from(PORTS)).unwrap_or(0);
    (0..PORTS)
        .map(|_| NEXT.fetch_add(1, Ordering::Relaxed))
        .map(|next| FIRST + (next.wrapping_mul(7).wrapping_add(of_this_process)) % PORTS)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("one of many ports is free")
}
