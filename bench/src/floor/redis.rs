//! As much of RESP2 as the floor needs, with nothing between it and the socket.

use std::net::SocketAddr;

use anyhow::bail;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A reply. Simple strings come as [`Value::Bulk`].
#[derive(Debug)]
pub(crate) enum Value {
    Nil,
    Integer(i64),
    Bulk(Vec<u8>),
    Array(Vec<Self>),
}

pub(crate) struct Redis {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Redis {
    pub(crate) async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            received: Vec::with_capacity(64 * 1024),
        })
    }

    pub(crate) async fn call(&mut self, command: &[&[u8]]) -> anyhow::Result<Value> {
        self.socket.write_all(&encoded(command)).await?;
        loop {
            if let Some((value, used)) = parsed(&self.received)? {
                self.received.drain(..used);
                return Ok(value);
            }
            if self.socket.read_buf(&mut self.received).await? == 0 {
                bail!("Redis has closed the connection");
            }
        }
    }
}

fn encoded(command: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", command.len()).into_bytes();
    for part in command {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// The value at the front and how long it is; `None` if it is not whole yet.
fn parsed(bytes: &[u8]) -> anyhow::Result<Option<(Value, usize)>> {
    let Some(end) = memchr::memchr(b'\r', bytes).filter(|end| bytes.len() >= end + 2) else {
        return Ok(None);
    };
    let line = std::str::from_utf8(&bytes[1..end])?;
    let mut used = end + 2;
    let value = match bytes[0] {
        b'+' => Value::Bulk(line.as_bytes().to_vec()),
        b'-' => bail!("Redis answers {line}"),
        b':' => Value::Integer(line.parse()?),
        b'$' | b'*' if line.starts_with('-') => Value::Nil,
        b'$' => {
            let length: usize = line.parse()?;
            if bytes.len() < used + length + 2 {
                return Ok(None);
            }
            let bulk = bytes[used..used + length].to_vec();
            used += length + 2;
            Value::Bulk(bulk)
        }
        b'*' => {
            let count: usize = line.parse()?;
            let mut values = Vec::with_capacity(count);
            for _ in 0..count {
                let Some((value, length)) = parsed(&bytes[used..])? else {
                    return Ok(None);
                };
                values.push(value);
                used += length;
            }
            Value::Array(values)
        }
        other => bail!("Redis answers with a {}", char::from(other)),
    };
    Ok(Some((value, used)))
}
