//! All clients, on one thread: connects them, and reads what comes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token};
use rustls::ClientConfig;

use super::client::{Client, Heard, Stage, masked};
use super::marker::now_ns;
use super::options::{Options, Target};
use super::sequence::Arrival;
use super::tally::Tally;
use super::transport::{Transport, tls_config};

const READ_BYTES: usize = 1024 * 1024;
const WAKE: Duration = Duration::from_millis(20);
const SWEEP_NS: u64 = 500_000_000;
const CLOSE: u8 = 8;
/// Ten minutes: longer than any run.
const MOST_LATENCY_US: u64 = 600_000_000;

pub(crate) struct Clients {
    options: Arc<Options>,
    target: Target,
    tls: Option<Arc<ClientConfig>>,
    tokens: Vec<String>,
    tally: Arc<Tally>,
    poll: Poll,
    clients: Vec<Client>,
    /// Clients before this one have begun to connect.
    begun: usize,
    connecting: usize,
    found: Found,
}

/// What clients saw.
pub(crate) struct Found {
    pub(crate) latency_us: Histogram<u64>,
    pub(crate) gaps: u64,
    pub(crate) repeated: u64,
    pub(crate) late: u64,
    pub(crate) misrouted: u64,
    pub(crate) missing_at_end: u64,
    /// Why clients failed or were lost.
    pub(crate) ends: BTreeMap<String, u64>,
}

impl Clients {
    pub(crate) fn new(options: Arc<Options>, tally: Arc<Tally>) -> anyhow::Result<Self> {
        let target = options.target()?;
        let tls = match &options.ca_file {
            Some(file) if target.is_tls => Some(tls_config(file)?),
            None if target.is_tls => anyhow::bail!("wss:// needs --ca-file"),
            _ => None,
        };
        let tokens = match &options.tokens {
            Some(file) => fs::read_to_string(file).context("--tokens")?,
            None => String::new(),
        };
        let clients = (0..options.clients)
            .map(|index| Client::new(index % options.groups, options.streams_per_group));
        Ok(Self {
            clients: clients.collect(),
            target,
            tls,
            tokens: tokens.lines().map(str::to_owned).collect(),
            tally,
            poll: Poll::new()?,
            begun: 0,
            connecting: 0,
            found: Found {
                latency_us: Histogram::new_with_bounds(1, MOST_LATENCY_US, 3)?,
                gaps: 0,
                repeated: 0,
                late: 0,
                misrouted: 0,
                missing_at_end: 0,
                ends: BTreeMap::new(),
            },
            options,
        })
    }

