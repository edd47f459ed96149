//! A request's way to a session: route, grant, attach, snapshot, upgrade.
//!
//! The order is what makes the cut exact: the feeds are attached before the API is asked, so an
//! entry that is added meanwhile comes after the position, never between.

mod answer;
mod forwarded;
mod limits;
mod occupancy;
mod origin;
mod pace;
mod request;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::auth::{Authority, Grant};
use crate::config::{Config, Reject};
use crate::hub::Hub;
use crate::hub::feed::Watch;
use crate::metrics::{CONNECTS, Metrics};
use crate::protocol::outcome::{Outcome, Refusal};
use crate::session::ending::DrainSignal;
use crate::session::{Opening, ServedRoute, Session, Start, TOKEN_EXPIRED};
use crate::snapshot::Callback;
use crate::stream::{Cursor, EntryId};
use crate::tasks::Tasks;
use crate::websocket::{self, Socket};
use answer::not_an_upgrade;
use limits::{Limits, SubjectPlace};
use request::Asked;

pub use answer::{Answer, status_answer};
pub use limits::{AddressPlace, come_back_later};

/// Answers every request on the clients' port. Sessions run as tasks of their own.
pub struct Router {
    config: Arc<Config>,
    authority: Authority,
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
const SUBPROTOCOL: Refusal = Refusal::new(Outcome::BadRequest, "no_subprotocol");

/// What a request has come to: everything that its session begins with.
struct Admitted {
    grant: Grant,
    place: SubjectPlace,
    watches: Vec<Watch>,
    start: Start,
    callback: Option<Arc<Callback>>,
}

impl Router {
    /// Prepares the routes of the config. Sessions will be tasks of `tasks`.
    pub fn new(
        config: Arc<Config>,
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
        let mut paths = matchit::Router::new();
        for (index, route) in config.routes.iter().enumerate() {
            paths
                .insert(&route.path, index)
                .expect("the config has checked that paths don't conflict");
        }
        Self {
            authority: Authority::new(&config, metrics),
            limits: Limits::new(&config.server),
            routes,
            paths,
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
        &self,
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
            let asked = Asked::new(&parts, BTreeMap::new());
            let mut request = Request::from_parts(parts, body);
            return self.refuse(&mut request, &asked, NO_ROUTE, held);
        };
        let (parts, body) = request.into_parts();
        let asked = Asked::new(&parts, params);
        let admitted = tokio::select! {
            admitted = self.admit(&route, &parts, &asked) => admitted,
            () = self.drain.refusing() => {
                self.count(route.name(), DRAINING.reason);
                return Ok(status_answer(&DRAINING));
            }
        };
        let outcome = admitted
            .as_ref()
            .map_or_else(|refusal| refusal.reason, |_| "accepted");
        self.count(route.name(), outcome);
        debug!(%client, route = route.name(), outcome, "request");
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

    fn count(&self, route: &str, outcome: &str) {
        self.metrics
            .counter(&CONNECTS, &[route, outcome])
            .increment(1);
    }
}

/// From a request to what its session begins with.
impl Router {
    async fn admit(
        &self,
        route: &ServedRoute,
        parts: &Parts,
        asked: &Asked,
    ) -> Result<Admitted, Refusal> {
        if !origin::is_allowed(&parts.headers, &self.config.server.allowed_origins) {
            return Err(ORIGIN);
        }
        if !asked.offered.is_empty() && self.subprotocol(asked).is_none() {
            return Err(SUBPROTOCOL);
        }
        let params = asked.params(route.route())?;
        let request = crate::auth::Request {
            headers: &parts.headers,
            params: &params,
            query: &asked.query,
        };
        let grant = self
            .authority
            .admit(route.route(), &request)
            .map_err(|rejection| {
                debug!(route = route.name(), %rejection, "refused");
                rejection.refusal()
            })?;
        let place = self.limits.enter_subject(grant.subject.as_deref())?;
        let watches = self.attach(&grant).await?;
        let callback = prepare(route, &grant, parts)?;
        let start = self
            .start(route, &grant, asked, &watches, callback.as_deref())
            .await?;
        // The callback may have taken longer than the token had left.
        if grant.expires_at.is_some_and(|at| at <= Instant::now()) {
            return Err(TOKEN_EXPIRED);
        }
        Ok(Admitted {
            grant,
            place,
            watches,
            start,
            callback,
        })
    }

