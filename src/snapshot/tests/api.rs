//! A tiny HTTP server that does what a test tells it, and remembers what it was asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::tasks::Tasks;

const DEADLINE: Duration = Duration::from_secs(10);

/// The head of one request, in lines.
pub(super) type Head = Vec<String>;

/// What to do with one request.
pub(super) enum Act {
    Reply(String),
    /// Replies when there is a permit, which it uses up.
    ReplyWhen(Arc<Semaphore>, String),
    /// Writes this, and closes the connection.
    Cut(String),
    /// Writes this, and no more.
    Stall(String),
    /// Chunks without end.
    Endless,
}

pub(super) struct Api {
    pub(super) address: SocketAddr,
    asked: watch::Receiver<Vec<Head>>,
    /// Connections that the client has closed while it was owed a reply.
    left: watch::Receiver<usize>,
    tasks: Tasks,
}

type Script = Arc<dyn Fn(usize, &Head) -> Act + Send + Sync>;

impl Api {
    /// `script` gets the number of the request, from 0 on, and its head.
    pub(super) async fn start(
        script: impl Fn(usize, &Head) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked_sender, asked) = watch::channel(Vec::new());
        let (left_sender, left) = watch::channel(0);
        let connection = Connection {
            script: Arc::new(script),
            asked: Arc::new(asked_sender),
            left: Arc::new(left_sender),
        };
        let tasks = Tasks::default();
        let connections = tasks.clone();
        tasks.spawn("api", async move {
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn("api connection", connection.clone().serve(socket));
            }
        });
        Self {
            address,
            asked,
            left,
            tasks,
        }
    }

    /// Answers every request with this.
    pub(super) async fn replying(reply: &str) -> Self {
        let reply = reply.to_owned();
        Self::start(move |_, _| Act::Reply(reply.clone())).await
    }

    pub(super) fn requests(&self) -> usize {
        self.asked.borrow().len()
    }

    pub(super) fn head(&self, number: usize) -> Head {
        self.asked.borrow()[number].clone()
    }

    /// Waits until so many requests have come.
    pub(super) async fn has_been_asked(&self, times: usize) {
        let mut asked = self.asked.clone();
        let enough = asked.wait_for(|asked| asked.len() >= times);
        timeout(DEADLINE, enough).await.unwrap().unwrap();
    }

    /// Waits until the client has left so many requests alone.
    pub(super) async fn has_been_left(&self, times: usize) {
        let mut left = self.left.clone();
        let enough = left.wait_for(|left| *left >= times);
        timeout(DEADLINE, enough).await.unwrap().unwrap();
    }

    /// How many connections are open.
    pub(super) fn connections(&self) -> usize {
        let running = self.tasks.running();
        running.get("api connection").copied().unwrap_or_default()
    }
}

#[derive(Clone)]
struct Connection {
    script: Script,
    asked: Arc<watch::Sender<Vec<Head>>>,
    left: Arc<watch::Sender<usize>>,
}

impl Connection {
    async fn serve(self, mut socket: TcpStream) {
        while let Some(head) = read_head(&mut socket).await {
            let mut number = 0;
            self.asked.send_modify(|asked| {
                number = asked.len();
                asked.push(head.clone());
            });
            match (self.script)(number, &head) {
                Act::Reply(reply) => write(&mut socket, &reply).await,
                Act::Cut(part) => return write(&mut socket, &part).await,
                Act::Stall(part) => {
                    write(&mut socket, &part).await;
                    return self.is_left(&mut socket).await;
                }
                Act::ReplyWhen(gate, reply) => {
                    tokio::select! {
                        permit = gate.acquire() => permit.unwrap().forget(),
                        () = self.is_left(&mut socket) => return,
                    }
                    write(&mut socket, &reply).await;
                }
                Act::Endless => {
                    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                    write(&mut socket, head).await;
                    while socket.write_all(b"4\r\nmore\r\n").await.is_ok() {}
                    self.left.send_modify(|left| *left += 1);
                    return;
                }
            }
        }
    }

    async fn is_left(&self, socket: &mut TcpStream) {
        // A reset is a way to leave too.
        let _: Result<usize, _> = socket.read(&mut [0; 64]).await;
        self.left.send_modify(|left| *left += 1);
    }
}

/// A client that is gone needs no reply.
async fn write(socket: &mut TcpStream, text: &str) {
    let _: Result<(), _> = socket.write_all(text.as_bytes()).await;
}

async fn read_head(socket: &mut TcpStream) -> Option<Head> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(socket.read_u8().await.ok()?);
    }
    let text = String::from_utf8(bytes).unwrap();
    Some(text.trim_end().lines().map(str::to_owned).collect())
}

/// A response with a content length.
pub(super) fn reply(status: u16, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    format!("HTTP/1.1 {status} Whatever\r\n{headers}content-length: {length}\r\n\r\n{body}")
}

pub(super) fn ok(body: &str) -> String {
    reply(200, &[], body)
}

/// A response whose length is not known ahead.
pub(super) fn chunked(chunks: &[&str]) -> String {
    let chunks: String = chunks
        .iter()
        .map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len()))
        .collect();
    format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
}
