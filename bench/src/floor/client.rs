//! One client: its handshake, and the queue of what its socket did not take at once.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::{Floor, lock, wire};

const MAX_HEAD: usize = 8 * 1024;
const CLOSE: u8 = 8;

pub(crate) struct Client {
    socket: TcpStream,
    queue: Mutex<Queue>,
    queued: Notify,
}

struct Queue {
    /// What is live waits until the history is there.
    waits_for_history: bool,
    pieces: VecDeque<Bytes>,
}

/// From the handshake to the end.
pub(crate) async fn serve(floor: Arc<Floor>, mut socket: TcpStream) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let Some(request) = wire::Upgrade::read(&head(&mut socket).await?) else {
        return Ok(());
    };
    let streams = floor.streams_of(&request.group);
    socket.write_all(request.answer.as_bytes()).await?;
    let client = Arc::new(Client {
        socket,
        queue: Mutex::new(Queue {
            waits_for_history: request.wants_history,
            pieces: VecDeque::new(),
        }),
        queued: Notify::new(),
    });
    for stream in &streams {
        lock(&stream.clients).push(client.clone());
    }
    if request.wants_history {
        for stream in streams.iter().rev() {
            let history = floor.history(&stream.key).await?;
            lock(&client.queue).pieces.push_front(history);
        }
        lock(&client.queue).waits_for_history = false;
        client.queued.notify_one();
    }
    let ended = client.run().await;
    for stream in &streams {
        lock(&stream.clients).retain(|other| !Arc::ptr_eq(other, &client));
    }
    Ok(ended?)
}

async fn head(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(512);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HEAD || socket.read_buf(&mut head).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

impl Client {
    /// Writes at once what the socket takes; the rest waits for its task.
    pub(crate) fn send(&self, framed: &Bytes) {
        let mut queue = lock(&self.queue);
        if queue.waits_for_history || !queue.pieces.is_empty() {
            queue.pieces.push_back(framed.clone());
            return;
        }
        let written = match self.socket.try_write(framed) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => return, // its task hears of it
        };
        if written < framed.len() {
            queue.pieces.push_back(framed.slice(written..));
            self.queued.notify_one();
        }
    }

    async fn run(&self) -> io::Result<()> {
        let mut received = [0; 256];
        loop {
            tokio::select! {
                readable = self.socket.readable() => {
                    readable?;
                    match self.socket.try_read(&mut received) {
                        Ok(0) => return Ok(()),
                        Ok(_) if received[0] & 0x0f == CLOSE => return Ok(()),
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                () = self.queued.notified() => self.drain().await?,
            }
        }
    }

    async fn drain(&self) -> io::Result<()> {
        while !self.write_queued()? {
            self.socket.writable().await?;
        }
        Ok(())
    }

    /// Whether all is written.
    fn write_queued(&self) -> io::Result<bool> {
        let mut queue = lock(&self.queue);
        while let Some(piece) = queue.pieces.front_mut() {
            match self.socket.try_write(piece) {
                Ok(written) => piece.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            if piece.is_empty() {
                queue.pieces.pop_front();
            }
        }
        Ok(true)
    }
}
