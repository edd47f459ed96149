//! A WebSocket handshake, written by hand: tests send what no library would, and see what the
//! relay answers.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Error};
use tokio_tungstenite::{Connector, client_async_tls_with_config};

use super::client::{Client, Received};
use super::http::{Response, read_body, read_head};
use super::token::token;
use super::wait::{DEADLINE, within};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A request that is being put together.
#[derive(Clone)]
pub(crate) struct Upgrade {
    address: SocketAddr,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    protocols: Vec<String>,
    token: Option<String>,
    receive_buffer: Option<usize>,
    from: Option<IpAddr>,
    early: Vec<u8>,
}

/// How the relay has answered.
#[derive(Debug)]
pub(crate) enum Answer {
    Upgraded(Box<Client>),
    Status(Response),
    Dropped,
}

/// How the relay has refused.
#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    Status(u16, Value),
    Closed(u16, String),
    Dropped,
}

impl Refusal {
    pub(crate) fn closed(code: u16, reason: &str) -> Self {
        Self::Closed(code, reason.to_owned())
    }

    pub(crate) fn status(status: u16, error: &str) -> Self {
        Self::Status(status, json!({ "error": error }))
    }

    /// Close code or status; 0 for a dropped connection.
    pub(crate) fn code(&self) -> u16 {
        match self {
            Self::Status(code, _) | Self::Closed(code, _) => *code,
            Self::Dropped => 0,
        }
    }

    /// The reason, wherever it was said.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Status(_, body) => body["error"].as_str().unwrap_or_default(),
            Self::Closed(_, reason) => reason,
            Self::Dropped => "",
        }
    }
}

impl Upgrade {
    pub(crate) fn new(address: SocketAddr, path: &str) -> Self {
        Self {
            address,
            path: path.to_owned(),
            query: Vec::new(),
            headers: Vec::new(),
            protocols: Vec::new(),
            token: Some(token("alice")),
            receive_buffer: None,
            from: None,
            early: Vec::new(),
        }
    }

