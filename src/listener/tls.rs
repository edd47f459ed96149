//! TLS on the clients' port. The certificate is read again when its files change.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, error, info};

use crate::config;
use crate::debounce::Debounce;
use crate::metrics::{Counter, Gauge, Metrics, TLS_FAILURES, TLS_RELOADS, TLS_UNUSABLE};
use crate::tasks::Tasks;
use crate::tls::{CertificateError, CertificateFiles};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Bytes of plaintext that a connection may hold encrypted until the kernel takes them: one
/// record.
const BUFFER: usize = 16 * 1024;

/// Makes connections of clients TLS connections. Cloning shares it.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    metrics: Metrics,
}

/// The certificate of new connections.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let key = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(key.clone())
    }
}

impl Tls {
    /// Serves the certificate of the config, and what takes its place. That is a task of `tasks`.
    pub fn start(tls: &config::Tls, tasks: &Tasks, metrics: &Metrics) -> anyhow::Result<Self> {
        let current = Arc::new(Current(RwLock::new(tls.certificate.key.clone())));
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        // WebSocket over HTTP/2 (RFC 8441) is not served.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ticketer = Ticketer::new()?;
        let watched = Watched {
            files: tls.files.clone(),
            current,
            loaded: metrics.counter(&TLS_RELOADS, &["loaded"]),
            failed: metrics.counter(&TLS_RELOADS, &["failed"]),
            unusable: metrics.gauge(&TLS_UNUSABLE, &[]),
        };
        watched.unusable.set(0);
        tasks.spawn("certificate", watched.watch());
        Ok(Self {
            acceptor: Arc::new(config).into(),
            metrics: metrics.clone(),
        })
    }

    /// The handshake, within this time. `None` if there is no connection any more.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        limit: Duration,
    ) -> Option<TlsStream<TcpStream>> {
        let accepting = self.acceptor.accept_with(stream, |connection| {
            connection.set_buffer_limit(Some(BUFFER));
        });
        let reason = match timeout(limit, accepting).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => {
                debug!(%error, "a TLS handshake failed");
                reason(&error)
            }
            Err(_) => "timeout",
        };
        self.metrics.counter(&TLS_FAILURES, &[reason]).inc();
        None
    }
}

/// A peer that just goes is a probe of the port, more often than not.
fn reason(error: &io::Error) -> &'static str {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match error.kind() {
        BrokenPipe | ConnectionReset | UnexpectedEof => "closed",
        _ => "failed",
    }
}

/// A certificate's files, and who has it.
struct Watched {
    files: CertificateFiles,
    current: Arc<Current>,
    loaded: Counter,
    failed: Counter,
    unusable: Gauge,
}

impl Watched {
    /// Looks at what the files hold, since they may be replaced in any way: written anew, or by
    /// a symbolic link to a folder.
    async fn watch(self) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut debounce = Debounce::new(None);
        loop {
            let contents = self.files.read().await;
            // As far as it tells one look from the next.
            let seen = match &contents {
                Ok(contents) => Ok(contents.fingerprint()),
                Err(error) => Err(error.to_string()),
            };
            if debounce.settles(&seen) {
                let certificate = contents.and_then(|contents| contents.certificate());
                self.take(certificate.map(|certificate| certificate.key));
            }
            ticks.tick().await;
        }
    }

    fn take(&self, certificate: Result<Arc<CertifiedKey>, CertificateError>) {
        let (cert, key) = (self.files.cert.display(), self.files.key.display());
        self.unusable.set(certificate.is_err().into());
        match certificate {
            Ok(certificate) => {
                let mut current = self
                    .current
                    .0
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                if current.cert == certificate.cert {
                    return;
                }
                *current = certificate;
                self.loaded.inc();
                info!(%cert, "new connections get the new certificate");
            }
            Err(failure) => {
                self.failed.inc();
                let file = match failure {
                    CertificateError::Cert(_) => cert,
                    CertificateError::Key(_) => key,
                };
                error!(%file, %failure, "the certificate has changed and can't be used: the old one stays");
            }
        }
    }
}