    /// Until the tally says stop.
    pub(crate) fn run(mut self) -> anyhow::Result<Found> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; READ_BYTES];
        let mut swept_ns = now_ns();
        while !self.tally.stop.load(Ordering::Relaxed) {
            while self.begun < self.clients.len() && self.connecting < self.options.connecting {
                self.begin(self.begun);
                self.begun += 1;
            }
            match self.poll.poll(&mut events, Some(WAKE)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
            for event in &events {
                self.hear(event.token().0, &mut buffer);
            }
            if self.connecting > 0 && now_ns() - swept_ns > SWEEP_NS {
                swept_ns = now_ns();
                self.give_up(swept_ns);
            }
        }
        Ok(self.close())
    }

    fn begin(&mut self, index: usize) {
        self.connecting += 1;
        let client = &mut self.clients[index];
        client.started_ns = now_ns();
        client.stage = Stage::Connecting;
        let connected =
            Transport::connect(self.target.address, self.tls.as_ref()).and_then(|mut transport| {
                let registry = self.poll.registry();
                registry.register(transport.tcp(), Token(index), Interest::WRITABLE)?;
                Ok(transport)
            });
        match connected {
            Ok(transport) => client.transport = Some(transport),
            Err(error) => self.end(index, &error.to_string()),
        }
    }

    /// Something can be done for this client.
    fn hear(&mut self, index: usize, buffer: &mut [u8]) {
        let done = match self.clients[index].stage {
            Stage::Connecting => self.ask(index),
            Stage::Upgrading | Stage::Open => self.read(index, buffer),
            Stage::Waiting | Stage::Ended => Ok(()),
        };
        if let Err(error) = done {
            self.end(index, &error.to_string());
        }
    }

    /// The connection is there, or will never be: asks for the upgrade.
    fn ask(&mut self, index: usize) -> io::Result<()> {
        let client = &mut self.clients[index];
        let Some(transport) = &mut client.transport else {
            return Ok(());
        };
        if let Some(error) = transport.tcp().take_error()? {
            return Err(error);
        }
        transport.tcp().set_nodelay(true)?;
        let registry = self.poll.registry();
        registry.reregister(transport.tcp(), Token(index), Interest::READABLE)?;
        let path = self
            .target
            .path
            .replace("{group}", &client.group.to_string());
        let token = match self.tokens.get(index) {
            Some(token) => format!("Authorization: Bearer {token}\r\n"),
            None => String::new(),
        };
        client.stage = Stage::Upgrading;
        transport.send(
            format!(
                "GET {path} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{token}\r\n",
                self.target.address
            )
            .as_bytes(),
        )
    }

    fn read(&mut self, index: usize, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            let client = &mut self.clients[index];
            let Some(transport) = &mut client.transport else {
                return Ok(());
            };
            let kept = client.partial.len();
            buffer[..kept].copy_from_slice(&client.partial);
            let received = transport.receive(&mut buffer[kept..]);
            let (received, may_have_more) = match received {
                Ok((0, _)) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                received => received?,
            };
            self.tally.reads.fetch_add(1, Ordering::Relaxed);
            self.tally
                .bytes
                .fetch_add(received as u64, Ordering::Relaxed);
            self.take(index, &buffer[..kept + received])?;
            if !may_have_more {
                return Ok(());
            }
        }
    }

    /// Everything that is whole in these bytes; the rest is kept.
    fn take(&mut self, index: usize, mut bytes: &[u8]) -> io::Result<()> {
        let now = now_ns();
        let delivered_before = self.clients[index].delivered;
        while let Some(heard) = self.clients[index].next(&mut bytes) {
            match heard {
                Heard::Upgraded => self.make_ready(now),
                Heard::Entry { at_ns, arrival } => self.count(index, at_ns, &arrival, now),
                Heard::Misrouted => self.found.misrouted += 1,
                Heard::Ping(pong) => self.send(index, &pong)?,
                Heard::Other => {}
                Heard::End(why) => return Err(io::Error::other(why)),
            }
        }
        let client = &mut self.clients[index];
        client.partial.clear();
        client.partial.extend_from_slice(bytes);
        let delivered = client.delivered - delivered_before;
        self.tally.delivered.fetch_add(delivered, Ordering::Relaxed);
        Ok(())
    }

    fn make_ready(&mut self, now: u64) {
        self.connecting -= 1;
        self.tally.last_ready_ns.fetch_max(now, Ordering::Relaxed);
        self.tally.ready.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&mut self, index: usize, at_ns: u64, arrival: &Arrival, now: u64) {
        match arrival {
            Arrival::Repeated => {
                self.found.repeated += 1;
                return;
            }
            Arrival::Late => self.found.late += 1,
            Arrival::New => {}
        }
        let client = &mut self.clients[index];
        client.delivered += 1;
        if let Some(history) = self.options.history {
            if client.delivered == history * client.sequences.len() as u64 {
                self.tally.last_whole_ns.fetch_max(now, Ordering::Relaxed);
            }
        } else if at_ns >= self.tally.measured_from_ns.load(Ordering::Relaxed) {
            let latency_us = now.saturating_sub(at_ns) / 1000;
            self.found.latency_us.saturating_record(latency_us);
        }
    }

    fn send(&mut self, index: usize, bytes: &[u8]) -> io::Result<()> {
        match &mut self.clients[index].transport {
            Some(transport) => transport.send(bytes),
            None => Ok(()),
        }
    }

    fn end(&mut self, index: usize, why: &str) {
        let client = &mut self.clients[index];
        let was_ready = client.stage == Stage::Open;
        client.stage = Stage::Ended;
        client.transport = None;
        *self.found.ends.entry(why.to_owned()).or_default() += 1;
        if was_ready {
            self.tally.lost.fetch_add(1, Ordering::Relaxed);
        } else {
            self.connecting -= 1;
            self.tally.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends handshakes that take too long.
    fn give_up(&mut self, now: u64) {
        let limit = self.options.connect_timeout.as_nanos() as u64;
        for index in 0..self.begun {
            let client = &self.clients[index];
            let is_under_way = matches!(client.stage, Stage::Connecting | Stage::Upgrading);
            if is_under_way && now - client.started_ns > limit {
                self.end(index, "no handshake in time");
            }
        }
    }

    fn close(mut self) -> Found {
        let per_group = self.options.streams_per_group;
        for client in &mut self.clients {
            for (index, sequence) in client.sequences.iter().enumerate() {
                let published = &self.tally.published[client.group * per_group + index];
                let published = published.load(Ordering::Relaxed);
                self.found.gaps += sequence.gaps();
                if client.stage != Stage::Waiting {
                    self.found.missing_at_end += sequence.missing_of(published);
                }
            }
            if let (Stage::Open, Some(transport)) = (client.stage, &mut client.transport) {
                // Whoever is gone needs no goodbye.
                let _ = transport.send(&masked(CLOSE, &1000_u16.to_be_bytes()));
            }
        }
        self.found
    }
}
