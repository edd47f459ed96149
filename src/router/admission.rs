//! From a request to what its session begins with.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::http::request::Parts;
use tokio::time::Instant;
use tracing::debug;

use super::limits::SubjectPlace;
use super::request::Asked;
use super::{ORIGIN, Router, SUBPROTOCOL, origin};
use crate::auth::{self, Grant};
use crate::hub::feed::Watch;
use crate::protocol::outcome::Refusal;
use crate::secret::Secret;
use crate::session::{ServedRoute, Start, TOKEN_EXPIRED};
use crate::snapshot::Callback;
use crate::stream::{Cursor, EntryId};

/// What a request has come to: everything that its session begins with.
pub(super) struct Admitted {
    pub(super) grant: Grant,
    pub(super) place: SubjectPlace,
    pub(super) watches: Vec<Watch>,
    pub(super) start: Start,
    pub(super) callback: Option<Arc<Callback>>,
}

impl Router {
    pub(super) async fn admit(
        &self,
        route: &ServedRoute,
        parts: &Parts,
        asked: &Asked,
        message: Option<&Secret>,
    ) -> Result<Admitted, Refusal> {
        self.check(&parts.headers, asked)?;
        let grant = self.grant(route, &parts.headers, asked, message).await?;
        let place = self.limits.enter_subject(grant.subject.as_deref())?;
        // Before anything is asked of Redis: a value that no url can hold ends here.
        let callback = prepare(route, &grant, &parts.headers)?;
        let watches = self.attach(&grant).await?;
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

    /// What is asked of a request whoever sends it.
    pub(super) fn check(&self, headers: &HeaderMap, asked: &Asked) -> Result<(), Refusal> {
        if !origin::is_allowed(headers, &self.config.server.allowed_origins) {
            return Err(ORIGIN);
        }
        if !asked.offered.is_empty() && self.subprotocol(asked).is_none() {
            return Err(SUBPROTOCOL);
        }
        Ok(())
    }

    /// What the sender of a request may do. `message` is a token that has come in one.
    pub(super) async fn grant(
        &self,
        route: &ServedRoute,
        headers: &HeaderMap,
        asked: &Asked,
        message: Option<&Secret>,
    ) -> Result<Grant, Refusal> {
        let params = asked.params(route.route())?;
        let request = auth::Request {
            headers,
            params: &params,
            query: &asked.query,
            message,
        };
        let admitted = self.authority.admit(route.route(), &request).await;
        admitted.map_err(|rejection| {
            debug!(route = route.name(), %rejection, "refused");
            rejection.refusal()
        })
    }

    /// Whether the token comes in the first message: the request has none.
    pub(super) fn awaits_token(&self, route: &ServedRoute, parts: &Parts, asked: &Asked) -> bool {
        let request = auth::Request {
            headers: &parts.headers,
            params: &BTreeMap::new(),
            query: &asked.query,
            message: None,
        };
        self.authority.awaits_message(route.route(), &request)
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
    pub(super) fn subprotocol<'a>(&self, asked: &'a Asked) -> Option<&'a str> {
        let offered: Vec<&str> = asked.offered.iter().map(String::as_str).collect();
        let ours = offered
            .iter()
            .find(|offer| **offer == crate::protocol::SUBPROTOCOL);
        ours.copied()
            .or_else(|| self.authority.token_subprotocol(&offered))
    }
}

pub(super) fn prepare(
    route: &ServedRoute,
    grant: &Grant,
    headers: &HeaderMap,
) -> Result<Option<Arc<Callback>>, Refusal> {
    let Some(snapshots) = route.snapshots() else {
        return Ok(None);
    };
    let callback = snapshots.prepare(&grant.values, headers, &grant.streams);
    callback
        .map(|callback| Some(Arc::new(callback)))
        .map_err(|unusable| auth::Rejection::from(unusable).refusal())
}
