//! The clients' port: an accept loop, and one tracked task per connection.

mod head;
pub mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};

use crate::config::Server;
use crate::drain;
use crate::metrics::{CONNECTIONS, CONNECTS, Gauge, Metrics};
use crate::protocol::outcome::{Outcome, Refusal};
use crate::rewound::Rewound;
use crate::router::{Aborted, AddressPlace, Answer, Router, come_back_later, status_answer};
use crate::session::ending::DrainSignal;
use crate::tasks::Tasks;
use head::read_head;
use tls::Tls;

/// Connections that the kernel completes before they are accepted; it has a limit of its own.
const BACKLOG: u32 = 4096;
/// The smallest buffer for a request's head that hyper takes.
const SMALLEST_HEAD: usize = 8192;
/// Pauses after accepting failed, which it does when files run out.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long after the start of a drain a request's head may still arrive, to be refused.
const LAST_HEADS: Duration = Duration::from_secs(1);

/// Clients above the limit that are told so at once; more than these are only dropped.
const TURNED_AWAY_AT_ONCE: usize = 64;
/// How long such a client may take to ask and to go.
const TURNING_AWAY: Duration = Duration::from_secs(1);
const FULL: Refusal = Refusal::new(Outcome::TooMany, "too_many_connections");

/// Binds one of the two ports. The error names the key and the address.
pub fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().with_context(|| format!("{key}: cannot listen on {address}"))
}

/// Everything that connections of clients are served with.
pub struct ClientPort {
    router: Arc<Router>,
    drain: DrainSignal,
    tasks: Tasks,
    http: http1::Builder,
    max_head: usize,
    tls: Option<Tls>,
    handshake_timeout: Duration,
    send_buffer: usize,
    seats: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
    open: Gauge,
    metrics: Metrics,
}

