//! One question to the endpoint of a JWKS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::header::{ACCEPT, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::Algorithm;
use tokio::time::timeout;

use super::set::KeySet;
use crate::config::Jwks;
use crate::outbound::{
    BodyError, Client, causes, certificates_of, connector, read_body, tls, tls_trusting,
};

/// From connecting to the last byte.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// Large issuers have a few KiB.
const MAX_BYTES: usize = 1024 * 1024;
/// An authority's certificates.
const MAX_CA_BYTES: u64 = 1024 * 1024;

const NAME: &str = concat!("relay/", env!("CARGO_PKG_VERSION"));

/// Why there is no new set. Its text has no URL and no body in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// The file of authorities can't be used.
    #[error("ca_file {0}")]
    CaFile(String),
    /// No connection, or it was lost before the whole answer was there.
    #[error("it could not be reached: {0}")]
    Unreachable(Arc<str>),
    /// The whole took longer than it may.
    #[error("no answer within {TIMEOUT:?}")]
    Timeout,
    /// Anything but 200. Redirects are not followed.
    #[error("it answered {}", .0.as_u16())]
    Status(StatusCode),
    /// Over a mebibyte.
    #[error("its answer is too large")]
    TooLarge,
    /// No JSON, or no list of keys in it.
    #[error("its answer is no JWKS")]
    NoSet,
    /// None of so many keys fits the config's algorithms.
    #[error("none of its {0} keys can be used with the algorithms of the config")]
    NoUsableKey(usize),
}

impl JwksError {
    /// Every label of the metric, in the order of [`Self::label`].
    pub(super) const LABELS: [&'static str; 7] = [
        "ca_file",
        "unreachable",
        "timeout",
        "status",
        "too_large",
        "no_set",
        "no_usable_key",
    ];

    /// Its label in the metric.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::CaFile(_) => "ca_file",
            Self::Unreachable(_) => "unreachable",
            Self::Timeout => "timeout",
            Self::Status(_) => "status",
            Self::TooLarge => "too_large",
            Self::NoSet => "no_set",
            Self::NoUsableKey(_) => "no_usable_key",
        }
    }
}

/// Fetches the set. One without a usable key is an error, so that a mistake at the issuer does
/// not lock everybody out.
pub(super) async fn fetch(jwks: &Jwks, algorithms: &[Algorithm]) -> Result<KeySet, JwksError> {
    let answer = timeout(TIMEOUT, ask(jwks)).await;
    let body = answer.unwrap_or(Err(JwksError::Timeout))?;
    let set = KeySet::read(&body, algorithms).ok_or(JwksError::NoSet)?;
    match set.len() {
        0 => Err(JwksError::NoUsableKey(set.skipped)),
        _ => Ok(set),
    }
}

async fn ask(jwks: &Jwks) -> Result<bytes::Bytes, JwksError> {
    let client = client(jwks.ca_file.as_deref()).await?;
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = jwks.url.clone();
    let headers = request.headers_mut();
    let kinds = HeaderValue::from_static("application/jwk-set+json, application/json");
    headers.insert(ACCEPT, kinds);
    headers.insert(USER_AGENT, HeaderValue::from_static(NAME));
    let response = client.request(request).await;
    let response = response.map_err(|error| JwksError::Unreachable(causes(&error)))?;
    if response.status() != StatusCode::OK {
        return Err(JwksError::Status(response.status()));
    }
    let body = read_body(response.into_body(), MAX_BYTES).await;
    body.map_err(|error| match error {
        BodyError::TooLarge => JwksError::TooLarge,
        BodyError::Lost(error) => JwksError::Unreachable(causes(&error)),
    })
}

/// A client for one question: minutes pass until the next, and the authorities may have
/// changed by then.
async fn client(ca_file: Option<&Path>) -> Result<Client, JwksError> {
    let tls = match ca_file {
        None => tls(),
        Some(file) => {
            let pem = read_bounded(file).await.map_err(JwksError::CaFile)?;
            tls_trusting(certificates_of(&pem).map_err(JwksError::CaFile)?)
        }
    };
    Ok(legacy::Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector(tls, TIMEOUT / 2)))
}

async fn read_bounded(file: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error| format!("can't be read: {error}");
    let size = tokio::fs::metadata(file).await.map_err(unreadable)?.len();
    if size > MAX_CA_BYTES {
        return Err("is too large".to_owned());
    }
    tokio::fs::read(file).await.map_err(unreadable)
}
