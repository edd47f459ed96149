//! What carries the bytes: TCP, or TLS on it.

use std::io::{self, Read, Write};
use std::task::{Context, Poll};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ServerConnection;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::rewound::Rewound;
use crate::wake::Registered;

/// Several small parts are sent as one: a writev of many small pieces costs a third of the
/// throughput of a copy into one buffer (0.69 against 0.96 of the floor at saturation).
const PORTION: usize = 64 * 1024;
/// The plaintext of one TLS record.
const RECORD: usize = 16 * 1024;

/// A connection to one client. Nothing here waits: what can't be done now is `WouldBlock`, and
/// readiness is that of the TCP connection.
///
/// With TLS, what is written is encrypted and then held until the kernel takes it: at most one
/// record, for nothing more is encrypted before that.
pub(super) struct Transport {
    tcp: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// Whom the connection wakes when there is something to read.
    reader: Registered,
    sent_bytes: usize,
}

impl Transport {
    /// Takes the connection out of an upgrade, with the bytes that came with the handshake.
    pub(super) fn of(upgraded: Upgraded) -> Option<(Self, Vec<u8>)> {
        let (tcp, tls, early) = match upgraded.downcast::<TokioIo<Rewound<TcpStream>>>() {
            Ok(parts) => {
                let (rest, tcp) = parts.io.into_inner().into_parts();
                (tcp, None, [parts.read_buf, rest].concat())
            }
            Err(upgraded) => match upgraded.downcast::<TokioIo<Rewound<TlsStream<TcpStream>>>>() {
                Ok(parts) => {
                    let (rest, stream) = parts.io.into_inner().into_parts();
                    let (tcp, tls) = stream.into_inner();
                    let early = [parts.read_buf, rest].concat();
                    (tcp, Some(Box::new(tls)), early)
                }
                Err(_) => {
                    debug!("an upgraded connection is neither TCP nor TLS");
                    return None;
                }
            },
        };
        let transport = Self {
            tcp,
            tls,
            reader: Registered::default(),
            sent_bytes: 0,
        };
        Some((transport, early))
    }

    /// Whether there may be something to read before the TCP connection says so.
    pub(super) fn may_hold_input(&self) -> bool {
        self.tls.is_some()
    }

    pub(super) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reader.is(cx) && !self.is_readable() {
            return Poll::Pending;
        }
        let tcp = &self.tcp;
        self.reader.poll(cx, |cx| tcp.poll_read_ready(cx))
    }

    /// Whoever waits is to be registered anew.
    pub(super) fn forget_reader(&mut self) {
        self.reader.forget();
    }

    /// As far as the runtime has heard.
    fn is_readable(&self) -> bool {
        self.tcp.try_io(Interest::READABLE, || Ok(())).is_ok()
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(cx)
    }

    pub(super) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.tcp.try_read(buffer),
            Some(tls) => read_decrypted(tls, &self.tcp, buffer),
        }
    }

    /// How many bytes are worth handing over at once.
    pub(super) fn portion(&self) -> usize {
        match self.tls {
            None => PORTION,
            Some(_) => RECORD,
        }
    }

    /// Hands bytes over, and says how many were taken: by the kernel, or to be held for it.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            let sent = self.tcp.try_write(bytes)?;
            self.sent_bytes += sent;
            return Ok(sent);
        };
        if tls.wants_write() {
            self.try_flush()?;
        }
        let Some(tls) = &mut self.tls else {
            return Ok(0);
        };
        let taken = tls.writer().write(bytes)?;
        match self.try_flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(()) | Err(_) => Ok(taken),
        }
    }

    /// Whether something is held for the kernel.
    pub(super) fn has_unflushed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Gives the kernel what is held for it; all of it, or that would block.
    pub(super) fn try_flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        while tls.wants_write() {
            match tls.write_tls(&mut Kernel(&self.tcp))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                sent => self.sent_bytes += sent,
            }
        }
        Ok(())
    }

    /// Bytes that the kernel took since the last call, as they go over the wire.
    pub(super) fn take_sent_bytes(&mut self) -> usize {
        std::mem::take(&mut self.sent_bytes)
    }

    /// Says that nothing more is written; what says so has to be flushed.
    pub(super) fn end_writing(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
    }

    /// Ends our side, and waits until the peer has ended its own. Closing with bytes unread would
    /// be a reset, and could overtake what was sent.
    pub(super) async fn part(&self) {
        if SockRef::from(&self.tcp)
            .shutdown(std::net::Shutdown::Write)
            .is_err()
        {
            return;
        }
        let mut ignored = [0; 1024];
        loop {
            match self.tcp.try_read(&mut ignored) {
                Ok(0) => return,
                // Whoever sends without end must not keep the worker, nor its deadline from coming.
                Ok(_) => consume_budget().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.tcp.readable().await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Drops the connection at once, with whatever the kernel still holds.
    pub(super) fn reset(self) {
        // A peer that is gone already can't be reset, and needs not.
        let _gone = SockRef::from(&self.tcp).set_linger(Some(std::time::Duration::ZERO));
    }
}

fn read_decrypted(
    tls: &mut ServerConnection,
    tcp: &TcpStream,
    buffer: &mut [u8],
) -> io::Result<usize> {
    // It ends: rustls bounds records that bring nothing.
    loop {
        match tls.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The peer has ended the connection without saying so in TLS.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            read => return read,
        }
        tls.read_tls(&mut Kernel(tcp))?;
        tls.process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    }
}

/// The TCP connection as rustls sees it.
struct Kernel<'a>(&'a TcpStream);

impl Read for Kernel<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Kernel<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Empty;
    use hyper::body::{Bytes, Incoming};
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper::{Request, Response, StatusCode, upgrade};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    /// hyper takes what is in its first buffer, and leaves the rest where it was.
    #[tokio::test]
    async fn bytes_behind_a_head_are_kept_in_order() {
        const FIRST_BUFFER: usize = 8192;
        let head = "GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\nx: ";
        let filler = "x".repeat(FIRST_BUFFER - 50 - head.len());
        let behind: Vec<u8> = (0..=u8::MAX).collect();
        let read = [head, &filler, "\r\n\r\n"].concat().into_bytes();
        let read = [read, behind.clone()].concat();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let (upgrades, mut upgraded) = mpsc::channel(1);
        let service = service_fn(|mut request: Request<Incoming>| {
            upgrades.try_send(upgrade::on(&mut request)).unwrap();
            let mut answer = Response::new(Empty::<Bytes>::new());
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            async { Ok::<_, Infallible>(answer) }
        });
        http1::Builder::new()
            .serve_connection(TokioIo::new(Rewound::new(read, server)), service)
            .with_upgrades()
            .await
            .unwrap();
        let upgraded = upgraded.recv().await.unwrap().await.unwrap();
        let (_transport, early) = Transport::of(upgraded).unwrap();
        assert_eq!(early, behind);
    }
}
