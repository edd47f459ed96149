//! Adds entries: one pipelined connection, whose replies a second thread counts.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use memchr::{memchr_iter, memmem};

use super::marker::{Marker, now_ns};
use super::options::{Mode, Options};
use super::tally::Tally;

/// Entries of one write.
const BURST: u64 = 256;
/// Commands without a reply.
const PIPELINED: u64 = 4096;
const REDIS_TIMEOUT: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_micros(100);
const LONG: Duration = Duration::from_millis(50);

pub(crate) struct Publisher {
    options: Arc<Options>,
    tally: Arc<Tally>,
    socket: TcpStream,
    /// Keys in the order in which entries go to them, round and round.
    keys: Vec<String>,
    published: u64,
    answered: Arc<AtomicU64>,
    replies: JoinHandle<anyhow::Result<()>>,
    commands: Vec<u8>,
    payload: Vec<u8>,
    late_max: f64,
}

impl Publisher {
    pub(crate) fn connect(options: Arc<Options>, tally: Arc<Tally>) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(options.redis).context("Redis")?;
        socket.set_nodelay(true)?;
        let answered = Arc::new(AtomicU64::new(0));
        let replies = count_replies(socket.try_clone()?, answered.clone());
        let keys = (0..options.streams()).map(|stream| {
            let per_group = options.streams_per_group;
            format!("bench:{}:{}", stream / per_group, stream % per_group)
        });
        Ok(Self {
            keys: keys.collect(),
            options,
            tally,
            socket,
            published: 0,
            answered,
            replies: thread::spawn(replies),
            commands: Vec::new(),
            payload: Vec::new(),
            late_max: 0.0,
        })
    }

    /// Until `stop` is set, or the history is there. By how many seconds the most belated entry
    /// came after its time.
    pub(crate) fn run(mut self, mode: Mode, stop: &AtomicBool) -> anyhow::Result<f64> {
        match mode {
            Mode::Rate(rate) => self.at_rate(rate, stop)?,
            Mode::Window(window) => self.within_window(window, stop)?,
            Mode::History(entries) => {
                let total = entries * self.keys.len() as u64;
                while self.published < total {
                    self.add(BURST.min(total - self.published))?;
                }
            }
            Mode::Idle => {}
        }
        self.wait_until_pipelined(0)?;
        self.socket.shutdown(Shutdown::Both)?;
        let replies = self.replies.join();
        replies.map_err(|_| anyhow!("the publisher has panicked"))??;
        Ok(self.late_max)
    }

    fn at_rate(&mut self, rate: f64, stop: &AtomicBool) -> anyhow::Result<()> {
        let started = now_ns();
        while !stop.load(Ordering::Relaxed) {
            let elapsed_s = (now_ns() - started) as f64 / 1e9;
            let due = (elapsed_s * rate) as u64;
            if due > self.published {
                let late = elapsed_s - (self.published + 1) as f64 / rate;
                self.late_max = self.late_max.max(late);
                self.add((due - self.published).min(BURST))?;
            } else {
                let next_s = (self.published + 1) as f64 / rate - elapsed_s;
                thread::sleep(Duration::from_secs_f64(next_s.max(0.0)).clamp(SHORT / 5, LONG));
            }
        }
        Ok(())
    }

    fn within_window(&mut self, window: u64, stop: &AtomicBool) -> anyhow::Result<()> {
        let per_entry = self.options.clients_per_stream();
        while !stop.load(Ordering::Relaxed) {
            let delivered = self.tally.delivered.load(Ordering::Relaxed) as f64 / per_entry;
            let under_way = self.published as f64 - delivered;
            let room = window as f64 - under_way;
            if room > 0.0 {
                self.add((room.ceil() as u64).min(BURST))?;
            } else {
                thread::sleep(SHORT);
            }
        }
        Ok(())
    }

    fn add(&mut self, entries: u64) -> anyhow::Result<()> {
        self.commands.clear();
        let streams = self.keys.len() as u64;
        for position in self.published..self.published + entries {
            let stream = (position % streams) as usize;
            let marker = Marker {
                stream,
                number: position / streams,
                at_ns: now_ns(),
            };
            self.payload.clear();
            marker.push_payload(&mut self.payload, self.options.payload);
            push_xadd(&mut self.commands, &self.keys[stream], &self.payload)?;
        }
        self.socket.write_all(&self.commands).context("Redis")?;
        for position in self.published..self.published + entries {
            let published = &self.tally.published[(position % streams) as usize];
            published.fetch_add(1, Ordering::Relaxed);
        }
        self.published += entries;
        self.wait_until_pipelined(PIPELINED)
    }

    fn wait_until_pipelined(&self, most: u64) -> anyhow::Result<()> {
        let started = now_ns();
        while self.published - self.answered.load(Ordering::Relaxed) > most {
            if self.replies.is_finished() || now_ns() - started > REDIS_TIMEOUT.as_nanos() as u64 {
                bail!("Redis does not answer, or refuses an entry");
            }
            thread::sleep(SHORT);
        }
        Ok(())
    }
}

fn push_xadd(out: &mut Vec<u8>, key: &str, payload: &[u8]) -> anyhow::Result<()> {
    write!(
        out,
        "*5\r\n$4\r\nXADD\r\n${}\r\n{key}\r\n$1\r\n*\r\n",
        key.len()
    )?;
    write!(out, "$4\r\ndata\r\n${}\r\n", payload.len())?;
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// A reply is two lines, `$` with a length and the id; an error is one that begins with a dash.
fn count_replies(
    mut socket: TcpStream,
    answered: Arc<AtomicU64>,
) -> impl FnOnce() -> anyhow::Result<()> {
    move || {
        let mut received = vec![0; 64 * 1024];
        let mut before = b'\n';
        loop {
            let read = socket.read(&mut received)?;
            if read == 0 {
                return Ok(());
            }
            let received = &received[..read];
            let begins_line = before == b'\n' && received[0] == b'-';
            if begins_line || memmem::find(received, b"\n-").is_some() {
                bail!("Redis: {}", String::from_utf8_lossy(received));
            }
            before = received[read - 1];
            let replies = memchr_iter(b'$', received).count() as u64;
            answered.fetch_add(replies, Ordering::Relaxed);
        }
    }
}
