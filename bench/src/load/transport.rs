//! A client's socket: TCP, or TLS on it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use mio::net::TcpStream;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Trusts this certificate and no other.
pub(crate) fn tls_config(ca_file: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let pem = fs::read(ca_file).with_context(|| ca_file.display().to_string())?;
    roots.add(CertificateDer::from_pem_slice(&pem)?)?;
    let config = ClientConfig::builder().with_root_certificates(roots);
    Ok(Arc::new(config.with_no_client_auth()))
}

impl Transport {
    /// Begins to connect.
    pub(crate) fn connect(to: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let socket = TcpStream::connect(to)?;
        let Some(config) = tls else {
            return Ok(Self::Plain(socket));
        };
        let connection = ClientConnection::new(config.clone(), ServerName::from(to.ip()));
        let connection = connection.map_err(io::Error::other)?;
        let stream = StreamOwned::new(connection, socket);
        Ok(Self::Tls(Box::new(stream)))
    }

    pub(crate) fn tcp(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &mut stream.sock,
        }
    }

    /// Writes what is small enough for an empty socket buffer.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => match socket.write(bytes)? {
                written if written == bytes.len() => Ok(()),
                _ => Err(io::ErrorKind::WriteZero.into()),
            },
            Self::Tls(stream) => {
                // Kept by the connection until its handshake is done.
                stream.conn.writer().write_all(bytes)?;
                match stream.conn.complete_io(&mut stream.sock) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                    result => result.map(drop),
                }
            }
        }
    }

    /// Also whether the socket may have more: then it has to be asked again, as it tells of what
    /// comes only when it was empty before.
    pub(crate) fn receive(&mut self, into: &mut [u8]) -> io::Result<(usize, bool)> {
        match self {
            Self::Plain(socket) => {
                let read = socket.read(into)?;
                Ok((read, read == into.len()))
            }
            Self::Tls(stream) => Ok((stream.read(into)?, true)),
        }
    }
}
