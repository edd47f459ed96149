//! `relay tail`: a client for the terminal that resumes by itself.

mod ending;
mod line;
mod target;

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::{SinkExt, StreamExt};
use hyper::Uri;
use relay::secret::Secret;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Error, Message};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
};

use super::{Failure, say};
use ending::{Ending, Next};
use line::Frame;
use target::Target;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

const SUBPROTOCOL: &str = "relay.v1";
/// A relay pings far more often than this: silence means that it is gone.
const SILENCE: Duration = Duration::from_secs(90);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const FAREWELL: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(super) struct Tail {
    /// Address of a route, such as ws://127.0.0.1:8081/ws/jobs/1.
    url: Target,
    /// Sent as a bearer token.
    #[arg(long, env = "RELAY_TOKEN", hide_env_values = true, value_parser = secret)]
    token: Option<Secret>,
    /// PEM file with the certificates to trust, instead of the system's.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Where to begin: the cursor of a frame.
    #[arg(long)]
    cursor: Option<String>,
    /// Print each frame as it came.
    #[arg(long)]
    raw: bool,
    /// End after this many frames.
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU64>,
    /// End after this time.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
}

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

impl Tail {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let stop = pin!(asked_to_stop(self.time)?);
        let connector = self.ca_file.as_deref().map(trusting).transpose()?;
        let mut follower = Follower::new(self, connector);
        let ended = follower.follow(stop).await;
        eprintln!("relay tail: {}", follower.summary());
        ended
    }
}

/// TLS that trusts the certificates of this file.
fn trusting(file: &Path) -> anyhow::Result<Connector> {
    let roots = || {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(file)? {
            roots.add(certificate?)?;
        }
        anyhow::ensure!(!roots.is_empty(), "no certificate is in it");
        Ok(roots)
    };
    let roots = roots().with_context(|| format!("--ca-file {}", file.display()))?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Connector::Rustls(Arc::new(config)))
}

/// SIGTERM, SIGINT, or the time that was given.
fn asked_to_stop(time: Option<Duration>) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let time_is_up = async {
            match time {
                Some(time) => sleep(time).await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = time_is_up => {}
        }
    })
}

/// One client across its connections.
struct Follower {
    tail: Tail,
    connector: Option<Connector>,
    /// Of the last frame that had one.
    cursor: Option<String>,
    backoff: ExponentialBackoff,
    connections: u64,
    frames: u64,
    kinds: BTreeMap<String, u64>,
}

/// Why one connection is over.
enum Shown {
    /// The other side ended it.
    Ended(Ending),
    /// All that was asked for has been shown.
    Enough,
}

impl Follower {
    fn new(tail: Tail, connector: Option<Connector>) -> Self {
        Self {
            cursor: tail.cursor.clone().or_else(|| tail.url.cursor()),
            tail,
            connector,
            backoff: backoff(),
            connections: 0,
            frames: 0,
            kinds: BTreeMap::new(),
        }
    }

    /// Connects, shows, and connects again, until asked to stop or refused for good.
    async fn follow(
        &mut self,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Failure> {
        loop {
            let connected = tokio::select! {
                () = stop.as_mut() => return Ok(()),
                connected = self.connect() => connected,
            };
            let ending = match connected {
                Ok(socket) => match self.show(socket, stop.as_mut()).await? {
                    Shown::Ended(ending) => ending,
                    Shown::Enough => return Ok(()),
                },
                Err(ending) => ending,
            };
            let pause = match ending.next() {
                Next::Stop => return Err(anyhow!("{ending}").into()),
                Next::Again(Some(pause)) => pause,
                Next::Again(None) => self.backoff.next().unwrap_or(LONGEST_PAUSE),
            };
            let from = self.cursor.as_deref().unwrap_or("the beginning");
            eprintln!("relay tail: {ending}; again in {pause:.1?} from {from}");
            tokio::select! {
                () = stop.as_mut() => return Ok(()),
                () = sleep(pause) => {}
            }
        }
    }

    async fn connect(&self) -> Result<Socket, Ending> {
        let uri = self.tail.url.uri(self.cursor.as_deref());
        let connector = self.connector.clone();
        let connecting = connect_async_tls_with_config(self.request(uri), None, false, connector);
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok((socket, _))) => Ok(socket),
            Ok(Err(error)) => Err(Ending::of_connect(error)),
            Err(_) => Err(Ending::Unreachable("no answer in time".to_owned())),
        }
    }

    fn request(&self, uri: Uri) -> ClientRequestBuilder {
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(SUBPROTOCOL);
        match &self.tail.token {
            Some(token) => {
                request.with_header("authorization", format!("Bearer {}", token.expose()))
            }
            None => request,
        }
    }

    /// Shows what comes over one connection. Arms: the socket, silence, the request to stop.
    async fn show(
        &mut self,
        mut socket: Socket,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> io::Result<Shown> {
        self.connections += 1;
        let mut retry_after = None;
        loop {
            let message = tokio::select! {
                () = stop.as_mut() => {
                    part(socket).await;
                    return Ok(Shown::Enough);
                }
                message = timeout(SILENCE, socket.next()) => message,
            };
            let text = match message {
                Err(_) => return Ok(Shown::Ended(Ending::silent())),
                Ok(Some(Ok(Message::Text(text)))) => text,
                Ok(Some(Ok(Message::Close(frame)))) => {
                    return Ok(Shown::Ended(Ending::of_close(frame.as_ref(), retry_after)));
                }
                Ok(Some(Ok(_))) => continue,
                Ok(None) => return Ok(Shown::Ended(Ending::lost("closed without a word"))),
                Ok(Some(Err(error))) => return Ok(Shown::Ended(lost(&error))),
            };
            let frame = Frame::parse(&text);
            retry_after = frame.retry_after().or(retry_after);
            match self.print(&text, &frame) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Ok(Shown::Enough);
                }
                printed => printed?,
            }
            if self
                .tail
                .count
                .is_some_and(|count| self.frames >= count.get())
            {
                part(socket).await;
                return Ok(Shown::Enough);
            }
        }
    }

    fn print(&mut self, text: &str, frame: &Frame<'_>) -> io::Result<()> {
        match self.tail.raw {
            true => say(text)?,
            false => say(&frame.line(std::time::SystemTime::now()))?,
        }
        self.frames += 1;
        *self.kinds.entry(frame.kind().to_owned()).or_default() += 1;
        self.cursor = frame.cursor().or(self.cursor.take());
        // It works: the next pause is a short one again.
        self.backoff = backoff();
        Ok(())
    }

    fn summary(&self) -> String {
        let kinds: String = self
            .kinds
            .iter()
            .map(|(k, n)| format!(", {n} {k}"))
            .collect();
        let cursor = self.cursor.as_deref().unwrap_or("none");
        format!(
            "frames: {}{kinds}; connections: {}; last cursor: {cursor}",
            self.frames, self.connections,
        )
    }
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times()
        .with_jitter()
        .with_jitter_seed(rand::random())
        .build()
}

fn lost(error: &Error) -> Ending {
    Ending::lost(&error.to_string())
}

/// Says goodbye, and waits a little for the answer.
async fn part(mut socket: Socket) {
    let farewell = async {
        let normal = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        socket.send(Message::Close(Some(normal))).await?;
        while socket.next().await.transpose()?.is_some() {}
        Ok::<(), Error>(())
    };
    // Whether the other side still listens makes no difference.
    let _answered = timeout(FAREWELL, farewell).await;
}
