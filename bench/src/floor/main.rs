//! The floor: the least that Redis Streams to WebSocket can cost with tokio on this kernel.
//!
//! No authentication, no limits, no framing library, no proof that nothing is missing. One XREAD
//! names all streams, each entry is framed once, and each client gets one write per batch. It is
//! no product: what is measured beside it is told as a ratio to it.

mod client;
mod redis;
mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bytes::Bytes;
use clap::Parser;
use tokio::net::TcpSocket;
use tokio::sync::Notify;

use client::Client;
use redis::{Redis, Value};

const BACKLOG: u32 = 4096;
/// How long new streams gather before the blocked XREAD is interrupted for them.
const GATHER: Duration = Duration::from_millis(10);

#[derive(Parser)]
#[command(about = "The floor that the relay is measured against")]
struct Options {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    redis: SocketAddr,
    /// A client of the path /N reads bench:N:0 up to this many.
    #[arg(long, default_value_t = 1)]
    streams_per_client: usize,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// One stream, with everybody who reads it.
struct Stream {
    key: String,
    clients: Mutex<Vec<Arc<Client>>>,
    /// The id of the last entry that was sent.
    cursor: Mutex<String>,
}

/// What all tasks share.
pub(crate) struct Floor {
    options: Options,
    streams: Mutex<HashMap<String, Arc<Stream>>>,
    /// A stream was added that the XREAD under way does not name.
    is_outdated: AtomicBool,
    stream_added: Notify,
    /// The connection that XREAD blocks on.
    reader_id: AtomicI64,
    /// For history; opened by the first who needs it.
    history: tokio::sync::Mutex<Option<Redis>>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = if options.threads == 1 {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads)
            .enable_all()
            .build()?
    };
    runtime.block_on(async {
        // A task, so that with several threads a worker accepts, and not this thread.
        tokio::spawn(serve(options)).await?
    })
}

async fn serve(options: Options) -> anyhow::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(options.listen)?;
    let listener = socket.listen(BACKLOG)?;
    let floor = Arc::new(Floor {
        options,
        streams: Mutex::default(),
        is_outdated: AtomicBool::new(false),
        stream_added: Notify::new(),
        reader_id: AtomicI64::new(0),
        history: tokio::sync::Mutex::default(),
    });
    let reader = Redis::connect(floor.options.redis).await?;
    let interrupter = Redis::connect(floor.options.redis).await?;
    tokio::spawn(end_with_error(read(floor.clone(), reader)));
    tokio::spawn(end_with_error(interrupt(floor.clone(), interrupter)));
    loop {
        let (socket, _) = listener.accept().await?;
        let floor = floor.clone();
        tokio::spawn(async move {
            // A client that has gone, or is no WebSocket client, is nobody's concern here.
            let _ = client::serve(floor, socket).await;
        });
    }
}

/// There is no floor without Redis.
async fn end_with_error(task: impl Future<Output = anyhow::Result<()>>) {
    if let Err(error) = task.await {
        eprintln!("floor: {error:#}");
        std::process::exit(1);
    }
}

/// Reads all streams and writes to all clients.
async fn read(floor: Arc<Floor>, mut redis: Redis) -> anyhow::Result<()> {
    if let Value::Integer(id) = redis.call(&[b"CLIENT", b"ID"]).await? {
        floor.reader_id.store(id, Ordering::SeqCst);
    }
    let mut framed = Vec::new();
    loop {
        floor.is_outdated.store(false, Ordering::SeqCst);
        let streams = lock(&floor.streams).clone();
        if streams.is_empty() {
            floor.stream_added.notified().await;
            continue;
        }
        let (keys, cursors): (Vec<_>, Vec<_>) = streams
            .values()
            .map(|stream| (stream.key.as_bytes(), lock(&stream.cursor).clone()))
            .unzip();
        let mut command: Vec<&[u8]> = vec![b"XREAD", b"COUNT", b"1000", b"BLOCK", b"0", b"STREAMS"];
        command.extend(keys);
        command.extend(cursors.iter().map(String::as_bytes));
        let Value::Array(reply) = redis.call(&command).await? else {
            continue; // interrupted
        };
        for named in &reply {
            let Value::Array(pair) = named else { continue };
            let [Value::Bulk(key), Value::Array(entries)] = &pair[..] else {
                continue;
            };
            let key = std::str::from_utf8(key).context("a key that is not ours")?;
            let Some(stream) = streams.get(key) else {
                continue;
            };
            framed.clear();
            if let Some(last) = wire::push_entries(&mut framed, entries) {
                *lock(&stream.cursor) = last;
            }
            let framed = Bytes::copy_from_slice(&framed);
            for client in lock(&stream.clients).iter() {
                client.send(&framed);
            }
        }
    }
}

/// Makes the reader name new streams.
async fn interrupt(floor: Arc<Floor>, mut redis: Redis) -> anyhow::Result<()> {
    loop {
        floor.stream_added.notified().await;
        tokio::time::sleep(GATHER).await;
        if floor.is_outdated.load(Ordering::SeqCst) {
            let id = floor.reader_id.load(Ordering::SeqCst).to_string();
            redis.call(&[b"CLIENT", b"UNBLOCK", id.as_bytes()]).await?;
        }
    }
}

impl Floor {
    /// The streams of the path `/N`.
    fn streams_of(&self, group: &str) -> Vec<Arc<Stream>> {
        (0..self.options.streams_per_client)
            .map(|index| self.stream(format!("bench:{group}:{index}")))
            .collect()
    }

    fn stream(&self, key: String) -> Arc<Stream> {
        let mut streams = lock(&self.streams);
        if let Some(stream) = streams.get(&key) {
            return stream.clone();
        }
        let stream = Arc::new(Stream {
            key: key.clone(),
            clients: Mutex::default(),
            cursor: Mutex::new(id_before_now()),
        });
        streams.insert(key, stream.clone());
        if !self.is_outdated.swap(true, Ordering::SeqCst) {
            // The reader if it waits for a first stream, else the one who interrupts it.
            self.stream_added.notify_waiters();
            self.stream_added.notify_one();
        }
        stream
    }

    /// Everything in the stream, framed.
    async fn history(&self, key: &str) -> anyhow::Result<Bytes> {
        let mut redis = self.history.lock().await;
        let redis = match &mut *redis {
            Some(redis) => redis,
            none => none.insert(Redis::connect(self.options.redis).await?),
        };
        let reply = redis.call(&[b"XRANGE", key.as_bytes(), b"-", b"+"]).await?;
        let mut framed = Vec::new();
        if let Value::Array(entries) = reply {
            wire::push_entries(&mut framed, &entries);
        }
        Ok(framed.into())
    }
}

fn id_before_now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = now.unwrap_or_default().as_millis();
    format!("{}-0", now_ms.saturating_sub(1))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
