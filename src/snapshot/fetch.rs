//! One question to the API, with its retries.

use std::error::Error;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::{Callback, SnapshotError};
use crate::config::{self, FormatKind};
use crate::outbound::{BodyError, Client, causes, connector, read_body, tls};

/// Shorter than the time after which common servers close an idle connection (5 s): a request
/// sent into a connection that is being closed is lost.
const IDLE: Duration = Duration::from_secs(4);

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// The API, as one route asks it.
pub(super) struct Api {
    client: Client,
    method: Method,
    timeout: Duration,
    backoff: ExponentialBuilder,
    max_bytes: usize,
    needed: Needed,
    cursor_header: HeaderName,
}

/// What the API's body has to be.
enum Needed {
    Json,
    Text,
}

/// A success of the API.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Bytes,
    /// The values of its cursor headers.
    pub(super) cursors: Vec<HeaderValue>,
}

/// Why one try failed.
enum Failure {
    /// Another try may succeed.
    Passing(SnapshotError),
    Final(SnapshotError),
}

impl Api {
    pub(super) fn new(snapshot: &config::Snapshot, format: &FormatKind) -> Self {
        let backoff = ExponentialBuilder::new()
            .with_min_delay(FIRST_BACKOFF)
            .with_max_delay(LAST_BACKOFF)
            .with_max_times(usize::try_from(snapshot.retries).unwrap_or(usize::MAX))
            .with_jitter();
        Self {
            client: client(snapshot),
            method: snapshot.method.clone(),
            timeout: snapshot.timeout,
            backoff,
            max_bytes: snapshot.max_bytes,
            needed: match format {
                FormatKind::Envelope { .. } => Needed::Json,
                FormatKind::Verbatim { .. } | FormatKind::Merge { .. } => Needed::Text,
            },
            cursor_header: snapshot.cursor_header.clone(),
        }
    }

    /// Asks until there is an answer, a failure that will not pass, or no retry left.
    pub(super) async fn ask(&self, callback: &Callback) -> Result<Answer, SnapshotError> {
        let asked = (|| self.try_once(callback))
            .retry(self.backoff.with_jitter_seed(rand::random()))
            .when(|failure| matches!(failure, Failure::Passing(_)))
            .await;
        asked.map_err(|failure| match failure {
            Failure::Passing(error) | Failure::Final(error) => error,
        })
    }

    /// One try, which has its time from connecting to the last byte of the body.
    async fn try_once(&self, callback: &Callback) -> Result<Answer, Failure> {
        let in_time = timeout(self.timeout, self.exchange(callback)).await;
        in_time.unwrap_or(Err(Failure::Final(SnapshotError::Timeout)))
    }

    async fn exchange(&self, callback: &Callback) -> Result<Answer, Failure> {
        let response = self
            .client
            .request(self.request(callback))
            .await
            .map_err(|error| self.no_response(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(unsuccessful(status));
        }
        let cursors = response.headers().get_all(&self.cursor_header);
        let cursors = cursors.iter().cloned().collect();
        let body = self.read(response).await.map_err(Failure::Final)?;
        let body = self.needed.check(status, body).map_err(Failure::Final)?;
        Ok(Answer { body, cursors })
    }

    fn request(&self, callback: &Callback) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = callback.uri.clone();
        *request.headers_mut() = callback.headers.clone();
        if self.method == Method::POST {
            // Some servers answer 411 to a POST that does not say that it is empty.
            let headers = request.headers_mut();
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        request
    }

    /// A connection that is lost before the response begins is as good as none if asking twice
    /// does no harm: mostly it was an idle one that the API was just closing.
    fn no_response(&self, error: &legacy::Error) -> Failure {
        let cause = error
            .source()
            .and_then(|e| e.downcast_ref::<hyper::Error>());
        let not_http = cause.is_some_and(hyper::Error::is_parse);
        let lost = self.method.is_safe() && !not_http;
        let unreachable = SnapshotError::Unreachable(causes(error));
        if error.is_connect() || lost {
            Failure::Passing(unreachable)
        } else {
            Failure::Final(unreachable)
        }
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, SnapshotError> {
        let body = read_body(response.into_body(), self.max_bytes).await;
        body.map_err(|error| match error {
            BodyError::TooLarge => SnapshotError::TooLarge,
            BodyError::Lost(error) => SnapshotError::Unreachable(causes(&error)),
        })
    }
}

impl Needed {
    /// The body as it is, if it can be used. 204 is how an API says that there is no state:
    /// `null` where JSON is needed, else an empty text.
    fn check(&self, status: StatusCode, body: Bytes) -> Result<Bytes, SnapshotError> {
        match self {
            Self::Json if status == StatusCode::NO_CONTENT => Ok(Bytes::from_static(b"null")),
            Self::Json => match serde_json::from_slice::<&RawValue>(&body) {
                Ok(_) => Ok(body),
                Err(_) => Err(SnapshotError::InvalidJson),
            },
            Self::Text => match std::str::from_utf8(&body) {
                Ok(_) => Ok(body),
                Err(_) => Err(SnapshotError::NotText),
            },
        }
    }
}

fn unsuccessful(status: StatusCode) -> Failure {
    match status {
        StatusCode::UNAUTHORIZED => Failure::Final(SnapshotError::Unauthorized),
        StatusCode::FORBIDDEN => Failure::Final(SnapshotError::Forbidden),
        StatusCode::NOT_FOUND => Failure::Final(SnapshotError::NotFound),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Failure::Passing(SnapshotError::Status(status))
        }
        _ if status.is_redirection() => Failure::Final(SnapshotError::Redirect(status)),
        _ => Failure::Final(SnapshotError::Status(status)),
    }
}

/// The tasks of its connections are the pool's: they end when idle, or with the pool.
fn client(snapshot: &config::Snapshot) -> Client {
    // Half a try, so that an address that does not answer is a connect error, and retried,
    // rather than a try that has run out of time.
    let connector = connector(tls(), snapshot.timeout / 2);
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(snapshot.max_in_flight)
        .build(connector)
}
