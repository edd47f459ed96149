//! What is to be measured.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;

#[derive(Parser, Clone)]
#[command(
    about = "Adds entries to Redis Streams, and receives them as the clients of a server",
    after_help = "Clients are spread over groups; the streams of group N are bench:N:0, bench:N:1, …\n\
                  One of --rate, --window and --history says how entries are added; without them none are.\n\
                  The result is one JSON object on stdout."
)]
pub(crate) struct Options {
    /// Where clients connect: ws:// or wss:// with an address of loopback; {group} is replaced.
    #[arg(long)]
    pub(crate) url: String,
    /// The certificate to trust with wss://.
    #[arg(long)]
    pub(crate) ca_file: Option<PathBuf>,
    /// A file with a token a line; client N sends line N.
    #[arg(long)]
    pub(crate) tokens: Option<PathBuf>,
    #[arg(long)]
    pub(crate) redis: SocketAddr,
    #[arg(long, default_value_t = 1)]
    pub(crate) clients: usize,
    #[arg(long, default_value_t = 1)]
    pub(crate) groups: usize,
    #[arg(long, default_value_t = 1)]
    pub(crate) streams_per_group: usize,
    /// Bytes of an entry's payload, which is JSON.
    #[arg(long, default_value_t = 200)]
    pub(crate) payload: usize,
    /// Entries a second, to all streams together.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// As fast as the server delivers: this many entries are under way.
    #[arg(long)]
    pub(crate) window: Option<u64>,
    /// Entries that are in each stream before clients connect: how long do they take to get them?
    #[arg(long)]
    pub(crate) history: Option<u64>,
    /// Seconds after the last handshake.
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub(crate) settle: Duration,
    /// Seconds in which entries are added but not measured.
    #[arg(long, default_value = "2", value_parser = seconds)]
    pub(crate) warmup: Duration,
    /// Seconds that are measured.
    #[arg(long, default_value = "6", value_parser = seconds)]
    pub(crate) duration: Duration,
    /// Longest wait for the last entries, in seconds.
    #[arg(long, default_value = "10", value_parser = seconds)]
    pub(crate) drain: Duration,
    /// Seconds that one handshake may take.
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub(crate) connect_timeout: Duration,
    /// Handshakes under way at once.
    #[arg(long, default_value_t = 64)]
    pub(crate) connecting: usize,
    /// The process whose CPU and memory are measured.
    #[arg(long)]
    pub(crate) server_pid: u32,
    #[arg(long)]
    pub(crate) redis_pid: u32,
}

/// How entries are added.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    Rate(f64),
    Window(u64),
    History(u64),
    Idle,
}

/// Where clients connect.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) is_tls: bool,
    /// With `{group}`.
    pub(crate) path: String,
}

impl Options {
    pub(crate) fn mode(&self) -> anyhow::Result<Mode> {
        Ok(match (self.rate, self.window, self.history) {
            (Some(rate), None, None) if rate > 0.0 => Mode::Rate(rate),
            (None, Some(window), None) if window > 0 => Mode::Window(window),
            (None, None, Some(history)) if history > 0 => Mode::History(history),
            (None, None, None) => Mode::Idle,
            _ => bail!("one of --rate, --window and --history, above zero"),
        })
    }

    pub(crate) fn target(&self) -> anyhow::Result<Target> {
        let (scheme, rest) = self.url.split_once("://").context("--url has no scheme")?;
        let (host, path) = rest.split_once('/').context("--url has no path")?;
        let address: SocketAddr = host.parse().context("--url has no address and port")?;
        if !address.ip().is_loopback() || !self.redis.ip().is_loopback() {
            bail!("addresses of loopback only");
        }
        let is_tls = match scheme {
            "ws" => false,
            "wss" => true,
            _ => bail!("--url begins with ws:// or wss://"),
        };
        Ok(Target {
            address,
            is_tls,
            path: format!("/{path}"),
        })
    }

    pub(crate) fn streams(&self) -> usize {
        self.groups * self.streams_per_group
    }

    /// Of one entry, on average.
    pub(crate) fn clients_per_stream(&self) -> f64 {
        self.clients as f64 / self.groups as f64
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
