//! The WebSocket edge: what a session decides becomes bytes, what arrives becomes its input.
//!
//! Receiving follows tungstenite's rules. Sending is ours: messages come framed and shared, and
//! go to the kernel as they are.

mod control;
mod socket;
mod transport;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_tungstenite::tungstenite::error::{CapacityError, Error as WsError};
use hyper_tungstenite::tungstenite::protocol::WebSocketConfig;
use hyper_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use hyper_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio::time::{Sleep, sleep, timeout};
use tracing::debug;

use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::{ClientMessage, ping_framed};
use crate::secret::Secret;
use crate::session::{Close, How, Output, Session, TOO_MANY_MESSAGES};
use control::ControlRate;

pub use socket::Socket;

/// How long a close may take: until the kernel has its frame, and until the peer is gone.
const CLOSING: Duration = Duration::from_secs(2);
/// There was no close frame at all (RFC 6455 section 7.1.5).
const ABNORMAL: u16 = 1006;
/// There was one without a code.
const NO_STATUS: u16 = 1005;

/// The limits of tungstenite's side. A connection that is idle keeps its read buffer, so it is
/// small; what is written there are answers to pings and closes, one at a time.
pub fn receive_config(max_message: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(256)
        .write_buffer_size(0)
        .max_write_buffer_size(1024)
        .max_message_size(Some(max_message))
        .max_frame_size(Some(max_message))
}

/// Serves one client until it is gone or the session ends.
pub fn serve(socket: Socket, session: Session) -> impl Future<Output = ()> + Send {
    let connection = Connection {
        socket,
        control: ControlRate::new(session.route().max_client_messages()),
        session,
        stuck: None,
        has_moved: false,
    };
    // A task is as large as everything that it will ever hold: this one is there for hours, and
    // holds little beside the connection itself.
    Box::new(connection).serve()
}

/// Accepts a client only to tell it why it can't stay.
pub async fn refuse(socket: Socket, refusal: Refusal) {
    socket.end(End::Closing(Close::handshake(refusal))).await;
}

/// Why there is no token.
pub enum NoToken {
    /// The client has said something else, or nothing in time.
    Missing,
    /// The relay is going away.
    Draining,
}

/// The first message of a client that is to be a token. Pings are answered meanwhile. `None` if
/// the connection has ended.
pub async fn first_message(
    mut socket: Socket,
    deadline: Duration,
    draining: impl Future<Output = ()>,
) -> Option<(Socket, Result<Secret, NoToken>)> {
    let mut control = ControlRate::new(0);
    let end = tokio::select! {
        first = poll_fn(|cx| socket.poll_first(cx, &mut control)) => match first {
            Ok(text) => {
                let token = match ClientMessage::parse(&text) {
                    ClientMessage::Auth(token) => Ok(token),
                    ClientMessage::Ping | ClientMessage::Unknown => Err(NoToken::Missing),
                };
                return Some((socket, token));
            }
            Err(end) => end,
        },
        () = sleep(deadline) => return Some((socket, Err(NoToken::Missing))),
        () = draining => return Some((socket, Err(NoToken::Draining))),
    };
    socket.end(end).await;
    None
}

/// How a client has left.
pub struct Left(End);

/// Ready when a client has left while its token is looked at. Pings are answered meanwhile; a
/// message is kept for the session, and nothing is read beyond it.
pub async fn left(socket: &mut Socket) -> Left {
    let mut control = ControlRate::new(0);
    match poll_fn(|cx| socket.poll_first(cx, &mut control)).await {
        Ok(text) => {
            socket.keep(text);
            std::future::pending().await
        }
        Err(end) => Left(end),
    }
}

/// Ends the connection of a client that has left.
pub async fn part(socket: Socket, left: Left) {
    socket.end(left.0).await;
}

