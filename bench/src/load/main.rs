//! The load: adds entries to Redis Streams as a publisher, receives them as many clients, and
//! measures what that costs the server between the two.
//!
//! The payload of each entry has a marker with its stream, its number and its time. Clients look
//! for it in whatever the server sends, so any server can be measured that passes payloads on.
//! Every client checks that it gets each entry of its streams, once and in order.

mod client;
mod clients;
mod marker;
mod options;
mod process;
mod publisher;
mod report;
mod sequence;
mod tally;
mod transport;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Parser;

use clients::Clients;
use marker::now_ns;
use options::{Mode, Options};
use publisher::Publisher;
use report::{Moment, Report};
use tally::Tally;

/// Between two looks at the tally.
const LOOK: Duration = Duration::from_millis(5);
/// Beside the waits that the options bound.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> anyhow::Result<()> {
    let options = Arc::new(Options::parse());
    let mode = options.mode()?;
    let tally = Arc::new(Tally::new(options.streams()));
    let publisher = Publisher::connect(options.clone(), tally.clone())?;
    let clients = Clients::new(options.clone(), tally.clone())?;
    let load = Load {
        options,
        mode,
        tally,
    };
    let report = match mode {
        Mode::History(_) => load.history(publisher, clients)?,
        Mode::Rate(_) | Mode::Window(_) | Mode::Idle => load.live(publisher, clients)?,
    };
    println!("{}", report.json());
    Ok(())
}

struct Load {
    options: Arc<Options>,
    mode: Mode,
    tally: Arc<Tally>,
}

impl Load {
    /// Connects all clients, then publishes; a steady part in between is measured.
    fn live(self, publisher: Publisher, clients: Clients) -> anyhow::Result<Report> {
        let before = self.moment();
        let clients = thread::spawn(|| clients.run());
        self.wait(PATIENCE, || self.are_settled());
        thread::sleep(self.options.settle);
        let connected = self.moment();

        let mode = self.mode;
        let stop = Arc::new(AtomicBool::new(false));
        let publisher = thread::spawn({
            let stop = stop.clone();
            move || publisher.run(mode, &stop)
        });
        thread::sleep(self.options.warmup);
        self.tally
            .measured_from_ns
            .store(now_ns(), Ordering::Relaxed);
        let from = self.moment();
        thread::sleep(self.options.duration);
        let to = self.moment();
        stop.store(true, Ordering::Relaxed);
        let publisher = publisher.join();
        let late_s = publisher.map_err(|_| anyhow!("the publisher has panicked"))??;

        self.wait(self.options.drain, || self.is_all_delivered());
        let after = self.moment();
        let found = self.stop(clients)?;
        Ok(Report {
            options: self.options,
            before,
            connected,
            span: (from, to),
            after,
            late_s,
            found,
        })
    }

    /// Publishes first; then all clients connect and catch up, which is measured.
    fn history(self, publisher: Publisher, clients: Clients) -> anyhow::Result<Report> {
        publisher.run(self.mode, &AtomicBool::new(false))?;
        thread::sleep(self.options.settle);
        let before = self.moment();
        let clients = thread::spawn(|| clients.run());
        self.wait(self.options.drain, || {
            self.are_settled() && self.is_all_delivered()
        });
        let mut whole = self.moment();
        match self.tally.last_whole_ns.load(Ordering::Relaxed) {
            0 => {} // nobody has it all
            last => whole.at_ns = last,
        }
        // What comes after the last entry is a repeated one.
        thread::sleep(self.options.settle);
        let after = self.moment();
        let found = self.stop(clients)?;
        Ok(Report {
            options: self.options,
            before,
            connected: whole,
            span: (before, whole),
            after,
            late_s: 0.0,
            found,
        })
    }

    fn stop(
        &self,
        clients: thread::JoinHandle<anyhow::Result<clients::Found>>,
    ) -> anyhow::Result<clients::Found> {
        self.tally.stop.store(true, Ordering::Relaxed);
        let found = clients.join();
        found.map_err(|_| anyhow!("the clients have panicked"))?
    }

    fn moment(&self) -> Moment {
        Moment::now(&self.options, &self.tally)
    }

    /// Every handshake has ended, this way or that.
    fn are_settled(&self) -> bool {
        let ready = self.tally.ready.load(Ordering::Relaxed);
        let failed = self.tally.failed.load(Ordering::Relaxed);
        ready + failed >= self.options.clients as u64
    }

    fn is_all_delivered(&self) -> bool {
        let published = self.tally.published.iter();
        let per_group = self.options.streams_per_group;
        let expected: u64 = published
            .enumerate()
            .map(|(stream, entries)| {
                let group = stream / per_group;
                let clients =
                    (self.options.clients + self.options.groups - 1 - group) / self.options.groups;
                entries.load(Ordering::Relaxed) * clients as u64
            })
            .sum();
        self.tally.delivered.load(Ordering::Relaxed) >= expected
    }

    /// Until it is so, or too late: the report tells.
    fn wait(&self, at_most: Duration, is_so: impl Fn() -> bool) {
        let started = Instant::now();
        while !is_so() && started.elapsed() < at_most {
            thread::sleep(LOOK);
        }
    }
}
