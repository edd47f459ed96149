//! A fresh token for a session that is already there.

use std::collections::HashSet;
use std::sync::Arc;

use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue, ORIGIN};
use hyper::{HeaderMap, Uri};
use tokio::time::sleep;
use tracing::debug;

use super::Router;
use super::admission::prepare;
use super::request::Asked;
use crate::auth::Grant;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::secret::Secret;
use crate::session::{Renew, Renewed, ServedRoute};
use crate::snapshot::on_its_own;

/// Another subject, none, or other streams: that is for another connection.
const GRANT_CHANGED: Refusal = Refusal::new(Outcome::Forbidden, "grant_changed");

/// What is kept of a request to judge a fresh token by.
struct Renewal {
    router: Arc<Router>,
    route: Arc<ServedRoute>,
    /// As text of its own: hyper's is a part of the whole head, which would stay.
    uri: Box<str>,
    headers: HeaderMap,
    subject: Option<Box<str>>,
    streams: crate::stream::StreamKeys,
}

impl Router {
    /// `None` where there is no token.
    pub(super) fn renewal(
        self: &Arc<Self>,
        route: &Arc<ServedRoute>,
        uri: &Uri,
        headers: &HeaderMap,
        grant: &Grant,
    ) -> Option<Box<Renew>> {
        if route.route().public {
            return None;
        }
        let renewal = Arc::new(Renewal {
            router: self.clone(),
            route: route.clone(),
            uri: uri.to_string().into(),
            headers: needed_later(route, headers),
            subject: grant.subject.as_deref().map(Box::from),
            streams: grant.streams.clone(),
        });
        Some(Box::new(move |token| {
            let renewal = renewal.clone();
            Box::pin(async move {
                let answer = renewal.judge_in_the_end(&token).await;
                let outcome = answer.as_ref().map_or_else(|no| no.reason, |_| "accepted");
                renewal.route.meters().note_renewal(answer.is_ok());
                debug!(route = renewal.route.name(), outcome, "fresh token");
                answer
            })
        }))
    }
}

impl Renewal {
    /// What can't be judged now is judged later: the token that the session has is still good. It
    /// ends with that one, whatever comes of this.
    async fn judge_in_the_end(&self, token: &Secret) -> Result<Renewed, Refusal> {
        loop {
            match self.judge(token).await {
                Err(Refusal {
                    outcome: Outcome::Overloaded,
                    retry_after: Some(after),
                    ..
                }) => sleep(after).await,
                judged => return judged,
            }
        }
    }

    async fn judge(&self, token: &Secret) -> Result<Renewed, Refusal> {
        let uri = Uri::try_from(&*self.uri).unwrap_or_default();
        let params = self.router.find(uri.path()).map(|(_, params)| params);
        let asked = Asked::new(&uri, &self.headers, params.unwrap_or_default());
        let grant = self
            .router
            .grant(&self.route, &self.headers, &asked, Some(token))
            .await?;
        let is_same_subject =
            self.subject.is_some() && grant.subject.as_deref() == self.subject.as_deref();
        if !is_same_subject || grant.streams != self.streams {
            return Err(GRANT_CHANGED);
        }
        let mut headers = self.headers.clone();
        if headers.contains_key(AUTHORIZATION)
            && let Ok(value) = HeaderValue::try_from(format!("Bearer {}", token.expose()))
        {
            headers.insert(AUTHORIZATION, value);
        }
        Ok(Renewed {
            expires_at: grant.expires_at,
            callback: prepare(&self.route, &grant, &headers)?,
        })
    }
}

/// The headers that go to the API, those that `authorize` sees, and the origin.
fn needed_later(route: &ServedRoute, headers: &HeaderMap) -> HeaderMap {
    let route = route.route();
    let forwarded = route.snapshot.iter().flat_map(|snapshot| &snapshot.forward);
    let seen = route
        .authorize
        .iter()
        .flat_map(|authorize| &authorize.headers);
    let names: HashSet<&HeaderName> = forwarded.chain(seen).chain([&ORIGIN]).collect();
    let mut kept = HeaderMap::new();
    for name in names {
        for value in headers.get_all(name) {
            kept.append(name, on_its_own(value));
        }
    }
    kept
}