impl Socket {
    fn poll_first(
        &mut self,
        cx: &mut Context<'_>,
        control: &mut ControlRate,
    ) -> Poll<Result<Utf8Bytes, End>> {
        loop {
            if self.has_unsent()
                && let Poll::Ready(Err(error)) = self.poll_send(cx)
            {
                debug!(%error, "connection lost while sending");
                return Poll::Ready(Err(End::Lost));
            }
            match ready!(self.poll_receive(cx)) {
                Err(error) => return Poll::Ready(Err(end_of(&error))),
                Ok(Message::Text(text)) => return Poll::Ready(Ok(text)),
                // No token is binary.
                Ok(Message::Binary(_)) => return Poll::Ready(Ok(Utf8Bytes::default())),
                Ok(message) => {
                    if let Some(end) = control.take(&message) {
                        return Poll::Ready(Err(end));
                    }
                }
            }
        }
    }
}

/// How a connection ends.
enum End {
    /// The session closes it.
    Closing(Close),
    /// What the peer sent breaks the protocol.
    Violation(CloseCode),
    /// The peer has closed it; its frame is to be answered.
    ClosedByPeer(u16),
    /// It is gone.
    Lost,
}

impl End {
    fn code(&self) -> u16 {
        match self {
            Self::Closing(close) => close.refusal.outcome.close_code(),
            Self::Violation(code) => (*code).into(),
            Self::ClosedByPeer(code) => *code,
            Self::Lost => ABNORMAL,
        }
    }
}

struct Connection {
    socket: Socket,
    control: ControlRate,
    session: Session,
    /// Runs while the kernel takes nothing; there only when the last write was short.
    stuck: Option<Pin<Box<Sleep>>>,
    /// Something has come of the task's being woken.
    has_moved: bool,
}

enum Event {
    Received(Message),
    Decided(Output),
    Ended(End),
}

impl Connection {
    async fn serve(mut self: Box<Self>) {
        let end = self.run().await;
        Box::pin(self.end(end)).await;
    }

    async fn end(self: Box<Self>, end: End) {
        let route = self.session.route().clone();
        let code = end.code();
        // What the session waited for and watched is given back now; its place with the socket.
        let _presence = self.session.leave();
        self.socket.end(end).await;
        route.meters().note_close(code);
    }

    async fn run(&mut self) -> End {
        loop {
            let event = poll_fn(|cx| self.poll_event(cx)).await;
            self.has_moved = true;
            match event {
                Event::Received(message) => {
                    if let Some(end) = self.receive(message) {
                        return end;
                    }
                }
                Event::Decided(Output::Messages(batch)) => {
                    self.session.route().meters().note_frames(batch.count);
                    self.socket.queue(batch.parts);
                }
                Event::Decided(Output::Ping) => {
                    self.control.note_ping();
                    self.socket.queue([ping_framed()]);
                }
                Event::Decided(Output::Close(close)) => return End::Closing(close),
                Event::Ended(end) => return end,
            }
        }
    }

