//! The real binary, with a config of the test's own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::client::Client;
use super::config::Config;
use super::http::get;
use super::process::{Process, cpu_time, rss_bytes};
use super::upgrade::Upgrade;
use super::wait::eventually;

pub(crate) struct Relay {
    dir: TempDir,
    process: Process,
    log: Log,
    listen: SocketAddr,
    admin: SocketAddr,
}

const BINARY: &str = env!("CARGO_BIN_EXE_relay");

/// In an environment that does not say what is logged.
fn program(binary: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(binary);
    command.env_remove("RUST_LOG");
    command
}

impl Relay {
    /// Started, and listening.
    pub(crate) async fn start(config: &Config) -> Self {
        Self::start_binary(BINARY.as_ref(), config).await
    }

    /// The same with these variables in its environment.
    pub(crate) async fn start_in(config: &Config, environment: &[(&str, &str)]) -> Self {
        let mut command = program(BINARY);
        command.envs(environment.iter().copied());
        Self::launch(command, config).await
    }

    /// The same with this hard limit of open files.
    pub(crate) async fn start_limited(config: &Config, open_files: u32) -> Self {
        let mut command = program("sh");
        command
            .args(["-c", r#"ulimit -n "$0" && exec "$@""#])
            .args([&open_files.to_string(), BINARY]);
        Self::launch(command, config).await
    }

    /// The same with a relay of another build.
    pub(crate) async fn start_binary(binary: &OsStr, config: &Config) -> Self {
        Self::launch(program(binary), config).await
    }

    async fn launch(mut command: Command, config: &Config) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the relay");
        let file = dir.path().join("relay.toml");
        std::fs::write(&file, config.text()).expect("a config file");
        let mut process = Process::spawn(
            command
                .args(["run", "--config"])
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        );
        let log = Log::default();
        let child = process.child();
        log.keep(child.stdout.take().expect("stdout is piped"));
        log.keep(child.stderr.take().expect("stderr is piped"));
        let (listen, admin) = listening(&mut process, &log).await;
        Self {
            dir,
            process,
            log,
            listen,
            admin,
        }
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listen
    }

    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.path().join("relay.toml")
    }

    /// So many clients of this path, who have caught up.
    pub(crate) async fn open_live(&self, path: &str, count: usize) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..count {
            let mut client = self.open(path).await;
            client.expect_live().await;
            clients.push(client);
        }
        clients
    }

    /// A request for this path, with a valid token in its header; nothing is sent yet.
    pub(crate) fn upgrade(&self, path: &str) -> Upgrade {
        Upgrade::new(self.listen, path)
    }

    /// A client of this path.
    pub(crate) async fn open(&self, path: &str) -> Client {
        self.upgrade(path).open().await
    }

    pub(crate) fn sigterm(&self) {
        self.process.signal(Signal::TERM);
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        self.process.wait_exit(limit).await
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        let response = get(self.admin, "/metrics").await;
        assert_eq!(response.status, 200, "{}", response.text());
        Metrics(response.text())
    }

    /// Waits until a metric, summed over all series with these labels, has this value.
    pub(crate) async fn metric_reaches(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let what = format!("{name}{labels:?} is {value}");
        eventually(&what, async || {
            let seen = self.metrics().await.value(name, labels);
            ((seen - value).abs() < f64::EPSILON).then_some(())
        })
        .await;
    }

    pub(crate) async fn readyz(&self) -> (u16, Value) {
        let response = get(self.admin, "/readyz").await;
        (response.status, response.json())
    }

    pub(crate) async fn livez(&self) -> u16 {
        get(self.admin, "/livez").await.status
    }

    pub(crate) async fn statusz(&self) -> Value {
        get(self.admin, "/statusz").await.json()
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Resident memory.
    pub(crate) fn rss_bytes(&self) -> u64 {
        rss_bytes(self.id())
    }

    /// Processor time used so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        cpu_time(self.id())
    }

    /// Every line that it has printed so far.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.log.lines().clone()
    }

    /// Ends it, and says every line that it has ever printed.
    pub(crate) async fn whole_log(&mut self) -> Vec<String> {
        self.kill();
        eventually("its pipes end", async || self.log.is_whole().then_some(())).await;
        self.log_lines()
    }

    pub(crate) fn log_contains(&self, text: &str) -> bool {
        self.log.lines().iter().any(|line| line.contains(text))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.process.kill();
        if std::thread::panicking() {
            eprintln!("--- the relay has said ---");
            for line in self.log.lines().iter() {
                eprintln!("{line}");
            }
        } else {
            assert!(!self.log_contains("panicked at"), "the relay has panicked");
        }
    }
}

/// What the relay prints; cloning shares it.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Log {
    /// Keeps every line until the pipe ends, which is when the process does.
    fn keep(&self, pipe: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                log.lines().push(line);
            }
        });
    }

    /// Nobody else keeps lines any more.
    fn is_whole(&self) -> bool {
        Arc::strong_count(&self.lines) == 1
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the line that says where it listens.
async fn listening(process: &mut Process, log: &Log) -> (SocketAddr, SocketAddr) {
    let said = eventually("the relay listens", async || {
        if let Some(status) = process.exited() {
            return Some(Err(status));
        }
        log.lines().iter().find_map(|line| addresses(line)).map(Ok)
    });
    match said.await {
        Ok(addresses) => addresses,
        Err(status) => panic!(
            "the relay has ended ({status}):\n{}",
            log.lines().join("\n")
        ),
    }
}

fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    if fields["message"] != "listening" {
        return None;
    }
    let address = |name: &str| fields[name].as_str()?.parse().ok();
    Some((address("listen")?, address("admin_listen")?))
}

/// One reading of /metrics.
pub(crate) struct Metrics(String);

impl Metrics {
    /// The sum of all series of this name that have these labels; 0 if there is none.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let series = self.series(name).into_iter();
        series
            .filter(|(known, _)| {
                labels
                    .iter()
                    .all(|(k, v)| known.get(*k).is_some_and(|known| known == v))
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// Every value of one label of this metric, where the series is not 0.
    pub(crate) fn label_values(&self, name: &str, label: &str) -> Vec<String> {
        let series = self.series(name).into_iter();
        series
            .filter(|(_, value)| *value > 0.0)
            .filter_map(|(mut labels, _)| labels.remove(label))
            .collect()
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    fn series(&self, name: &str) -> Vec<(BTreeMap<String, String>, f64)> {
        let lines = self.0.lines().filter_map(|line| line.strip_prefix(name));
        lines
            .filter_map(|rest| {
                let (labels, value) = rest.rsplit_once(' ')?;
                let labels = match labels.strip_prefix('{') {
                    Some(labels) => labels.strip_suffix('}')?,
                    None if labels.is_empty() => "",
                    None => return None,
                };
                Some((parse_labels(labels), value.parse().ok()?))
            })
            .collect()
    }
}

/// Labels of ours have values without commas and quotes.
fn parse_labels(text: &str) -> BTreeMap<String, String> {
    text.split(',')
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.trim_matches('"').to_owned()))
        })
        .collect()
}
