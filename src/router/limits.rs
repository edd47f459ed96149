//! How many connections a client may have, and how many may come.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::Request;
use hyper::body::Incoming;
use ipnet::IpNet;

use super::answer::{Answer, not_an_upgrade, status_answer};
use super::forwarded::{client_address, is_trusted};
use super::occupancy::{Occupancy, Place};
use super::pace::Pace;
use super::request::Asked;
use super::{Aborted, Router};
use crate::config::Server;
use crate::protocol::outcome::{Outcome, Refusal};

const PER_IP: Refusal = Refusal::new(Outcome::TooMany, "too_many_connections_per_ip");
const PER_SUBJECT: Refusal = Refusal::new(Outcome::TooMany, "too_many_connections_per_subject");
const CONNECTS: Refusal = Refusal::new(Outcome::Overloaded, "too_many_connects");
/// Seconds after which a client above a limit may come back; at random, so that they don't come
/// together.
const COME_BACK_S: std::ops::RangeInclusive<u64> = 2..=10;

/// What counts as one client by its address. Whoever has one IPv6 address has its whole /64.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    prefix: u64,
    is_v6: bool,
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        let (prefix, is_v6) = match address.to_canonical() {
            IpAddr::V4(v4) => (u64::from(v4.to_bits()), false),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                (u64::from_be_bytes([a, b, c, d, e, f, g, h]), true)
            }
        };
        Self { prefix, is_v6 }
    }
}

/// A connection's place among those of its address. Absent where there is no limit.
pub type AddressPlace = Option<Place<Network>>;
/// A connection's place among those of its subject. Absent where there is no limit, or no subject.
pub(super) type SubjectPlace = Option<Place<Arc<str>>>;

/// The limits of `[server]` that need to know who a client is, and that on new connections.
pub(super) struct Limits {
    trusted_proxies: Vec<IpNet>,
    per_ip: Option<Occupancy<Network>>,
    per_subject: Option<Occupancy<Arc<str>>>,
    connects: Option<Pace>,
}

impl Limits {
    pub(super) fn new(server: &Server) -> Self {
        let per_ip = server.max_connections_per_ip.map(NonZeroU32::get);
        let per_subject = server.max_connections_per_subject.map(NonZeroU32::get);
        let connects = server.connects_per_second.map(NonZeroU32::get);
        Self {
            trusted_proxies: server.trusted_proxies.clone(),
            per_ip: per_ip.map(Occupancy::new),
            per_subject: per_subject.map(Occupancy::new),
            connects: connects.map(Pace::new),
        }
    }

    /// The client's address: the peer's, or the one that trusted proxies tell.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        client_address(peer, headers, &self.trusted_proxies)
    }

    /// Counts a connection before it has asked anything. One of a proxy is counted when it says
    /// for whom it is.
    fn enter_peer(&self, peer: IpAddr) -> Result<AddressPlace, Refusal> {
        match is_trusted(peer, &self.trusted_proxies) {
            true => Ok(None),
            false => self.enter_address(peer),
        }
    }

    /// Counts a request that a proxy has brought. Others have been counted as connections.
    pub(super) fn enter_client(
        &self,
        peer: IpAddr,
        client: IpAddr,
    ) -> Result<AddressPlace, Refusal> {
        match is_trusted(peer, &self.trusted_proxies) {
            true => self.enter_address(client),
            false => Ok(None),
        }
    }

    fn enter_address(&self, address: IpAddr) -> Result<AddressPlace, Refusal> {
        let Some(occupancy) = &self.per_ip else {
            return Ok(None);
        };
        let place = occupancy.enter(address.into());
        place.map(Some).ok_or_else(|| come_back_later(PER_IP))
    }

    /// Counts a request whose token is verified. One without a subject is nobody's.
    pub(super) fn enter_subject(&self, subject: Option<&str>) -> Result<SubjectPlace, Refusal> {
        let (Some(occupancy), Some(subject)) = (&self.per_subject, subject) else {
            return Ok(None);
        };
        let place = occupancy.enter(subject.into());
        place.map(Some).ok_or_else(|| come_back_later(PER_SUBJECT))
    }

    /// Counts an upgrade request.
    pub(super) fn allow_connect(&self) -> Result<(), Refusal> {
        let is_one_too_many = |pace: &Pace| !pace.allows();
        match self.connects.as_ref().is_some_and(is_one_too_many) {
            true => Err(come_back_later(CONNECTS)),
            false => Ok(()),
        }
    }
}

/// The same refusal, with a time to come back.
pub fn come_back_later(refusal: Refusal) -> Refusal {
    let after = Duration::from_secs(rand::random_range(COME_BACK_S));
    Refusal::retry(refusal.outcome, refusal.reason, after)
}

/// Connections that are too many before they have asked anything.
impl Router {
    /// Counts a connection with those of its address, unless a proxy has made it.
    ///
    /// # Errors
    /// What the client is to be told by [`Router::turn_away`].
    pub fn enter(&self, peer: IpAddr) -> Result<AddressPlace, Refusal> {
        self.limits.enter_peer(peer)
    }

    /// Refuses a request whatever it asks for, in the way of `auth.reject`.
    ///
    /// # Errors
    /// [`Aborted`] where the connection is to be dropped.
    pub fn turn_away<H: Send + Sync + 'static>(
        &self,
        request: Request<Incoming>,
        refusal: Refusal,
        held: H,
    ) -> Result<Answer, Aborted> {
        if not_an_upgrade(&request).is_some() {
            return Ok(status_answer(&refusal));
        }
        let (parts, body) = request.into_parts();
        let asked = Asked::new(&parts.uri, &parts.headers, BTreeMap::new());
        let mut request = Request::from_parts(parts, body);
        self.refuse(&mut request, &asked, refusal, held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn an_ipv6_client_is_its_64() {
        assert!(network("2001:db8:1:2::1") == network("2001:db8:1:2:ffff::"));
        assert!(network("2001:db8:1:2::1") != network("2001:db8:1:3::1"));
        assert!(network("192.0.2.1") != network("192.0.2.2"));
        assert!(network("192.0.2.1") == network("::ffff:192.0.2.1"));
        // Neither family is taken for the other.
        assert!(network("0.0.0.1") != network("::1"));
    }
}
