//! A TCP proxy that can fail in the ways that networks do.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(Clone, Debug)]
struct Behaviour {
    target: String,
    link: Link,
    /// How often it has been cut: what was opened before the last time does not live on, even
    /// if the link is up again before anybody has looked.
    cuts: usize,
    delay: Duration,
    /// The most bytes that are written at once.
    piece: usize,
    /// Connections that carry nothing for this long are cut.
    idle: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    Cut,
    Stalled,
}

const BUFFER: usize = 64 * 1024;
/// Pieces smaller than this are sure to be read apart.
const TINY: usize = 8;
const BETWEEN_TINY: Duration = Duration::from_millis(1);

pub(crate) struct Proxy {
    address: SocketAddr,
    behaviour: watch::Sender<Behaviour>,
    _connections: JoinSet<()>,
}

impl Proxy {
    /// In front of this address.
    pub(crate) async fn start(target: impl Into<String>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a port for the proxy");
        let address = listener.local_addr().expect("the port is bound");
        let behaviour = Behaviour {
            target: target.into(),
            link: Link::Up,
            cuts: 0,
            delay: Duration::ZERO,
            piece: BUFFER,
            idle: None,
        };
        let (behaviour, watched) = watch::channel(behaviour);
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, watched));
        Self {
            address,
            behaviour,
            _connections: connections,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn redis_url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    /// Closes what is open, and whatever comes.
    pub(crate) fn cut(&self) {
        self.behaviour.send_modify(|b| {
            b.link = Link::Cut;
            b.cuts += 1;
        });
    }

    /// Accepts, and forwards nothing.
    pub(crate) fn stall(&self) {
        self.set_link(Link::Stalled);
    }

    /// Forwards again, also what was held back.
    pub(crate) fn restore(&self) {
        self.set_link(Link::Up);
    }

    /// Leads new connections elsewhere; open ones stay where they are.
    pub(crate) fn retarget(&self, target: impl Into<String>) {
        let target = target.into();
        self.behaviour.send_modify(|b| b.target = target);
    }

    /// Holds every piece back for this long.
    pub(crate) fn delay(&self, delay: Duration) {
        self.behaviour.send_modify(|b| b.delay = delay);
    }

    /// Writes at most so many bytes at once; what follows is another packet.
    pub(crate) fn split(&self, bytes: usize) {
        self.behaviour
            .send_modify(|b| b.piece = bytes.clamp(1, BUFFER));
    }

    /// Forwards at once again, and whole.
    pub(crate) fn smooth(&self) {
        self.behaviour.send_modify(|b| {
            b.delay = Duration::ZERO;
            b.piece = BUFFER;
        });
    }

    /// Cuts connections that carry nothing for this long.
    pub(crate) fn cut_idle(&self, idle: Duration) {
        self.behaviour.send_modify(|b| b.idle = Some(idle));
    }

    fn set_link(&self, link: Link) {
        self.behaviour.send_modify(|b| b.link = link);
    }
}

async fn accept(listener: TcpListener, behaviour: watch::Receiver<Behaviour>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            return;
        };
        connections.spawn(serve(client, behaviour.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(client: TcpStream, mut behaviour: watch::Receiver<Behaviour>) {
    if behaviour.borrow().link == Link::Cut {
        return;
    }
    let (target, cuts) = {
        let behaviour = behaviour.borrow();
        (behaviour.target.clone(), behaviour.cuts)
    };
    let Ok(server) = TcpStream::connect(&target).await else {
        return;
    };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (alive, life) = watch::channel(());
    let mut cut = behaviour.clone();
    tokio::select! {
        () = forward(from_client, to_server, behaviour.clone(), alive.clone()) => {}
        () = forward(from_server, to_client, behaviour.clone(), alive) => {}
        _ = cut.wait_for(|b| b.cuts > cuts) => {}
        () = silence(life, &mut behaviour) => {}
    }
}

/// Ends when one side has closed. What was read is on its way before the next is read.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut behaviour: watch::Receiver<Behaviour>,
    alive: watch::Sender<()>,
) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let (delay, piece) = {
            let behaviour = behaviour.borrow();
            (behaviour.delay, behaviour.piece)
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        for bytes in buffer[..length].chunks(piece) {
            let is_up = behaviour.wait_for(|b| b.link != Link::Stalled);
            let is_over = is_up.await.is_err();
            if is_over || to.write_all(bytes).await.is_err() {
                return;
            }
            match bytes.len() {
                // Long enough for the other side to read what it has.
                ..TINY => tokio::time::sleep(BETWEEN_TINY).await,
                length if length == piece => tokio::task::yield_now().await,
                _ => {}
            }
        }
        alive.send_replace(());
    }
}

/// Ends when nothing has passed for as long as the proxy allows.
async fn silence(mut life: watch::Receiver<()>, behaviour: &mut watch::Receiver<Behaviour>) {
    loop {
        let idle = behaviour.borrow_and_update().idle;
        let Some(idle) = idle else {
            if behaviour.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            changed = life.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(idle) => return,
        }
    }
}
