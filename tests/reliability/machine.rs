//! What it is measured on, and which processor has which work.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::config::Config;
use crate::support::relay::Relay;

pub(crate) struct Machine {
    processors: Processors,
    cores: usize,
    /// The load of the minute before, to tell a busy machine.
    load: String,
    relay: OsString,
    redis: String,
}

/// Who runs where.
enum Processors {
    /// The relay has one of its own, Redis and the clients share the other.
    Apart { relay: usize, others: usize },
    /// The system decides.
    Shared,
}

impl Machine {
    /// Looks at the machine, and puts this thread and whatever it starts on the others'
    /// processor.
    pub(crate) fn inspect() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let processors = match pinning::allowed().as_slice() {
            [relay, others, ..] => Processors::Apart {
                relay: *relay,
                others: *others,
            },
            _ => Processors::Shared,
        };
        let machine = Self {
            processors,
            cores,
            load: first_words("/proc/loadavg", 1),
            relay: std::env::var_os("RELAY_BIN")
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| env!("CARGO_BIN_EXE_relay").into()),
            redis: redis_version(),
        };
        machine.run_here_as_others();
        machine
    }

    /// A relay on its processor. Nothing else is started meanwhile.
    pub(crate) async fn start_relay(&self, config: &Config) -> Relay {
        if let Processors::Apart { relay, .. } = self.processors {
            pinning::pin(relay);
        }
        let relay = Relay::start_binary(&self.relay, config).await;
        self.run_here_as_others();
        relay
    }

    fn run_here_as_others(&self) {
        if let Processors::Apart { others, .. } = self.processors {
            pinning::pin(others);
        }
    }

    /// Everything that the figures depend on, as lines.
    pub(crate) fn describe(&self) -> String {
        let processors = match self.processors {
            Processors::Apart { relay, others } => {
                format!("relay on CPU {relay}, Redis and the clients on CPU {others}")
            }
            Processors::Shared => "nothing is pinned".to_owned(),
        };
        let cores = self.cores;
        let (cpu, kernel, date) = (cpu_name(), said_by("uname", &["-srm"]), today());
        format!(
            "{date}; {cores} cores of {cpu}; {kernel}; {}\n{processors}; load average before it: \
             {}; relay: {}",
            self.redis,
            self.load,
            Path::new(&self.relay).display()
        )
    }
}

fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = name.and_then(|rest| rest.split_once(": "));
    name.map_or("an unknown kind", |(_, name)| name).to_owned()
}

fn first_words(file: &str, count: usize) -> String {
    let text = fs::read_to_string(file).unwrap_or_else(|_| "unknown".to_owned());
    let words: Vec<_> = text.split_whitespace().take(count).collect();
    words.join(" ")
}

fn today() -> String {
    said_by("date", &["-u", "+%Y-%m-%d"])
}

fn redis_version() -> String {
    let server = crate::support::redis::server_binary();
    let version = said_by(&server, &["--version"]);
    let words = version.split_whitespace().take(3);
    words.collect::<Vec<_>>().join(" ")
}

fn said_by(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[cfg(target_os = "linux")]
mod pinning {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// The processors that this thread may run on.
    pub(super) fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).expect("a thread may ask where it runs");
        (0..CpuSet::MAX_CPU)
            .filter(|cpu| set.is_set(*cpu))
            .collect()
    }

    /// This thread, and those and the processes that it starts from now on.
    pub(super) fn pin(cpu: usize) {
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set).expect("a thread may be put on one of its processors");
    }
}

#[cfg(not(target_os = "linux"))]
mod pinning {
    pub(super) fn allowed() -> Vec<usize> {
        Vec::new()
    }

    pub(super) fn pin(_cpu: usize) {}
}
