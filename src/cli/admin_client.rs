//! Questions to the admin port of a relay.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures_util::future;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::http::uri::Authority;
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
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<Address>,
}

impl Where {
    pub(super) fn address(&self, file: &Path) -> Result<Address, Failure> {
        match &self.admin {
            Some(address) => Ok(address.clone()),
            None => Ok(Config::load(file)?.server.admin_listen.into()),
        }
    }
}

/// A host, by name or by IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address(Authority);

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        match text.parse::<Authority>() {
            Ok(authority)
                if !authority.host().is_empty()
                    && authority.port_u16().is_some_and(|port| port > 0)
                    && !text.contains('@') =>
            {
                Ok(Self(authority))
            }
            _ => Err("expected a host and a port, as 127.0.0.1:9091 or relay.jobs:9091"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let text = from_here(address).to_string();
        Self(
            text.parse()
                .expect("every address with a port is an authority"),
        )
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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

/// One request, and its whole answer; the name's resolution is part of the time that it has.
pub(super) async fn ask(
    address: &Address,
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
    address: &Address,
    method: Method,
    path: &str,
) -> anyhow::Result<(StatusCode, Bytes)> {
    // All addresses of the name, one after the other.
    let stream = TcpStream::connect(address.0.as_str()).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, address.0.as_str())
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
            let address: Address = configured.parse().unwrap();
            assert_eq!(address.to_string(), asked);
        }
    }

    #[test]
    fn a_host_has_a_name_and_a_port() {
        for text in ["relay.jobs.svc:9091", "localhost:1", "relay:65535"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        let wrong = [
            "",
            "relay",
            ":9091",
            "relay:",
            "relay:0",
            "relay:65536",
            "relay:admin",
            "::1:9091",
            "http://relay:9091",
            "relay:9091/livez",
            "me@relay:9091",
            "re lay:9091",
        ];
        for text in wrong {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
