//! Questions that the relay asks over HTTP: TLS, bodies with a bound, and errors that say why.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tracing::info;

/// Asks with an empty body.
pub type Client = legacy::Client<Connector, Empty<Bytes>>;

/// Connects over http and https.
pub type Connector = HttpsConnector<HttpConnector>;

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is longer than it may be.
    #[error("the body is too large")]
    TooLarge,
    /// The connection was lost before its end.
    #[error("{}", causes(.0))]
    Lost(hyper::Error),
}

/// A connector that gives up on an address after `patience`.
pub fn connector(tls: ClientConfig, patience: Duration) -> Connector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(patience));
    HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp)
}

/// TLS with the system's root certificates, which are read once.
pub fn tls() -> ClientConfig {
    static TLS: LazyLock<ClientConfig> = LazyLock::new(|| trusting(ROOTS.clone()));
    TLS.clone()
}

/// TLS with these root certificates beside the system's. One that can't be used is passed over.
pub fn tls_trusting(authorities: Vec<CertificateDer<'static>>) -> ClientConfig {
    let mut roots = ROOTS.clone();
    roots.add_parsable_certificates(authorities);
    trusting(roots)
}

/// The certificates of a PEM file.
///
/// # Errors
/// What is wrong with the file, to be read after its name; one without any usable certificate
/// is wrong too.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(file).map_err(|error| format!("can't be read: {error}"))?;
    certificates_of(&pem)
}

/// The same for its content.
///
/// # Errors
/// See [`certificates`].
pub fn certificates_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| format!("is no PEM: {error}"))?;
    let usable = RootCertStore::empty().add_parsable_certificates(certificates.iter().cloned());
    if usable.0 == 0 {
        return Err("holds no certificate".to_owned());
    }
    Ok(certificates)
}

/// Reads a body, and not a byte more than it may have: dropped unread, it takes its connection
/// with it.
///
/// # Errors
/// [`BodyError`], also where the announced length alone is too large.
pub async fn read_body(mut body: Incoming, max_bytes: usize) -> Result<Bytes, BodyError> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > max_bytes {
        return Err(BodyError::TooLarge);
    }
    let mut bytes = Vec::with_capacity(announced);
    while let Some(frame) = body.frame().await {
        // Trailers say nothing that is needed.
        let Ok(data) = frame.map_err(BodyError::Lost)?.into_data() else {
            continue;
        };
        if data.len() > max_bytes - bytes.len() {
            return Err(BodyError::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    // A body may be kept for long, and what it grew by beyond its end with it.
    bytes.shrink_to_fit();
    Ok(bytes.into())
}

/// An error with all that it was caused by: `hyper`'s own texts say little.
pub fn causes(error: &dyn Error) -> Arc<str> {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.into()
}

/// The system's root certificates.
static ROOTS: LazyLock<RootCertStore> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        // An image without certificates is fine where everything is asked over http.
        let error = found.errors.first().map(ToString::to_string);
        info!(
            error,
            "no root certificates: what is asked over https will fail"
        );
    }
    roots
});

fn trusting(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the versions that rustls takes for safe")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
