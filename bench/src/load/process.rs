//! CPU time and memory of processes and of the machine, from /proc.

use std::fs;
use std::process;

/// utime, stime, and then those of children; see proc_pid_stat(5).
const UTIME_AFTER_NAME: usize = 11;

/// Of one process.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
    pub(crate) rss_bytes: u64,
}

impl Usage {
    /// Nothing if there is no such process.
    pub(crate) fn of(pid: u32) -> Self {
        Self {
            cpu_s: cpu_s(pid),
            rss_bytes: rss_bytes(pid).unwrap_or(0),
        }
    }

    pub(crate) fn of_us() -> Self {
        Self::of(process::id())
    }
}

/// Of the machine, in seconds of a CPU.
#[derive(Clone, Copy, Default)]
pub(crate) struct Machine {
    /// Of all processes, those that have ended too.
    pub(crate) busy_s: f64,
    /// Taken by the hypervisor.
    pub(crate) steal_s: f64,
    pub(crate) cpus: usize,
}

impl Machine {
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let mut lines = stat.lines().take_while(|line| line.starts_with("cpu"));
        let all = lines.next().unwrap_or_default();
        let steal = all.split_whitespace().nth(8);
        Self {
            // The machine's own count in /proc/stat is sampled at ticks, and wrong by up to a core
            // where processes wake and sleep between them.
            busy_s: processes().filter_map(|pid| with_children_s(&pid)).sum(),
            steal_s: steal
                .and_then(|ticks| ticks.parse().ok())
                .map_or(0.0, seconds),
            cpus: lines.count(),
        }
    }
}

fn processes() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(|first: char| first.is_ascii_digit()))
}

/// Of a process, and of those of its children that have ended.
fn with_children_s(pid: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have spaces and parentheses.
    let (_, rest) = text.rsplit_once(')')?;
    let fields = rest.split_whitespace().skip(UTIME_AFTER_NAME).take(4);
    let ticks: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
    Some(seconds(ticks))
}

fn seconds(ticks: f64) -> f64 {
    ticks / rustix::param::clock_ticks_per_second() as f64
}

/// By the scheduler's own count, which is in nanoseconds; stat counts in ticks of 10 ms.
fn cpu_s(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let files = tasks.flatten().map(|task| task.path().join("schedstat"));
    let texts = files.filter_map(|file| fs::read_to_string(file).ok());
    let ran_ns = texts.filter_map(|text| text.split(' ').next()?.parse::<f64>().ok());
    ran_ns.sum::<f64>() / 1e9
}

fn rss_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
