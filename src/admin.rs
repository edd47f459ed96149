//! The admin port: probes, metrics, status, and the request to drain.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use crate::auth::Authority;
use crate::drain::Drain;
use crate::hub::{Health, Hub};
use crate::metrics::Metrics;
use crate::router::Router;
use crate::session::ending::Phase;
use crate::tasks::Tasks;

const MAX_CONNECTIONS: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_HEAD: usize = 8192;
const PAUSE: Duration = Duration::from_millis(100);

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// The text format that Prometheus asks for.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers every request on the admin port.
pub struct Admin {
    hub: Hub,
    authority: Arc<Authority>,
    router: Arc<Router>,
    drain: Drain,
    metrics: Metrics,
    grace: Duration,
    started: Instant,
}

/// What `/readyz` says.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Readiness {
    ready: bool,
    checks: Checks,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Checks {
    /// The reader's task runs.
    reader: bool,
    /// Redis was reached, and is not away for longer than `redis.grace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<bool>,
    /// Every JWKS was fetched at least once. Absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    jwks: Option<bool>,
    /// The only check that must be false.
    draining: bool,
}

/// What readiness depends on: a sidecar's is its whole pod's, and leaves out what others bring:
/// Redis, and keys that the API beside it may publish, which starts no sooner than this is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Everything,
    Itself,
}

impl Admin {
    /// Redis counts as lost after `grace`.
    pub fn new(
        hub: Hub,
        authority: Arc<Authority>,
        router: Arc<Router>,
        drain: Drain,
        metrics: Metrics,
        grace: Duration,
    ) -> Self {
        Self {
            hub,
            authority,
            router,
            drain,
            metrics,
            grace,
            started: Instant::now(),
        }
    }

