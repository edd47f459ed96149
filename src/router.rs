//! A request's way to a session: route, grant, attach, snapshot, upgrade.
//!
//! The order is what makes the cut exact: the feeds are attached before the API is asked, so an
//! entry that is added meanwhile comes after the position, never between.

mod admission;
mod answer;
pub mod explain;
mod first_message;
mod forwarded;
mod limits;
mod occupancy;
mod origin;
mod pace;
mod renewal;
mod request;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{HeaderMap, Request, Uri};
use tracing::debug;

use crate::auth::Authority;
use crate::config::{Config, Reject, Route};
use crate::hub::Hub;
use crate::metrics::{CONNECTS, Metrics};
use crate::protocol::outcome::{Outcome, Refusal};
use crate::session::ending::DrainSignal;
use crate::session::{Opening, ServedRoute, Session};
use crate::tasks::Tasks;
use crate::websocket::{self, Socket};
use admission::Admitted;
use answer::not_an_upgrade;
use limits::Limits;
use request::Asked;

pub use answer::{Answer, status_answer};
pub use limits::{AddressPlace, come_back_later};

/// Answers every request on the clients' port. Sessions run as tasks of their own.
pub struct Router {
    config: Arc<Config>,
    authority: Arc<Authority>,
    limits: Limits,
    routes: Vec<Arc<ServedRoute>>,
    paths: matchit::Router<usize>,
    hub: Hub,
    drain: DrainSignal,
    tasks: Tasks,
    metrics: Metrics,
}

/// The connection is to be dropped without an answer.
#[derive(Debug, thiserror::Error)]
#[error("refused by dropping the connection")]
pub struct Aborted;

const DRAINING: Refusal = Refusal::retry(Outcome::Overloaded, "draining", Duration::from_secs(1));
const NO_ROUTE: Refusal = Refusal::new(Outcome::NotFound, "no_route");
const ORIGIN: Refusal = Refusal::new(Outcome::Forbidden, "origin_not_allowed");
const BAD_HANDSHAKE: Refusal = Refusal::new(Outcome::BadRequest, "bad_handshake");
const SUBPROTOCOL: Refusal = Refusal::new(Outcome::BadRequest, "no_subprotocol");

impl Router {
    /// Prepares the routes of the config. Sessions will be tasks of `tasks`.
    pub fn new(
        config: Arc<Config>,
        authority: Arc<Authority>,
        hub: Hub,
        drain: DrainSignal,
        tasks: Tasks,
        metrics: &Metrics,
    ) -> Self {
        let served = |index| {
            Arc::new(ServedRoute::new(
                config.clone(),
                index,
                &hub,
                &drain,
                &tasks,
                metrics,
            ))
        };
        let routes: Vec<_> = (0..config.routes.len()).map(served).collect();
        Self {
            authority,
            limits: Limits::new(&config.server),
            routes,
            paths: paths(&config.routes),
            hub,
            drain,
            tasks,
            metrics: metrics.clone(),
            config,
        }
    }