    /// The arms, in this order: what the client sends; what is on its way to it, and while that
    /// is stuck only what ends the connection; what the session decides next.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Poll::Ready(received) = self.poll_received(cx) {
            return Poll::Ready(received);
        }
        if self.socket.has_unsent() {
            match self.poll_unsent(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(end)) => return Poll::Ready(Event::Ended(end)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if let Poll::Ready(decided) = self.session.poll_next(cx) {
            return Poll::Ready(Event::Decided(decided));
        }
        if !std::mem::take(&mut self.has_moved) {
            self.socket.listen_anew();
            return self.poll_received(cx);
        }
        Poll::Pending
    }

    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let received = ready!(self.socket.poll_receive(cx));
        Poll::Ready(match received {
            Ok(message) => Event::Received(message),
            Err(error) => Event::Ended(end_of(&error)),
        })
    }

    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let sent = self.socket.poll_send(cx);
        let taken = self.socket.take_sent_bytes();
        if taken > 0 {
            self.session.route().meters().note_bytes(taken);
            // The kernel takes what it has room for. Only room that the peer has made by reading
            // is a sign of its life.
            if self.stuck.take().is_some() {
                self.session.note_life();
            }
        }
        match sent {
            Poll::Ready(Ok(())) => {
                self.stuck = None;
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(error)) => {
                debug!(%error, "connection lost while sending");
                return Poll::Ready(Err(End::Lost));
            }
            Poll::Pending => {}
        }
        if let Poll::Ready(close) = self.session.poll_cut(cx) {
            return Poll::Ready(Err(End::Closing(close)));
        }
        self.session.note_stuck(cx);
        let write_timeout = self.session.route().write_timeout();
        let stuck = self
            .stuck
            .get_or_insert_with(|| Box::pin(sleep(write_timeout)));
        stuck.as_mut().poll(cx).map(|()| {
            let refusal = Refusal::new(Outcome::TooSlow, "write_timeout");
            Err(End::Closing(Close::reset(refusal)))
        })
    }

    fn receive(&mut self, message: Message) -> Option<End> {
        self.session.note_life();
        let close = match message {
            Message::Text(text) => self.session.receive(&text),
            // Binary is counted as what it is: nothing that a client may say.
            Message::Binary(_) => self.session.receive(""),
            control => return self.control.take(&control),
        };
        close.map(End::Closing)
    }
}

impl ControlRate {
    /// Counts a control frame. How the connection ends, if it does.
    fn take(&mut self, message: &Message) -> Option<End> {
        let is_allowed = match message {
            Message::Close(frame) => {
                let code = frame.as_ref().map_or(NO_STATUS, |frame| frame.code.into());
                return Some(End::ClosedByPeer(code));
            }
            Message::Ping(_) => self.allows_ping(),
            Message::Pong(_) => self.allows_pong(),
            Message::Text(_) | Message::Binary(_) | Message::Frame(_) => true,
        };
        (!is_allowed).then(|| End::Closing(Close::handshake(TOO_MANY_MESSAGES)))
    }
}

fn end_of(error: &WsError) -> End {
    match error {
        WsError::Capacity(CapacityError::MessageTooLong { .. }) => End::Closing(Close::handshake(
            Refusal::new(Outcome::MessageTooBig, "message_too_big"),
        )),
        WsError::Utf8(_) => End::Violation(CloseCode::Invalid),
        WsError::Protocol(violation) if !is_a_lost_peer(violation) => {
            End::Violation(CloseCode::Protocol)
        }
        other => {
            debug!(error = %other, "connection lost");
            End::Lost
        }
    }
}

fn is_a_lost_peer(violation: &hyper_tungstenite::tungstenite::error::ProtocolError) -> bool {
    use hyper_tungstenite::tungstenite::error::ProtocolError;
    matches!(violation, ProtocolError::ResetWithoutClosingHandshake)
}

impl Socket {
    /// Ends the connection, within [`CLOSING`] if the peer does not help.
    async fn end(mut self, end: End) {
        let (code, reason) = match end {
            End::Lost => return,
            End::Closing(Close {
                how: How::Reset, ..
            }) => return self.reset(),
            End::Closing(Close {
                how: How::Flush, ..
            }) => {
                // The peer may take its time to go: what it has not read must reach it.
                let _too_late = timeout(CLOSING, self.finish()).await;
                return;
            }
            End::ClosedByPeer(_) => {
                let _too_late = timeout(CLOSING, self.answer_close()).await;
                return;
            }
            End::Closing(Close {
                refusal,
                how: How::Handshake,
            }) => (refusal.outcome.close_code().into(), refusal.reason),
            End::Violation(code) => (code, "protocol_error"),
        };
        self.queue_close(code, Utf8Bytes::from_static(reason));
        if timeout(CLOSING, self.finish()).await.is_err() {
            self.reset();
        }
    }
}
