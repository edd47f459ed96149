//! The highest memory of a process over some time.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::process::rss_bytes;

const EVERY: Duration = Duration::from_millis(10);

/// Looks every 10 ms, in a thread of its own, until it is asked for the peak.
pub(crate) struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<u64>,
}

impl Sampler {
    pub(crate) fn start(process: u32) -> Self {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let mut peak = rss_bytes(process);
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                peak = peak.max(rss_bytes(process));
            }
            peak.max(rss_bytes(process))
        });
        Self { stop, thread }
    }

    /// The highest resident memory since the start, in bytes.
    pub(crate) fn peak(self) -> u64 {
        drop(self.stop);
        self.thread.join().expect("the process runs meanwhile")
    }
}

/// How much more it is than before, in bytes; less than 0 if it has shrunk.
pub(crate) fn growth(before: u64, after: u64) -> i64 {
    let signed = |bytes: u64| i64::try_from(bytes).expect("memory is smaller than that");
    signed(after) - signed(before)
}
