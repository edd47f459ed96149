//! What a request is answered with.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::timeout;
use tracing::debug;

use super::request::{Asked, has_valid_key};
use super::{BAD_HANDSHAKE, Router};
use crate::protocol::outcome::{Outcome, Refusal};
use crate::websocket::{self, Socket};

/// An answer with its whole body.
pub type Answer = Response<Full<Bytes>>;

/// The answer to a request on a route's path that is no WebSocket handshake (RFC 6455 section 4.2).
pub(super) fn not_an_upgrade(request: &Request<Incoming>) -> Option<Answer> {
    if request.method() != Method::GET {
        let mut answer = error_answer(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET"));
        return Some(answer);
    }
    let version = request.headers().get(SEC_WEBSOCKET_VERSION);
    if !hyper_tungstenite::is_upgrade_request(request)
        || version.is_none_or(|version| version != "13")
    {
        let mut answer = error_answer(StatusCode::UPGRADE_REQUIRED, "upgrade_required");
        let headers = answer.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Some(answer);
    }
    (!has_valid_key(request.headers())).then(|| status_answer(&BAD_HANDSHAKE))
}

/// A refusal by status, as JSON.
pub fn status_answer(refusal: &Refusal) -> Answer {
    let mut answer = error_answer(refusal.outcome.status(), refusal.reason);
    let headers = answer.headers_mut();
    if refusal.outcome == Outcome::Unauthenticated {
        // RFC 6750 section 3: a 401 says how to authenticate.
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(after) = refusal.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    answer
}

fn error_answer(status: StatusCode, reason: &str) -> Answer {
    let body = format!(r#"{{"error":"{reason}"}}"#);
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

impl Router {
    /// The answer that accepts an upgrade, and the socket that comes of it; `None` if the client
    /// leaves meanwhile, or takes too long.
    pub(super) fn upgrade(
        &self,
        request: &mut Request<Incoming>,
        asked: &Asked,
        max_message: usize,
    ) -> Result<(Answer, impl Future<Output = Option<Socket>> + Send + use<>), ()> {
        let config = websocket::receive_config(max_message);
        let (mut answer, upgrade) =
            hyper_tungstenite::upgrade(request, Some(config)).map_err(|_| ())?;
        let selected = self
            .subprotocol(asked)
            .and_then(|selected| HeaderValue::from_str(selected).ok());
        if let Some(selected) = selected {
            answer
                .headers_mut()
                .insert(SEC_WEBSOCKET_PROTOCOL, selected);
        }
        let deadline = self.config.server.handshake_timeout;
        let socket = async move {
            let upgraded = timeout(deadline, Socket::upgraded(upgrade, config)).await;
            let socket = upgraded.ok().flatten();
            if socket.is_none() {
                debug!("a client left during its upgrade");
            }
            socket
        };
        Ok((answer, socket))
    }
}
