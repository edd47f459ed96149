//! What is asked of the log, of Redis and of new clients: that all of them agree.

use relay::stream::EntryId;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::frame::State;
use super::log::Log;
use super::payload::Payload;
use super::routes::{ROUTES, key};
use super::stage::RELAYS;
use super::view::{Trouble, View};
use super::world::World;
use crate::support::api::Reply;
use crate::support::client::Received;
use crate::support::redis::Redis;
use crate::support::upgrade::{Answer, Upgrade};
use crate::support::wait::DEADLINE;

/// The API's answer for the streams named in the path. The state of a stream includes all that
/// was sent, as that of an API does which writes before it publishes. Where no answer of Redis is
/// due, the id of the last entry is known, and declared.
pub(crate) fn state(log: &Log, path: &str) -> Reply {
    let streams: Vec<usize> = path
        .split('/')
        .filter_map(|part| part.parse().ok())
        .collect();
    let facts: Vec<_> = streams.iter().map(|stream| log.facts(*stream)).collect();
    let declared = facts.iter().map(|facts| {
        (facts.written == facts.sent && facts.written > 0).then(|| facts.last_id.to_string())
    });
    let state = State {
        through: facts.iter().map(|facts| facts.sent).collect(),
        declared: declared.collect(),
    };
    let headers = streams.iter().zip(&state.declared);
    headers.fold(
        Reply::json(&json!(state)),
        |reply, (stream, declared)| match declared {
            Some(id) => reply.header("relay-cursor", &format!("{}={id}", key(*stream))),
            None => reply,
        },
    )
}

/// The log itself is right: what is in Redis now is what should be there.
pub(crate) async fn holds(log: &Log, redis: &Mutex<Redis>) -> Result<(), String> {
    let redis = redis.lock().await;
    for stream in 0..log.streams() {
        let facts = log.facts(stream);
        let range = format!("XRANGE {} - +", key(stream));
        let entries: Vec<(String, Vec<(String, String)>)> = redis.query(&range).await;
        let mut last = facts.removed;
        for (id, fields) in &entries {
            let data = fields
                .first()
                .map(|(_, data)| data.as_str())
                .unwrap_or_default();
            let payload: Payload<'_> =
                serde_json::from_str(data).map_err(|error| format!("{error} in {data}"))?;
            log.claim(stream, payload.n, EntryId::parse(id))?;
            // Less may have been trimmed than was allowed.
            if payload.n != last + 1 && payload.n > last {
                return Err(format!(
                    "the log of stream {stream} is wrong: {} after {last}, {facts:?}",
                    payload.n
                ));
            }
            last = last.max(payload.n);
        }
        if last != facts.written {
            return Err(format!(
                "the log of stream {stream} is wrong: Redis ends at {last}, {facts:?}"
            ));
        }
    }
    Ok(())
}

/// Who comes now, to any relay and route, is at the end of every stream; and the cut of a snapshot
/// is the one that the API has declared.
pub(crate) async fn fresh_clients_stand_at_the_end(world: &World) -> Result<(), String> {
    let streams: Vec<usize> = (0..world.log.streams()).collect();
    let last: Vec<u64> = streams
        .iter()
        .map(|stream| world.log.facts(*stream).written)
        .collect();
    for relay in 0..RELAYS {
        let address = world.relay(relay).ok_or("a relay is not there")?;
        for route in &ROUTES {
            for streams in streams.chunks_exact(route.streams) {
                let mut view = View::new(world.log.clone(), route, streams);
                let path = route.path(streams);
                let stands = timeout(
                    DEADLINE,
                    stands_at_the_end(address, &path, &mut view, &last),
                );
                let stands = stands
                    .await
                    .unwrap_or_else(|_| Err("nothing more comes".to_owned()));
                stands.map_err(|what| {
                    format!("a new client of {path}: {what}\n{}", view.describe())
                })?;
            }
        }
    }
    Ok(())
}

async fn stands_at_the_end(
    address: std::net::SocketAddr,
    path: &str,
    view: &mut View,
    last: &[u64],
) -> Result<(), String> {
    let Answer::Upgraded(mut client) = Upgrade::new(address, path).attempt().await else {
        return Err("refused".to_owned());
    };
    view.connected();
    while !view.has_reached(last) {
        let Received::Text(text) = client.receive().await else {
            return Err("closed".to_owned());
        };
        match view.take(&text) {
            Ok(super::view::Taken::Snapshot { is_exact: false }) => {
                return Err("the cut is not the one that was declared".to_owned());
            }
            Ok(_) => {}
            Err(Trouble::Violation(what)) => return Err(what),
            Err(Trouble::NotYet(stream, id)) => return Err(format!("{id} of stream {stream}?")),
        }
    }
    Ok(())
}