    async fn attach(&self, grant: &Grant) -> Result<Vec<Watch>, Refusal> {
        let attaching = grant
            .streams
            .as_slice()
            .iter()
            .map(|key| self.hub.attach(key));
        let watches = futures_util::future::try_join_all(attaching).await;
        watches.map_err(|error| {
            debug!(%error, "a stream can't be attached to");
            error.refusal()
        })
    }

    /// A usable cursor needs no snapshot; without one the API is asked, if the route says so.
    async fn start(
        &self,
        route: &ServedRoute,
        grant: &Grant,
        asked: &Asked,
        watches: &[Watch],
        callback: Option<&Callback>,
    ) -> Result<Start, Refusal> {
        if let Some(text) = asked.cursor(route.route()) {
            match Cursor::parse(text, &grant.streams) {
                Some(cursor) => return Ok(Start::Resume(cursor)),
                None => route.meters().note_malformed_cursor(),
            }
        }
        let feeds: Vec<_> = watches.iter().map(|watch| watch.feed.clone()).collect();
        let note = move || -> Vec<EntryId> { feeds.iter().map(|feed| feed.tail()).collect() };
        let (Some(callback), Some(snapshots)) = (callback, route.snapshots()) else {
            return Ok(Start::Now(note()));
        };
        match snapshots.fetch(callback, note.clone(), None).await {
            Ok(snapshot) => Ok(Start::Snapshot(snapshot)),
            Err(error) if route.goes_on_without(&error) => Ok(Start::SnapshotFailed(note())),
            Err(error) => Err(error.refusal()),
        }
    }

    /// `relay.v1` if it is offered, else the offered value that carries the token: a browser
    /// drops the connection if none of what it offers is selected.
    fn subprotocol<'a>(&self, asked: &'a Asked) -> Option<&'a str> {
        let offered: Vec<&str> = asked.offered.iter().map(String::as_str).collect();
        let ours = offered
            .iter()
            .find(|offer| **offer == crate::protocol::SUBPROTOCOL);
        ours.copied()
            .or_else(|| self.authority.token_subprotocol(&offered))
    }
}

fn prepare(
    route: &ServedRoute,
    grant: &Grant,
    parts: &Parts,
) -> Result<Option<Arc<Callback>>, Refusal> {
    let Some(snapshots) = route.snapshots() else {
        return Ok(None);
    };
    let callback = snapshots.prepare(&grant.values, &parts.headers, &grant.streams);
    callback
        .map(|callback| Some(Arc::new(callback)))
        .map_err(|unusable| crate::auth::Rejection::from(unusable).refusal())
}

/// Answers.
impl Router {
    fn accept<H: Send + Sync + 'static>(
        &self,
        route: &Arc<ServedRoute>,
        request: &mut Request<Incoming>,
        asked: &Asked,
        admitted: Admitted,
        held: H,
    ) -> Answer {
        let Ok((answer, upgrade)) = self.upgrade(request, asked, route.max_client_message()) else {
            return status_answer(&Refusal::new(Outcome::BadRequest, "bad_handshake"));
        };
        let opening = Opening {
            presence: route.enter((held, admitted.place)),
            route: route.clone(),
            keys: admitted.grant.streams,
            watches: admitted.watches,
            start: admitted.start,
            callback: admitted.callback,
            expires_at: admitted.grant.expires_at,
        };
        let (tasks, config) = (
            self.tasks.clone(),
            websocket::receive_config(route.max_client_message()),
        );
        let deadline = self.config.server.handshake_timeout;
        // The session is a task of its own: the one that waits for the upgrade is as large as
        // everything that it has awaited.
        self.tasks.spawn("upgrade", async move {
            match timeout(deadline, Socket::upgraded(upgrade, config)).await {
                Ok(Some(socket)) => {
                    drop(tasks.spawn("session", websocket::serve(socket, Session::new(opening))))
                }
                Ok(None) | Err(_) => debug!("a client left during its upgrade"),
            }
        });
        answer
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
                let Ok((answer, upgrade)) = self.upgrade(request, asked, 0) else {
                    return Ok(status_answer(&refusal));
                };
                let deadline = self.config.server.handshake_timeout;
                self.tasks.spawn("refusal", async move {
                    let config = websocket::receive_config(0);
                    if let Ok(Some(socket)) =
                        timeout(deadline, Socket::upgraded(upgrade, config)).await
                    {
                        websocket::refuse(socket, refusal).await;
                    }
                    drop(held);
                });
                Ok(answer)
            }
        }
    }
}
