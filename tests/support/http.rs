//! HTTP by hand: what a test sends is exactly what it wrote.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wait::{DEADLINE, within};

/// An answer; of a body only as much as was read.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {}: {:?}", self.status, self.text()))
    }
}

/// One GET on a connection of its own.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Response {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut response = read_head(&mut stream).await?;
        read_body(&mut stream, &mut response).await;
        Some(response)
    };
    within(DEADLINE, path, exchange)
        .await
        .unwrap_or_else(|| panic!("GET {path}: no answer"))
}

/// Reads up to the end of the head, and whatever came with it. `None` if the connection ends
/// before that.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<Response> {
    let mut bytes = Vec::new();
    let end = loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            break end;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Some(Response {
        status,
        headers,
        body: bytes.split_off(end + 4),
    })
}

/// Reads the rest of a body whose length is known, or all that comes.
pub(crate) async fn read_body(stream: &mut TcpStream, response: &mut Response) {
    let length = response.header("content-length");
    let length: usize = length.map_or(usize::MAX, |text| text.parse().expect("a number"));
    while response.body.len() < length {
        match stream.read_buf(&mut response.body).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => break,
        }
    }
}