    /// Elsewhere, such as through a proxy.
    pub(crate) fn through(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    pub(crate) fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    pub(crate) fn no_token(mut self) -> Self {
        self.token = None;
        self
    }

    pub(crate) fn cursor(self, cursor: &str) -> Self {
        self.query("cursor", cursor)
    }

    /// A query variable, percent-encoded.
    pub(crate) fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A further header, or another value for one that every handshake has.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn protocol(mut self, protocol: &str) -> Self {
        self.protocols.push(protocol.to_owned());
        self
    }

    /// A client whose kernel takes little: what it does not read stays with the relay.
    pub(crate) fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// From another address of this machine, such as 127.0.0.2.
    pub(crate) fn from(mut self, address: &str) -> Self {
        self.from = Some(address.parse().expect("an address"));
        self
    }

    /// Bytes that go in one segment with the head.
    pub(crate) fn early(mut self, bytes: Vec<u8>) -> Self {
        self.early = bytes;
        self
    }

    /// A client, or the test fails.
    pub(crate) async fn open(self) -> Client {
        let path = self.path.clone();
        match self.send().await {
            Answer::Upgraded(client) => *client,
            Answer::Status(response) => {
                panic!("{path}: {} {}", response.status, response.text())
            }
            Answer::Dropped => panic!("{path}: the connection was dropped"),
        }
    }

    /// A refusal that sends nothing else, or the test fails.
    pub(crate) async fn refused(self) -> Refusal {
        let path = self.path.clone();
        match self.send().await {
            Answer::Status(response) => {
                let body = serde_json::from_slice(&response.body).unwrap_or_default();
                Refusal::Status(response.status, body)
            }
            Answer::Dropped => Refusal::Dropped,
            Answer::Upgraded(mut client) => match client.next().await {
                Received::Closed(code, reason) => Refusal::Closed(code, reason),
                Received::Cut => Refusal::Dropped,
                Received::Text(text) => panic!("{path}: not refused, but sent {text}"),
            },
        }
    }

    pub(crate) async fn send(self) -> Answer {
        let stream = within(DEADLINE, "the relay accepts", self.connect()).await;
        let address = self.address;
        let stream = stream.unwrap_or_else(|error| panic!("can't connect to {address}: {error}"));
        within(
            DEADLINE,
            "the relay answers a handshake",
            self.exchange(stream),
        )
        .await
    }

    /// The same with a relay that may be gone, which drops the connection; without a deadline.
    pub(crate) async fn attempt(self) -> Answer {
        match self.connect().await {
            Ok(stream) => self.exchange(stream).await,
            Err(_) => Answer::Dropped,
        }
    }

    async fn exchange(self, mut stream: TcpStream) -> Answer {
        // A relay that has closed already shows when its answer is read.
        let bytes = [self.head().as_bytes(), &self.early].concat();
        stream.write_all(&bytes).await.ok();
        let Some(mut response) = read_head(&mut stream).await else {
            return Answer::Dropped;
        };
        if response.status != 101 {
            read_body(&mut stream, &mut response).await;
            return Answer::Status(response);
        }
        let accept = derive_accept_key(KEY.as_bytes());
        assert_eq!(response.header("sec-websocket-accept"), Some(&*accept));
        let protocol = response.header("sec-websocket-protocol");
        let protocol = protocol.map(ToOwned::to_owned);
        let client = Client::new(stream, response.body, protocol).await;
        Answer::Upgraded(Box::new(client))
    }

    /// A client over TLS, by a library all the way; or why there is none.
    pub(crate) async fn open_tls(self, trust: Connector) -> Result<Client, Error> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(&self.query);
        let (port, path, query) = (self.address.port(), &self.path, query.finish());
        let uri = format!("wss://localhost:{port}{path}?{query}");
        let mut request = ClientRequestBuilder::new(uri.parse().expect("an address"));
        if let Some(token) = &self.token {
            request = request.with_header("authorization", format!("Bearer {token}"));
        }
        let stream = self.connect().await?;
        let config = Some(Client::config());
        let opening = client_async_tls_with_config(request, stream, config, Some(trust));
        let (socket, _) = within(DEADLINE, "a handshake over TLS", opening).await?;
        Ok(Client::of(socket, None))
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("a socket of tokio's");
        socket.set_tcp_nodelay(true).expect("a TCP socket");
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes).expect("a size");
        }
        if let Some(address) = self.from {
            let bound = socket.bind(&SocketAddr::new(address, 0).into());
            bound.expect("an address of this machine");
        }
        let socket = TcpSocket::from_std_stream(socket.into());
        socket.connect(self.address).await
    }

    /// The request's head, as it goes over the wire.
    fn head(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(&self.query);
        let (query, path) = (query.finish(), &self.path);
        let mark = if query.is_empty() { "" } else { "?" };
        let mut head = format!("GET {path}{mark}{query} HTTP/1.1\r\n");
        let mut line = |name: &str, value: &str| {
            write!(head, "{name}: {value}\r\n").expect("a string takes everything");
        };
        let usual = [
            ("host", self.address.to_string()),
            ("connection", "Upgrade".to_owned()),
            ("upgrade", "websocket".to_owned()),
            ("sec-websocket-version", "13".to_owned()),
            ("sec-websocket-key", KEY.to_owned()),
        ];
        for (name, value) in usual {
            if !self.headers.iter().any(|(own, _)| own == name) {
                line(name, &value);
            }
        }
        if let Some(token) = &self.token {
            line("authorization", &format!("Bearer {token}"));
        }
        if !self.protocols.is_empty() {
            line("sec-websocket-protocol", &self.protocols.join(", "));
        }
        for (name, value) in &self.headers {
            line(name, value);
        }
        head.push_str("\r\n");
        head
    }
}