    /// Accepts connections for as long as the process lives, each a task of `tasks`.
    pub async fn accept(self: Arc<Self>, socket: TcpListener, tasks: Tasks) {
        let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(seat) = seats.clone().acquire_owned().await else {
                return;
            };
            match socket.accept().await {
                Ok((stream, peer)) => {
                    let admin = self.clone();
                    tasks.spawn("admin connection", async move {
                        admin.serve(stream, peer).await;
                        drop(seat);
                    });
                }
                Err(error) => {
                    warn!(%error, "no connection to the admin port could be accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let peer = peer.ip().to_canonical();
        let service =
            service_fn(
                |request| async move { Ok::<_, Infallible>(self.respond(peer, &request).await) },
            );
        let mut http = http1::Builder::new();
        http.keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            debug!(%peer, %error, "a connection to the admin port ended early");
        }
    }

    async fn respond(&self, peer: IpAddr, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let query = request.uri().query().unwrap_or_default();
        match (path, request.method()) {
            ("/livez", &Method::GET) => answer(StatusCode::OK, TEXT, "ok\n"),
            ("/readyz", &Method::GET) => self.readyz(query),
            ("/metrics", &Method::GET) => answer(StatusCode::OK, METRICS, self.metrics.render()),
            ("/statusz", &Method::GET) => self.statusz(peer),
            ("/drain", &Method::POST) => self.drain(peer, request).await,
            ("/livez" | "/readyz" | "/metrics" | "/statusz", _) => only("GET"),
            ("/drain", _) => only("POST"),
            _ => error(StatusCode::NOT_FOUND, "no_such_path"),
        }
    }

    fn readyz(&self, query: &str) -> Response<Full<Bytes>> {
        let scope = match variable(query, "scope").as_deref() {
            None => Scope::Everything,
            Some("self") => Scope::Itself,
            Some(_) => return error(StatusCode::BAD_REQUEST, "no_such_scope"),
        };
        let phase = self.drain.signal().phase();
        let readiness = readiness(
            &self.hub.health(),
            self.authority.has_keys(),
            phase,
            self.grace,
            scope,
            Instant::now(),
        );
        let status = match readiness.ready {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        answer(status, JSON, json!(readiness).to_string())
    }

    /// What people look at. Keys of streams may name people: they stay on this machine.
    fn statusz(&self, peer: IpAddr) -> Response<Full<Bytes>> {
        let health = self.hub.health();
        let mut status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "phase": phase_name(self.drain.signal().phase()),
            "sessions": self.router.sessions(),
            "feeds": health.feeds,
            "ring_bytes": health.ring_bytes,
            "reader": {
                "alive": health.reader_alive,
                "reached_redis": health.was_up,
                "away_seconds": health.down_since.map(|since| since.elapsed().as_secs()),
                "wake": if health.tracking { "tracking" } else { "poll" },
            },
        });
        if peer.is_loopback() {
            let tails = self.hub.tails().into_iter();
            status["streams"] = tails
                .map(|(key, tail)| json!({ "key": key.as_str(), "tail": tail.to_string() }))
                .collect();
        }
        answer(StatusCode::OK, JSON, format!("{status:#}\n"))
    }

    /// Starts the drain, or joins it; with `?wait`, answers when the last session is gone.
    async fn drain(&self, peer: IpAddr, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        // A page in a browser of this machine could send a POST too, but not without an origin.
        if !peer.is_loopback() || request.headers().contains_key(ORIGIN) {
            return error(StatusCode::FORBIDDEN, "loopback_only");
        }
        self.drain.start();
        if variable(request.uri().query().unwrap_or_default(), "wait").is_none() {
            let body = json!({
                "phase": phase_name(self.drain.signal().phase()),
                "longest_ms": u64::try_from(self.drain.longest().as_millis()).unwrap_or(u64::MAX),
            });
            return answer(StatusCode::ACCEPTED, JSON, body.to_string());
        }
        match self.drain.finished().await {
            Ok(()) => answer(StatusCode::OK, JSON, r#"{"phase":"drained"}"#),
            Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "tasks_left_behind"),
        }
    }
}

fn readiness(
    health: &Health,
    has_keys: Option<bool>,
    phase: Phase,
    grace: Duration,
    scope: Scope,
    now: Instant,
) -> Readiness {
    let away = health.down_since.map(|since| now.duration_since(since));
    let reachable = health.was_up && away.is_none_or(|away| away <= grace);
    let checks = Checks {
        reader: health.reader_alive,
        redis: (scope == Scope::Everything).then_some(reachable),
        jwks: has_keys.filter(|_| scope == Scope::Everything),
        draining: phase != Phase::Serving,
    };
    Readiness {
        ready: checks.reader
            && checks.redis.unwrap_or(true)
            && checks.jwks.unwrap_or(true)
            && !checks.draining,
        checks,
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Serving => "serving",
        Phase::Announced => "announced",
        Phase::Ending { .. } => "ending",
        Phase::Cut => "cut",
    }
}

/// The value of a variable in a query; empty for a name alone.
fn variable(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn error(status: StatusCode, reason: &str) -> Response<Full<Bytes>> {
    answer(status, JSON, json!({ "error": reason }).to_string())
}

fn only(method: &'static str) -> Response<Full<Bytes>> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
    let allowed = HeaderValue::from_static(method);
    response.headers_mut().insert(ALLOW, allowed);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn healthy() -> Health {
        Health {
            reader_alive: true,
            was_up: true,
            down_since: None,
            tracking: true,
            feeds: 0,
            ring_bytes: 0,
        }
    }

    fn says(health: &Health, phase: Phase, scope: Scope, now: Instant) -> String {
        json!(readiness(health, None, phase, GRACE, scope, now)).to_string()
    }

    #[test]
    fn ready_says_why() {
        let said = says(
            &healthy(),
            Phase::Serving,
            Scope::Everything,
            Instant::now(),
        );
        let expected = r#"{"checks":{"draining":false,"reader":true,"redis":true},"ready":true}"#;
        assert_eq!(said, expected);
    }

    #[test]
    fn redis_is_lost_only_after_its_grace() {
        let lost_at = Instant::now();
        let health = Health {
            down_since: Some(lost_at),
            ..healthy()
        };
        let ready = |away| {
            let scope = Scope::Everything;
            readiness(&health, None, Phase::Serving, GRACE, scope, lost_at + away).ready
        };
        assert!(ready(GRACE));
        assert!(!ready(GRACE + Duration::from_millis(1)));
    }

    #[test]
    fn a_redis_that_was_never_reached_has_no_grace() {
        for down_since in [None, Some(Instant::now())] {
            let health = Health {
                was_up: false,
                down_since,
                ..healthy()
            };
            let now = Instant::now();
            let ready = |scope| readiness(&health, None, Phase::Serving, GRACE, scope, now).ready;
            assert!(!ready(Scope::Everything));
            assert!(ready(Scope::Itself));
        }
    }

    #[test]
    fn the_own_scope_says_nothing_of_redis() {
        let said = says(&healthy(), Phase::Announced, Scope::Itself, Instant::now());
        let expected = r#"{"checks":{"draining":true,"reader":true},"ready":false}"#;
        assert_eq!(said, expected);
    }

    #[test]
    fn a_jwks_that_was_never_fetched_is_missed_but_by_the_own_scope() {
        let ready = |has_keys, scope| {
            let (health, now) = (healthy(), Instant::now());
            readiness(&health, has_keys, Phase::Serving, GRACE, scope, now)
        };
        let missing = ready(Some(false), Scope::Everything);
        let expected = r#"{"checks":{"draining":false,"jwks":false,"reader":true,"redis":true},"ready":false}"#;
        assert_eq!(json!(missing).to_string(), expected);
        assert!(ready(Some(true), Scope::Everything).ready);
        let own = ready(Some(false), Scope::Itself);
        let expected = r#"{"checks":{"draining":false,"reader":true},"ready":true}"#;
        assert_eq!(json!(own).to_string(), expected);
    }

    #[test]
    fn without_a_reader_nothing_is_ready() {
        let health = Health {
            reader_alive: false,
            ..healthy()
        };
        for scope in [Scope::Everything, Scope::Itself] {
            let now = Instant::now();
            assert!(!readiness(&health, None, Phase::Serving, GRACE, scope, now).ready);
        }
    }

    #[test]
    fn variables_of_a_query_may_lack_a_value() {
        assert_eq!(variable("a=1&wait", "wait").as_deref(), Some(""));
        assert_eq!(variable("scope=self", "scope").as_deref(), Some("self"));
        assert_eq!(variable("waiting=1", "wait"), None);
    }
}