/// A connection's place among `max_connections`, and among those of its address if that is known
/// by the connection. A session keeps it after the upgrade.
struct Seat {
    _permit: OwnedSemaphorePermit,
    _place: AddressPlace,
    open: Gauge,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// How a connection is met.
#[derive(Clone)]
enum Standing {
    /// It is served.
    Seated(Arc<Seat>),
    /// It is told that there are too many.
    TurnedAway(Refusal, Arc<OwnedSemaphorePermit>),
}

impl ClientPort {
    /// Connections are tasks of `tasks`, and sessions have to be as well.
    pub fn new(
        server: &Server,
        tls: Option<Tls>,
        router: Arc<Router>,
        drain: DrainSignal,
        tasks: Tasks,
        metrics: &Metrics,
    ) -> Self {
        let max_head = server.max_head.max(SMALLEST_HEAD);
        let mut http = http1::Builder::new();
        http.half_close(false)
            .timer(TokioTimer::new())
            .max_buf_size(max_head);
        Self {
            router,
            drain,
            tasks,
            http,
            max_head,
            tls,
            handshake_timeout: server.handshake_timeout,
            send_buffer: server.send_buffer,
            seats: Arc::new(Semaphore::new(server.max_connections)),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY_AT_ONCE)),
            open: metrics.gauge(&CONNECTIONS, &[]),
            metrics: metrics.clone(),
        }
    }

    /// Whether clients need TLS.
    pub fn speaks_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Accepts connections until a drain refuses them; then the port is closed.
    pub async fn accept(self: Arc<Self>, socket: TcpListener) {
        let mut ending = pin!(self.drain.refusing());
        let mut pause = FIRST_PAUSE;
        loop {
            let accepted = tokio::select! {
                () = &mut ending => return,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = FIRST_PAUSE;
                    self.admit(stream, peer);
                }
                Err(error) if is_about_one_connection(&error) => {
                    debug!(%error, "a connection was gone before it was accepted");
                }
                Err(error) => {
                    warn!(%error, ?pause, "no connection could be accepted");
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // A client that came over IPv4 to a port of both families has an IPv4 address.
        let peer = peer.ip().to_canonical();
        let place = match self.router.enter(peer) {
            Ok(place) => place,
            Err(refusal) => return self.turn_away(stream, peer, refusal),
        };
        let Ok(permit) = self.seats.clone().try_acquire_owned() else {
            return self.turn_away(stream, peer, come_back_later(FULL));
        };
        self.open.inc();
        let seat = Seat {
            _permit: permit,
            _place: place,
            open: self.open.clone(),
        };
        let standing = Standing::Seated(Arc::new(seat));
        let connection = self.clone().serve(stream, peer, standing);
        self.tasks.spawn("connection", connection);
    }

    /// Serves a client only to tell it that there are too many.
    fn turn_away(self: &Arc<Self>, stream: TcpStream, peer: IpAddr, refusal: Refusal) {
        let outcome = ["", refusal.reason];
        self.metrics.counter(&CONNECTS, &outcome).inc();
        let Ok(permit) = self.turned_away.clone().try_acquire_owned() else {
            return;
        };
        let standing = Standing::TurnedAway(refusal, Arc::new(permit));
        let connection = self.clone().serve(stream, peer, standing);
        self.tasks.spawn("turning away", async move {
            // Whoever neither asks nor goes in time is only dropped.
            let _too_late = timeout(TURNING_AWAY, connection).await;
        });
    }

    /// One connection, up to its answer or its upgrade.
    async fn serve(self: Arc<Self>, stream: TcpStream, peer: IpAddr, standing: Standing) {
        if let Err(error) = self.configure(&stream) {
            debug!(%error, "a connection was gone before it was served");
            return;
        }
        let deadline = Instant::now() + self.handshake_timeout;
        // Boxed, since a task is as large as whatever it may hold.
        match &self.tls {
            None => self.converse(stream, deadline, peer, standing).await,
            Some(tls) => Box::pin(self.serve_tls(tls, stream, deadline, peer, standing)).await,
        }
    }

    async fn serve_tls(
        &self,
        tls: &Tls,
        stream: TcpStream,
        deadline: Instant,
        peer: IpAddr,
        standing: Standing,
    ) {
        let accepted = tokio::select! {
            accepted = tls.accept(stream, self.handshake_timeout) => accepted,
            () = self.is_too_late() => return,
        };
        if let Some(stream) = accepted {
            self.converse(stream, deadline, peer, standing).await;
        }
    }

    /// Waits for a request, and answers it. Until it is there a connection is little more than its
    /// socket.
    async fn converse<S>(&self, stream: S, deadline: Instant, peer: IpAddr, standing: Standing)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let read = tokio::select! {
            read = timeout_at(deadline, read_head(stream, self.max_head)) => read,
            () = self.is_too_late() => return,
        };
        match read {
            Ok(Ok(stream)) => Box::pin(self.serve_http(stream, deadline, peer, standing)).await,
            Ok(Err(error)) => debug!(%peer, %error, "a connection ended before it asked"),
            Err(_) => debug!(%peer, "no request came in time"),
        }
    }

    async fn serve_http<S>(
        &self,
        stream: Rewound<S>,
        deadline: Instant,
        peer: IpAddr,
        standing: Standing,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| self.answer(peer, request, standing.clone()));
        let mut http = self.http.clone();
        http.header_read_timeout(deadline.saturating_duration_since(Instant::now()));
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let served = tokio::select! {
            served = connection.with_upgrades() => served,
            () = drain::cut(&self.drain) => return,
        };
        if let Err(error) = served {
            debug!(%peer, %error, "a connection ended early");
        }
    }

    /// One request a connection: whoever neither upgrades nor goes would keep a seat. (hyper
    /// without keep-alive would close what is to be upgraded, too.)
    async fn answer(
        &self,
        peer: IpAddr,
        request: Request<Incoming>,
        standing: Standing,
    ) -> Result<Answer, Aborted> {
        let mut answer = match standing {
            Standing::Seated(seat) => self.router.respond(peer, request, seat).await?,
            // Always by status: clients come back after that, and not after its close code.
            Standing::TurnedAway(refusal, _) if refusal.reason == FULL.reason => {
                status_answer(&refusal)
            }
            Standing::TurnedAway(refusal, permit) => {
                self.router.turn_away(request, refusal, permit)?
            }
        };
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(CONNECTION, close);
        }
        Ok(answer)
    }

    /// Waits until a drain has no more time for a connection that has asked nothing.
    async fn is_too_late(&self) {
        self.drain.refusing().await;
        sleep(LAST_HEADS).await;
    }

    fn configure(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        socket.set_send_buffer_size(self.send_buffer)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_notsent_lowat(u32::try_from(self.send_buffer).unwrap_or(u32::MAX))?;
        Ok(())
    }
}

/// Errors that say nothing about the next connection.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_names_key_and_address() {
        let taken = bind("server.listen", "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind("server.listen", address).unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains("server.listen"), "{message}");
        assert!(message.contains(&address.to_string()), "{message}");
    }
}
