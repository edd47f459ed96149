//! What a request would come to, without asking Redis or the API.

use std::collections::BTreeMap;

use hyper::http::request::Parts;

use super::request::Asked;
use super::{NO_ROUTE, ORIGIN, origin, paths};
use crate::auth::{self, Authority, Finding};
use crate::config::Config;
use crate::protocol::outcome::Refusal;

/// What a request would come to.
#[derive(Debug)]
pub struct Explanation {
    /// The steps, in their order.
    pub findings: Vec<Finding>,
    /// Absent if it would be accepted, as far as that is known without Redis and the API.
    pub refusal: Option<Refusal>,
}

/// Goes the way of [`Router`](super::Router), as far as the config and the token lead. With
/// `token`, that is the token, wherever it would have been.
pub async fn explain(
    config: &Config,
    authority: &Authority,
    parts: &Parts,
    token: Option<&str>,
) -> Explanation {
    let mut findings = Vec::new();
    let refusal = follow(config, authority, parts, token, &mut findings).await;
    Explanation {
        findings,
        refusal: refusal.err(),
    }
}

async fn follow(
    config: &Config,
    authority: &Authority,
    parts: &Parts,
    token: Option<&str>,
    findings: &mut Vec<Finding>,
) -> Result<(), Refusal> {
    let mut tell = |what, said: String, is_good| {
        findings.push(Finding {
            what,
            said,
            is_good,
        });
    };
    let paths = paths(&config.routes);
    let Ok(found) = paths.at(parts.uri.path()) else {
        tell("route", "no route has this path".to_owned(), false);
        return Err(NO_ROUTE);
    };
    let route = &config.routes[*found.value];
    tell("route", format!("{} ({})", route.name, route.path), true);
    if !origin::is_allowed(&parts.headers, &config.server.allowed_origins) {
        tell("origin", "not in server.allowed_origins".to_owned(), false);
        return Err(ORIGIN);
    }
    let encoded = found.params.iter();
    let encoded = encoded.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let asked = Asked::new(
        &parts.uri,
        &parts.headers,
        encoded.collect::<BTreeMap<_, _>>(),
    );
    let params = asked.params(route).inspect_err(|_| {
        let said = "a value does not match its pattern in `params`".to_owned();
        tell("params", said, false);
    })?;
    for (name, value) in &params {
        tell("params", format!("{name} = {value:?}"), true);
    }
    let request = auth::Request {
        headers: &parts.headers,
        params: &params,
        query: &asked.query,
        message: None,
    };
    let explained = authority.explain(route, &request, token).await;
    findings.extend(explained.findings);
    let mut tell = |what, said: String, is_good| {
        findings.push(Finding {
            what,
            said,
            is_good,
        });
    };
    let grant = explained.grant.map_err(|rejection| rejection.refusal())?;
    for key in grant.streams.as_slice() {
        tell("stream", key.to_string(), true);
    }
    if let Some(snapshot) = &route.snapshot {
        let url = snapshot.url.render_url(&grant.values).map_err(|unusable| {
            tell("snapshot", unusable.to_string(), false);
            auth::Rejection::from(unusable).refusal()
        })?;
        tell("snapshot", format!("{} {url}", snapshot.method), true);
    }
    Ok(())
}