    /// Answers a request. `held` is dropped when its connection or its session ends.
    ///
    /// # Errors
    /// [`Aborted`] where the connection is to be dropped (`reject = "abort"`).
    pub async fn respond<H: Send + Sync + 'static>(
        self: &Arc<Self>,
        peer: IpAddr,
        request: Request<Incoming>,
        held: Arc<H>,
    ) -> Result<Answer, Aborted> {
        if self.drain.is_refusing() {
            self.count("", DRAINING.reason);
            return Ok(status_answer(&DRAINING));
        }
        let found = self.find(request.uri().path());
        let name = found.as_ref().map_or("", |(route, _)| route.name());
        if let Some(answer) = not_an_upgrade(&request) {
            self.count(name, "no_upgrade");
            let is_known = found.is_some();
            return Ok(if is_known {
                answer
            } else {
                status_answer(&NO_ROUTE)
            });
        }
        let client = self.limits.client(peer, request.headers());
        let held = match self.limits.enter_client(peer, client) {
            Ok(place) => (held, place),
            Err(refusal) => {
                self.count(name, refusal.reason);
                return self.turn_away(request, refusal, held);
            }
        };
        if let Err(refusal) = self.limits.allow_connect() {
            self.count(name, refusal.reason);
            return Ok(status_answer(&refusal));
        }
        let Some((route, params)) = found else {
            self.count("", NO_ROUTE.reason);
            let (parts, body) = request.into_parts();
            let asked = Asked::new(&parts.uri, &parts.headers, BTreeMap::new());
            let mut request = Request::from_parts(parts, body);
            return self.refuse(&mut request, &asked, NO_ROUTE, held);
        };
        let (parts, body) = request.into_parts();
        let asked = Asked::new(&parts.uri, &parts.headers, params);
        if self.awaits_token(&route, &parts, &asked) {
            let request = Request::from_parts(parts, body);
            return self.wait_for_token(client, route, request, asked, held);
        }
        let admitted = tokio::select! {
            admitted = self.admit(&route, &parts, &asked, None) => admitted,
            () = self.drain.refusing() => {
                self.count(route.name(), DRAINING.reason);
                return Ok(status_answer(&DRAINING));
            }
        };
        self.note_admission(client, &route, &admitted);
        let mut request = Request::from_parts(parts, body);
        match admitted {
            Ok(admitted) => Ok(self.accept(&route, &mut request, &asked, admitted, held)),
            Err(refusal) => self.refuse(&mut request, &asked, refusal, held),
        }
    }

    /// Live sessions per route.
    pub fn sessions(&self) -> BTreeMap<String, usize> {
        let routes = self.routes.iter();
        routes
            .map(|route| (route.name().to_owned(), route.present()))
            .collect()
    }

    fn find(&self, path: &str) -> Option<(Arc<ServedRoute>, BTreeMap<String, String>)> {
        let found = self.paths.at(path).ok()?;
        let params = found
            .params
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Some((self.routes[*found.value].clone(), params.collect()))
    }

    fn note_admission(
        &self,
        client: IpAddr,
        route: &ServedRoute,
        admitted: &Result<Admitted, Refusal>,
    ) {
        let outcome = admitted
            .as_ref()
            .map_or_else(|refusal| refusal.reason, |_| "accepted");
        self.count(route.name(), outcome);
        debug!(%client, route = route.name(), outcome, "request");
    }

    fn count(&self, route: &str, outcome: &str) {
        self.metrics.counter(&CONNECTS, &[route, outcome]).inc();
    }
}

/// Answers.
impl Router {
    fn accept<H: Send + Sync + 'static>(
        self: &Arc<Self>,
        route: &Arc<ServedRoute>,
        request: &mut Request<Incoming>,
        asked: &Asked,
        admitted: Admitted,
        held: H,
    ) -> Answer {
        let Ok((answer, socket)) = self.upgrade(request, asked, route.max_client_message()) else {
            return status_answer(&BAD_HANDSHAKE);
        };
        let session = self.session(route, request.uri(), request.headers(), admitted, held);
        let tasks = self.tasks.clone();
        self.tasks.spawn("upgrade", async move {
            if let Some(socket) = socket.await {
                start(&tasks, socket, session);
            }
        });
        answer
    }

    fn session(
        self: &Arc<Self>,
        route: &Arc<ServedRoute>,
        uri: &Uri,
        headers: &HeaderMap,
        admitted: Admitted,
        held: impl Send + Sync + 'static,
    ) -> Session {
        let renew = self.renewal(route, uri, headers, &admitted.grant);
        Session::new(Opening {
            presence: route.enter((held, admitted.place)),
            route: route.clone(),
            keys: admitted.grant.streams,
            watches: admitted.watches,
            start: admitted.start,
            callback: admitted.callback,
            expires_at: admitted.grant.expires_at,
            renew,
        })
    }

    fn refuse<H: Send + Sync + 'static>(
        &self,
        request: &mut Request<Incoming>,
        asked: &Asked,
        refusal: Refusal,
        held: H,
    ) -> Result<Answer, Aborted> {
        match self.config.auth.reject {
            Reject::Abort => Err(Aborted),
            Reject::Http => Ok(status_answer(&refusal)),
            Reject::Close => {
                let Ok((answer, socket)) = self.upgrade(request, asked, 0) else {
                    return Ok(status_answer(&refusal));
                };
                self.tasks.spawn("refusal", async move {
                    if let Some(socket) = socket.await {
                        websocket::refuse(socket, refusal).await;
                    }
                    drop(held);
                });
                Ok(answer)
            }
        }
    }
}

/// Serves the session as a task of its own: one that waited for its upgrade or its token is as
/// large as everything that it has awaited.
fn start(tasks: &Tasks, socket: Socket, session: Session) {
    drop(tasks.spawn("session", websocket::serve(socket, session)));
}

/// The places of these routes, by their paths.
fn paths(routes: &[Route]) -> matchit::Router<usize> {
    let mut paths = matchit::Router::new();
    for (index, route) in routes.iter().enumerate() {
        paths
            .insert(&route.path, index)
            .expect("the config has checked that paths don't conflict");
    }
    paths
}
