//! The API that the relay stands beside: answers what the test says, and remembers who asked.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::wait::eventually;

/// One answer of the API.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    delay: Duration,
}

impl Reply {
    pub(crate) fn json(body: &Value) -> Self {
        Self::text(200, body.to_string()).header("content-type", "application/json")
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::text(status, r#"{"detail":"no"}"#)
    }

    pub(crate) fn text(status: u16, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            delay: Duration::ZERO,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

/// A request that has reached the API.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: String,
    /// As it came over the wire: path and query, nothing decoded.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
}

pub(crate) struct FakeApi {
    address: SocketAddr,
    shared: Arc<Shared>,
    _connections: JoinSet<()>,
}

struct Shared {
    script: Mutex<Script>,
    gate: watch::Sender<Gate>,
}

struct Script {
    /// Answered first, one each; then `always`.
    once: VecDeque<Reply>,
    always: Answer,
    calls: Vec<Call>,
}

/// What becomes of a request's path.
type Answer = Arc<dyn Fn(&str) -> Reply + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    Closed,
}

impl FakeApi {
    /// Answers `{"state":"as of now"}` until it is told otherwise.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a port for the API");
        let address = listener.local_addr().expect("the port is bound");
        let shared = Arc::new(Shared {
            script: Mutex::new(Script {
                once: VecDeque::new(),
                always: Arc::new(|_| Reply::json(&state())),
                calls: Vec::new(),
            }),
            gate: watch::channel(Gate::Open).0,
        });
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, shared.clone()));
        Self {
            address,
            shared,
            _connections: connections,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this is the answer.
    pub(crate) fn answer(&self, reply: Reply) {
        self.answer_by(move |_| reply.clone());
    }

    /// From now on this is made of a request's path, when the request arrives.
    pub(crate) fn answer_by(&self, answer: impl Fn(&str) -> Reply + Send + Sync + 'static) {
        self.script().always = Arc::new(answer);
    }

    /// This is the next answer, before the lasting one.
    pub(crate) fn answer_once(&self, reply: Reply) {
        self.script().once.push_back(reply);
    }

    /// Requests arrive, and wait for their answer until the gate is opened.
    pub(crate) fn close_gate(&self) {
        self.shared.gate.send_replace(Gate::Closed);
    }

    pub(crate) fn open_gate(&self) {
        self.shared.gate.send_replace(Gate::Open);
    }

    /// Every request so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.script().calls.clone()
    }

    /// Waits until so many requests have arrived, be they answered or not.
    pub(crate) async fn called(&self, times: usize) {
        let what = format!("the API is called {times} times");
        eventually(&what, async || (self.calls().len() >= times).then_some(())).await;
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.shared.script()
    }
}

/// What the API answers unless told otherwise.
pub(crate) fn state() -> Value {
    serde_json::json!({ "state": "as of now" })
}

impl Shared {
    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn respond(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path_and_query();
        let path = path.map_or_else(String::new, ToString::to_string);
        self.script().calls.push(Call {
            method: request.method().to_string(),
            path: path.clone(),
            headers: request.headers().clone(),
        });
        let mut gate = self.gate.subscribe();
        // The sender is ours: it can't be gone.
        gate.wait_for(|gate| *gate == Gate::Open).await.ok();
        let (once, always) = {
            let mut script = self.script();
            (script.once.pop_front(), script.always.clone())
        };
        let reply = once.unwrap_or_else(|| always(&path));
        tokio::time::sleep(reply.delay).await;
        reply
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        connections.spawn(serve(stream, shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(async |request| {
        let reply = shared.respond(request).await;
        Ok::<_, Infallible>(response(&reply))
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A relay that hangs up is for the test to judge.
    connection.await.ok();
}

fn response(reply: &Reply) -> hyper::Response<Full<Bytes>> {
    let mut response = hyper::Response::new(Full::new(reply.body.clone()));
    *response.status_mut() = StatusCode::from_u16(reply.status).expect("a status");
    for (name, value) in &reply.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        let value = HeaderValue::from_str(value).expect("a header value");
        response.headers_mut().append(name, value);
    }
    if !response.headers().contains_key(CONTENT_TYPE) {
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
    }
    response
}
