//! A client of the relay that knows what it expects.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::wait::{DEADLINE, within};

/// It reads only when it is asked for a frame: between that it is a slow client.
pub(crate) struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    protocol: Option<String>,
    cursor: Option<String>,
    pings: usize,
    pongs: usize,
    ignored: Vec<&'static str>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a client at {:?}", self.cursor)
    }
}

/// What comes from the relay, pings apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Text(String),
    /// A close frame; 1005 if it has no code.
    Closed(u16, String),
    /// The end of the connection without a close frame.
    Cut,
}

impl Client {
    /// On a stream that has been upgraded, with the bytes that came after its head.
    pub(crate) async fn new(stream: TcpStream, read: Vec<u8>, protocol: Option<String>) -> Self {
        let stream = MaybeTlsStream::Plain(stream);
        let config = Some(Self::config());
        let socket = WebSocketStream::from_partially_read(stream, read, Role::Client, config);
        Self::of(socket.await, protocol)
    }

    /// It takes messages of any size.
    pub(crate) fn config() -> WebSocketConfig {
        WebSocketConfig::default()
            .max_message_size(None)
            .max_frame_size(None)
            // A test has thousands of clients.
            .read_buffer_size(8 * 1024)
    }

    /// On a socket that is there.
    pub(crate) fn of(
        socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
        protocol: Option<String>,
    ) -> Self {
        Self {
            socket,
            protocol,
            cursor: None,
            pings: 0,
            pongs: 0,
            ignored: Vec::new(),
        }
    }

    /// The subprotocol that the relay has selected.
    pub(crate) fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    /// That of the last frame that had one: all that a client has to keep.
    pub(crate) fn cursor(&self) -> String {
        self.cursor.clone().expect("a frame with a cursor has come")
    }

    /// How many pings have come so far.
    pub(crate) fn pings(&self) -> usize {
        self.pings
    }

    /// How many of its own pings have been answered so far.
    pub(crate) fn pongs(&self) -> usize {
        self.pongs
    }

    /// From now on its kernel takes this much, when it was little before.
    pub(crate) fn widen(&self, bytes: usize) {
        let MaybeTlsStream::Plain(tcp) = self.socket.get_ref() else {
            panic!("only plain connections are widened");
        };
        let socket = SockRef::from(tcp);
        socket.set_recv_buffer_size(bytes).expect("a size");
    }

