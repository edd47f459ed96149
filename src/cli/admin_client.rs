//! Questions to the admin port of a relay on this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures_util::future;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use relay::config::Config;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Failure;

/// Where the relay is that is asked.
#[derive(clap::Args)]
pub(super) struct Where {
    /// Its admin port; absent: server.admin_listen of the configuration.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

impl Where {
    pub(super) fn address(&self, file: &Path) -> Result<SocketAddr, Failure> {
        let address = match self.admin {
            Some(address) => address,
            None => Config::load(file)?.server.admin_listen,
        };
        Ok(from_here(address))
    }
}

/// What listens on all addresses is asked on loopback.
fn from_here(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

/// One request, and its whole answer.
pub(super) async fn ask(
    address: SocketAddr,
    method: Method,
    path: &str,
    patience: Duration,
) -> anyhow::Result<(StatusCode, Bytes)> {
    timeout(patience, exchange(address, method, path))
        .await
        .unwrap_or_else(|_| Err(anyhow!("no answer within {patience:?}")))
        .with_context(|| format!("the relay at {address}"))
}

async fn exchange(
    address: SocketAddr,
    method: Method,
    path: &str,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?;
        Ok((status, body.to_bytes()))
    };
    // If the connection fails, so does the answer.
    let (answer, _) = future::join(answer, connection).await;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_asked_on_loopback() {
        let table = [
            ("0.0.0.0:9091", "127.0.0.1:9091"),
            ("[::]:9091", "[::1]:9091"),
            ("10.1.2.3:9091", "10.1.2.3:9091"),
        ];
        for (configured, asked) in table {
            assert_eq!(
                from_here(configured.parse().unwrap()),
                asked.parse().unwrap()
            );
        }
    }
}
