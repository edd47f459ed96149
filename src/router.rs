//! A request's way to a session: route, grant, attach, snapshot, upgrade.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};

use crate::config::Config;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::session::ending::DrainSignal;
use crate::tasks::Tasks;

/// Answers every request on the clients' port. Sessions run as tasks of their own.
pub struct Router {}

impl Router {
    pub fn new(
        _config: Arc<Config>,
        _hub: Hub,
        _drain: DrainSignal,
        _sessions: Tasks,
        _metrics: &Metrics,
    ) -> Self {
        todo!()
    }

    /// `Err` drops the TCP connection (`reject = "abort"`). The permit of the connection lives
    /// as long as the session, if there is one.
    pub async fn respond<P: Send + 'static>(
        &self,
        _peer: IpAddr,
        _request: Request<Incoming>,
        _permit: Arc<P>,
    ) -> Result<Response<Full<Bytes>>, Aborted> {
        todo!()
    }

    /// Live sessions per route.
    pub fn sessions(&self) -> BTreeMap<String, usize> {
        todo!()
    }
}

/// The connection is to be dropped without an answer.
#[derive(Debug, thiserror::Error)]
#[error("refused by dropping the connection")]
pub struct Aborted;
