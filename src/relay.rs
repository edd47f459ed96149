//! The whole relay: builds the parts, binds both ports, runs, drains in order.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::bail;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::admin::Admin;
use crate::auth::Authority;
use crate::config::Config;
use crate::drain::Drain;
use crate::hub::Hub;
use crate::listener::tls::Tls;
use crate::listener::{self, ClientPort};
use crate::metrics::{CONNECTIONS_LIMIT, Metrics, amount};
use crate::router::Router;
use crate::tasks::Tasks;

/// Open files that are no client's: Redis, the admin port, callbacks under way, the log.
const OTHER_FILES: u64 = 512;

/// A relay with both ports bound, ready to run.
pub struct Relay {
    clients: Tasks,
    own: Tasks,
    drain: Drain,
    port: ClientPort,
    admin: Admin,
    socket: TcpListener,
    admin_socket: TcpListener,
    addresses: Addresses,
}

/// Where a relay listens. With port 0 in the config, these are the ports that it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Of the clients' port.
    pub listen: SocketAddr,
    /// Of the admin port.
    pub admin_listen: SocketAddr,
}

impl Relay {
    /// Builds everything and binds both ports. Must be called within a tokio runtime.
    pub fn bind(mut config: Config) -> anyhow::Result<Self> {
        // The ports first: a port in use is told before anything else is started.
        let socket = listener::bind("server.listen", config.server.listen)?;
        let admin_socket = listener::bind("server.admin_listen", config.server.admin_listen)?;
        let addresses = Addresses {
            listen: socket.local_addr()?,
            admin_listen: admin_socket.local_addr()?,
        };
        config.server.max_connections = affordable(config.server.max_connections);

        let config = Arc::new(config);
        let metrics = Metrics::new();
        let limit = metrics.gauge(&CONNECTIONS_LIMIT, &[]);
        limit.set(amount(config.server.max_connections));
        let (clients, own) = (Tasks::default(), Tasks::default());
        let drain = Drain::new(config.drain, clients.clone(), own.clone(), &metrics);
        let hub = Hub::start(config.clone(), &own, &metrics)?;
        let authority = Arc::new(Authority::start(&config, &own, &metrics));
        let router = Arc::new(Router::new(
            config.clone(),
            authority.clone(),
            hub.clone(),
            drain.signal().clone(),
            clients.clone(),
            &metrics,
        ));
        let signal = drain.signal().clone();
        let tls = config.server.tls.as_ref();
        let tls = tls.map(|tls| Tls::start(tls, &own, &metrics)).transpose()?;
        let port = ClientPort::new(
            &config.server,
            tls,
            router.clone(),
            signal,
            clients.clone(),
            &metrics,
        );
        let admin = Admin::new(
            hub,
            authority,
            router,
            drain.clone(),
            metrics,
            config.redis.grace,
        );
        Ok(Self {
            clients,
            own,
            drain,
            port,
            admin,
            socket,
            admin_socket,
            addresses,
        })
    }

    /// The addresses that were bound.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until asked to stop, then drains. Each message on `stop` is one request: the
    /// first starts the drain or joins one that runs, the second cuts what is left. An error
    /// is a relay that did not end by itself.
    pub async fn run(self, mut stop: mpsc::Receiver<()>) -> anyhow::Result<()> {
        let Addresses {
            listen,
            admin_listen,
        } = self.addresses;
        let (port, admin) = (Arc::new(self.port), Arc::new(self.admin));
        info!(%listen, %admin_listen, tls = port.speaks_tls(), "listening");
        // Accepting is one of the clients' tasks, so that a drain can't end before it.
        let accepting = self.clients.spawn("accept", port.accept(self.socket));
        let administering = admin.accept(self.admin_socket, self.own.clone());
        let administering = self.own.spawn("admin port", administering);

        let ended = tokio::select! {
            ended = drain_when_asked(&self.drain, &mut stop) => ended,
            // A drain asked for on the admin port ends it without an error.
            Err(failure) = accepting => Err(anyhow::anyhow!("accepting failed: {failure}")),
        };
        administering.abort();
        ended
    }
}

async fn drain_when_asked(drain: &Drain, stop: &mut mpsc::Receiver<()>) -> anyhow::Result<()> {
    asked(stop).await;
    drain.start();
    let finished = tokio::select! {
        finished = drain.finished() => finished,
        () = asked(stop) => {
            warn!("asked to stop a second time: cutting what is left");
            drain.cut();
            drain.finished().await?;
            bail!("the drain was cut short by a second signal");
        }
    };
    finished?;
    info!("drained");
    Ok(())
}

/// Waits for a request to stop. A sender that is gone asks for nothing any more.
async fn asked(stop: &mut mpsc::Receiver<()>) {
    if stop.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Raises the soft limit of open files, and says how many connections it allows.
fn affordable(max_connections: usize) -> usize {
    let wanted = (max_connections as u64).saturating_add(OTHER_FILES);
    let limit = match rlimit::increase_nofile_limit(wanted) {
        Ok(limit) => limit,
        Err(error) => {
            warn!(%error, "the limit of open files could not be raised");
            match rlimit::Resource::NOFILE.get_soft() {
                Ok(limit) => limit,
                Err(_) => return max_connections,
            }
        }
    };
    let allowed = connections_within(limit, max_connections);
    if allowed < max_connections {
        warn!(
            open_files = limit,
            configured = max_connections,
            max_connections = allowed,
            "fewer connections than configured: the hard limit of open files (ulimit -Hn) is too low"
        );
    }
    allowed
}

/// Of a low limit, half is for clients.
fn connections_within(open_files: u64, max_connections: usize) -> usize {
    let others = OTHER_FILES.min(open_files / 2);
    let left = usize::try_from(open_files - others).unwrap_or(usize::MAX);
    left.min(max_connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_bounds_connections() {
        assert_eq!(connections_within(u64::MAX, 100_000), 100_000);
        assert_eq!(connections_within(100_512, 100_000), 100_000);
        assert_eq!(connections_within(4096, 100_000), 3584);
        assert_eq!(connections_within(256, 100_000), 128);
    }
}
