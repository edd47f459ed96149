//! The socket itself: which bytes go out in which order, and what comes in.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper_tungstenite::HyperWebsocket;
use hyper_tungstenite::tungstenite::error::{CapacityError, Error as WsError};
use hyper_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use hyper_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use hyper_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use hyper_tungstenite::tungstenite::{Message, Utf8Bytes};
use smallvec::SmallVec;

use super::transport::Transport;

/// A client's connection after the upgrade.
pub struct Socket {
    transport: Transport,
    protocol: WebSocketContext,
    unsent: SmallVec<[Bytes; 1]>,
    /// The first of `unsent` has been sent in part: nothing else may come between.
    within_message: bool,
    /// tungstenite has an answer that the kernel did not take yet.
    owes_answer: bool,
    /// There may be bytes that the kernel does not have any more.
    has_early_bytes: bool,
    /// A message that was received, and not yet dealt with.
    kept: Option<Utf8Bytes>,
    /// Bytes of a message that is not complete, control frames among it apart.
    unfinished: usize,
    max_unfinished: usize,
}

/// Bytes taken from one client before others have their turn: empty fragments without end would
/// otherwise keep a worker for themselves.
const RECEIVE_BUDGET: usize = 64 * 1024;

/// A message may take so many times its size in bytes on the wire: whole, or in parts of one byte
/// each with its head. Empty parts without end are more than that.
const MAX_OVERHEAD: usize = 8;
/// Of a masked control frame.
const CONTROL_HEAD: usize = 6;