    /// The next message, whenever it comes.
    pub(crate) async fn receive(&mut self) -> Received {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Received::Text(text.to_string()),
                Some(Ok(Message::Close(frame))) => {
                    // The answer to the close; the relay may be gone already.
                    self.socket.flush().await.ok();
                    return frame.map_or(Received::Closed(1005, String::new()), |frame| {
                        Received::Closed(frame.code.into(), frame.reason.to_string())
                    });
                }
                Some(Ok(Message::Ping(_))) => self.pings += 1,
                Some(Ok(Message::Pong(_))) => self.pongs += 1,
                Some(Ok(Message::Frame(frame))) => panic!("a part of a message: {frame}"),
                Some(Ok(Message::Binary(bytes))) => panic!("a binary message: {bytes:?}"),
                Some(Err(_)) | None => return Received::Cut,
            }
        }
    }

    /// The next message, within the deadline.
    pub(crate) async fn next(&mut self) -> Received {
        within(DEADLINE, "a message from the relay", self.receive()).await
    }

    /// The text of the next message.
    pub(crate) async fn text(&mut self) -> String {
        match self.next().await {
            Received::Text(text) => text,
            other => panic!("{other:?} instead of a frame"),
        }
    }

    /// From now on frames of this type are passed over: they may come or not.
    pub(crate) fn ignore(&mut self, kind: &'static str) {
        self.ignored.push(kind);
    }

    /// The next frame that is not ignored.
    pub(crate) async fn frame(&mut self) -> Value {
        loop {
            let text = self.text().await;
            let frame = self.take(&text);
            if !self.ignored.iter().any(|kind| frame["type"] == *kind) {
                return frame;
            }
        }
    }

    fn take(&mut self, text: &str) -> Value {
        let frame: Value = serde_json::from_str(text)
            .unwrap_or_else(|error| panic!("{error} in the frame {text}"));
        if let Some(cursor) = frame["cursor"].as_str() {
            self.cursor = Some(cursor.to_owned());
        }
        frame
    }

    pub(crate) async fn expect(&mut self, kind: &str) -> Value {
        let frame = self.frame().await;
        assert_eq!(frame["type"], kind, "expected {kind}, got {frame}");
        frame
    }

    /// A snapshot for this reason; says its data.
    pub(crate) async fn expect_snapshot(&mut self, reason: &str) -> Value {
        let mut frame = self.expect("snapshot").await;
        assert_eq!(frame["reason"], reason, "{frame}");
        assert!(frame["cursor"].is_string(), "{frame}");
        frame["data"].take()
    }

    /// An entry of a stream, with this id and data; says the frame.
    pub(crate) async fn expect_event(&mut self, id: &str, data: impl Into<Value>) -> Value {
        let frame = self.expect("event").await;
        assert_eq!(frame["id"], id, "{frame}");
        assert_eq!(frame["data"], data.into(), "{frame}");
        assert!(frame["cursor"].is_string(), "{frame}");
        assert!(frame["stream"].is_string(), "{frame}");
        frame
    }

    /// Entries `first-0` to `last-0`, in order, whatever their data.
    pub(crate) async fn expect_events(&mut self, first: u64, last: u64) {
        for number in first..=last {
            let frame = self.expect("event").await;
            assert_eq!(frame["id"], format!("{number}-0"), "{frame}");
        }
    }

    /// The same for thousands of entries: by the head of each frame alone, which is not parsed.
    pub(crate) async fn expect_many_events(&mut self, first: u64, last: u64) {
        for number in first..=last {
            let text = self.text().await;
            let head = format!(r#"{{"type":"event","cursor":"{number}-0","#);
            assert!(text.starts_with(&head), "{number}-0 expected, got {text}");
        }
    }

    /// The same where `live` may come between them: the position noted at the attach may be
    /// older than these entries.
    pub(crate) async fn expect_events_around_live(&mut self, first: u64, last: u64) {
        let mut number = first;
        while number <= last {
            let frame = self.frame().await;
            if frame["type"] != "live" {
                assert_eq!(frame["id"], format!("{number}-0"), "{frame}");
                number += 1;
            }
        }
    }

    /// All is said that was there at the attach; says the cursor.
    pub(crate) async fn expect_live(&mut self) -> String {
        let frame = self.expect("live").await;
        let cursor = frame["cursor"].as_str();
        cursor.expect("live has a cursor").to_owned()
    }

    /// Continuity is lost, for this reason; says the frame.
    pub(crate) async fn expect_resync(&mut self, reason: &str) -> Value {
        let frame = self.expect("resync").await;
        assert_eq!(frame["reason"], reason, "{frame}");
        assert!(frame["lost"].is_string(), "{frame}");
        assert!(frame.get("cursor").is_none(), "{frame}");
        frame
    }

    /// Continuity is lost, the whole way: told, a snapshot for the same reason, and live again.
    pub(crate) async fn expect_fresh_start(&mut self, reason: &str) -> String {
        self.expect_resync(reason).await;
        self.expect_snapshot(reason).await;
        self.expect_live().await
    }

    /// Word of Redis or of the API; says the frame.
    pub(crate) async fn expect_status(&mut self, state: &str) -> Value {
        let frame = self.expect("status").await;
        assert_eq!(frame["state"], state, "{frame}");
        assert!(frame.get("cursor").is_none(), "{frame}");
        frame
    }

    /// The end, with this close code, and nothing before it; says the reason.
    pub(crate) async fn expect_close(&mut self, code: u16) -> String {
        match self.next().await {
            Received::Closed(seen, reason) => {
                assert_eq!(seen, code, "closed for {reason:?}");
                reason
            }
            other => panic!("{other:?} instead of a close with {code}"),
        }
    }

    /// Nothing at all for this long.
    pub(crate) async fn expect_silence(&mut self, duration: Duration) {
        let message = tokio::time::timeout(duration, self.receive()).await;
        if let Ok(message) = message {
            panic!("{message:?} instead of silence");
        }
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn drain(mut self) -> (Vec<String>, Received) {
        let mut texts = Vec::new();
        loop {
            match self.next().await {
                Received::Text(text) => texts.push(text),
                end => return (texts, end),
            }
        }
    }

    /// Sends a text message. A relay that has closed shows when the answer is read.
    pub(crate) async fn send(&mut self, text: impl Into<String>) {
        self.send_message(Message::text(text.into())).await;
    }

    pub(crate) async fn send_ping(&mut self) {
        self.send_message(Message::Ping("are you there".into()))
            .await;
    }

    /// Sends a pong that nobody has asked for.
    pub(crate) async fn send_pong(&mut self) {
        self.send_message(Message::Pong("here I am".into())).await;
    }

    /// Sends a part of a text message that may never end.
    pub(crate) async fn send_fragment(&mut self, text: &'static str, is_first: bool) {
        let opcode = if is_first { Data::Text } else { Data::Continue };
        let fragment = Frame::message(text, OpCode::Data(opcode), false);
        self.send_message(Message::Frame(fragment)).await;
    }

    /// Sends the end of a message in parts.
    pub(crate) async fn send_last_fragment(&mut self, text: &'static str) {
        let fragment = Frame::message(text, OpCode::Data(Data::Continue), true);
        self.send_message(Message::Frame(fragment)).await;
    }

    async fn send_message(&mut self, message: Message) {
        let sent = self.socket.send(message);
        within(DEADLINE, "a message to the relay", sent).await.ok();
    }

    /// Sends bytes that may be whole messages, parts of some, or none.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        let MaybeTlsStream::Plain(tcp) = self.socket.get_mut() else {
            panic!("only over plain connections");
        };
        let sent = tcp.write_all(bytes);
        within(DEADLINE, "bytes to the relay", sent).await.ok();
    }

    /// Begins the closing handshake with this code.
    pub(crate) async fn close(&mut self, code: u16) {
        let frame = CloseFrame {
            code: code.into(),
            reason: Utf8Bytes::default(),
        };
        self.send_message(Message::Close(Some(frame))).await;
    }

    /// Goes without a word, as a client does that loses its network.
    pub(crate) fn vanish(self) {
        drop(self);
    }
}