thread_local! {
    static SCRATCH_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Socket {
    /// Waits for the upgrade, and takes the TCP connection out of it. `None` if the client left.
    pub async fn upgraded(upgrade: HyperWebsocket, config: WebSocketConfig) -> Option<Self> {
        let stream = upgrade.await.ok()?;
        let (transport, early) = Transport::of(stream.into_inner().into_inner())?;
        let max_message = config.max_message_size.unwrap_or(usize::MAX);
        Some(Self {
            unfinished: 0,
            max_unfinished: max_message
                .saturating_mul(MAX_OVERHEAD)
                .saturating_add(config.read_buffer_size),
            has_early_bytes: !early.is_empty() || transport.may_hold_input(),
            transport,
            protocol: WebSocketContext::from_partially_read(early, Role::Server, Some(config)),
            unsent: SmallVec::new(),
            within_message: false,
            owes_answer: false,
            kept: None,
        })
    }

    /// The client's next message. Pings and closes are answered on the way.
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, WsError>> {
        if let Some(text) = self.kept.take() {
            return Poll::Ready(Ok(Message::Text(text)));
        }
        let mut budget = RECEIVE_BUDGET;
        loop {
            // Only when there is something: tungstenite clears its buffer at each attempt. What
            // came with the handshake is there already.
            if !self.has_early_bytes {
                let readable = ready!(self.transport.poll_read_ready(cx));
                if let Err(error) = readable {
                    return Poll::Ready(Err(error.into()));
                }
            }
            let mut edge = Edge {
                transport: &mut self.transport,
                may_write: !self.within_message,
                refused: false,
                budget,
            };
            let read = self.protocol.read(&mut edge);
            self.owes_answer |= edge.refused;
            self.unfinished += budget - edge.budget;
            budget = edge.budget;
            match read {
                Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.unfinished > self.max_unfinished {
                        return Poll::Ready(Err(self.too_long()));
                    }
                    if budget == 0 {
                        // There may be more, but others have their turn first.
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    // The readiness is used up, and so is what came early: the next look waits.
                    self.has_early_bytes = false;
                }
                Ok(message) => {
                    self.note_received(&message);
                    // Also an answer that this message asks for.
                    self.owes_answer |= matches!(message, Message::Ping(_) | Message::Close(_));
                    return Poll::Ready(Ok(message));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// For a task that was woken by nothing that it knows of. The runtime may have set the socket's
    /// readiness, which was used up, and only then have taken the waker that was registered since.
    pub(super) fn listen_anew(&mut self) {
        self.transport.forget_reader();
    }

    /// Puts a message back, to be received next.
    pub(super) fn keep(&mut self, text: Utf8Bytes) {
        self.kept = Some(text);
    }

    /// What comes after a message is read ahead with it, and is forgiven.
    fn note_received(&mut self, message: &Message) {
        self.unfinished = match message {
            Message::Ping(payload) | Message::Pong(payload) => {
                self.unfinished.saturating_sub(CONTROL_HEAD + payload.len())
            }
            Message::Text(_) | Message::Binary(_) | Message::Close(_) | Message::Frame(_) => 0,
        };
    }

    fn too_long(&self) -> WsError {
        WsError::Capacity(CapacityError::MessageTooLong {
            size: self.unfinished,
            max_size: self.max_unfinished,
        })
    }

    /// Puts whole messages behind what is unsent.
    pub(super) fn queue(&mut self, parts: impl IntoIterator<Item = Bytes>) {
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        self.unsent.extend(parts);
    }

    pub(super) fn queue_close(&mut self, code: CloseCode, reason: Utf8Bytes) {
        let mut framed = Vec::with_capacity(4 + reason.len());
        let frame = Frame::close(Some(CloseFrame { code, reason }));
        frame
            .format(&mut framed)
            .expect("writing to a Vec does not fail");
        self.queue([framed.into()]);
    }

    /// Whether something waits for the kernel.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty() || self.owes_answer || self.transport.has_unflushed()
    }

    /// Bytes that the kernel took since the last call.
    pub(super) fn take_sent_bytes(&mut self) -> usize {
        self.transport.take_sent_bytes()
    }

    /// Sends what is unsent; ready when the kernel has all of it.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let step = match self.owes_answer && !self.within_message {
                true => self.try_answer(),
                false if self.unsent.is_empty() => match self.transport.has_unflushed() {
                    true => self.transport.try_flush(),
                    false => return Poll::Ready(Ok(())),
                },
                false => self.try_send(),
            };
            match step {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.transport.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// One attempt, straight from shared bytes where there is one part.
    fn try_send(&mut self) -> io::Result<()> {
        let (portion, transport) = (self.transport.portion(), &mut self.transport);
        let sent = match (self.unsent.len(), self.unsent.first()) {
            (1, Some(first)) => transport.try_write(first)?,
            (_, Some(first)) if first.len() >= portion => transport.try_write(first)?,
            _ => SCRATCH_BUFFER.with_borrow_mut(|scratch| {
                scratch.clear();
                for part in &self.unsent {
                    let room = portion - scratch.len();
                    scratch.extend_from_slice(&part[..part.len().min(room)]);
                    if scratch.len() == portion {
                        break;
                    }
                }
                transport.try_write(scratch)
            })?,
        };
        self.drop_sent(sent);
        Ok(())
    }

    /// A part holds whole messages, so what is left of one may begin within a message.
    fn drop_sent(&mut self, mut sent: usize) {
        let mut whole = 0;
        for part in &self.unsent {
            if sent < part.len() {
                break;
            }
            sent -= part.len();
            whole += 1;
        }
        self.within_message &= whole == 0;
        if whole == self.unsent.len() {
            // The room of many parts is given back.
            self.unsent = SmallVec::new();
            return;
        }
        self.unsent.drain(..whole);
        self.unsent[0].advance(sent);
        self.within_message |= sent > 0;
    }

    /// Lets tungstenite send its answer to a ping or a close.
    fn try_answer(&mut self) -> io::Result<()> {
        let mut edge = Edge {
            transport: &mut self.transport,
            may_write: true,
            refused: false,
            budget: 0,
        };
        // Other errors say that the close has been answered: the reading side reports the end.
        if let Err(WsError::Io(error)) = self.protocol.flush(&mut edge) {
            return Err(error);
        }
        self.owes_answer = false;
        Ok(())
    }

    /// Sends what is unsent, ends our side, and waits until the peer has ended its own.
    pub(super) async fn finish(&mut self) {
        if poll_fn(|cx| self.poll_send(cx)).await.is_err() {
            return;
        }
        self.transport.end_writing();
        if poll_fn(|cx| self.poll_send(cx)).await.is_ok() {
            self.transport.part().await;
        }
    }

    /// Answers the peer's close frame after what is on its way, and waits until it is gone.
    pub(super) async fn answer_close(&mut self) {
        if !self.within_message {
            // Nothing may follow a close: what has not begun is not begun any more.
            self.unsent.clear();
        }
        self.owes_answer = true;
        self.unsent.truncate(1);
        self.finish().await;
    }

    /// Drops the connection at once, with whatever the kernel still holds.
    pub fn reset(self) {
        self.transport.reset();
    }
}

/// The connection as tungstenite sees it. Its answers go out between our messages, never
/// within one.
struct Edge<'a> {
    transport: &'a mut Transport,
    may_write: bool,
    refused: bool,
    /// Bytes that may still be read.
    budget: usize,
}

impl Read for Edge<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(self.budget);
        if most == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let read = self.transport.try_read(&mut buffer[..most])?;
        self.budget -= read;
        Ok(read)
    }
}

impl Write for Edge<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self.may_write {
            true => self.transport.try_write(bytes),
            false => Err(io::ErrorKind::WouldBlock.into()),
        };
        self.refused |= matches!(&written, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
