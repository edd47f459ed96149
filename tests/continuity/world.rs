//! The world of one case: a real Redis, relays in this process, their clients.
//!
//! Time stands still unless it is moved, and the relays run only when they get a turn. What the
//! test does to Redis it does while they stand: so a case goes the same way each time.

use std::fmt::Write as _;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use redis::{Cmd, Commands, Connection, cmd};
use relay::config::Config;
use relay::hub::Hub;
use relay::hub::feed::Feed;
use relay::metrics::Metrics;
use relay::session::ending::DrainSignal;
use relay::session::{Opening, Output, ServedRoute, Session, Start};
use relay::stream::{Cursor, EntryId, StreamKey, StreamKeys};
use relay::tasks::Tasks;
use serde_json::Value;

use crate::history::History;
use crate::operation::{Keep, Op, Setup};
use crate::servers::Servers;
use crate::support::proxy::Proxy;
use crate::wire::texts;
use crate::witness::Witness;

/// Relays side by side: a cursor of one is good for the other.
const RELAYS: usize = 2;
/// So many looks without any news are rest.
const QUIET_LOOKS: usize = 6;
/// So many without rest are a failure.
const MOST_LOOKS: usize = 1_000;
/// A pause of the relay may be long: after these looks it is passed over in greater steps.
const SHORT_LOOKS: usize = 40;
const SHORT_STEP: Duration = Duration::from_millis(3);
const LONG_STEP: Duration = Duration::from_millis(250);
/// What a client takes in one turn.
const MOST_OUTPUTS: usize = 10_000;
const MOST_CLIENTS: usize = 6;

pub(crate) struct World {
    key: StreamKeys,
    history: History,
    redis: Connection,
    /// To take the first one's place.
    replica: Option<Connection>,
    replica_address: String,
    proxy: Option<Proxy>,
    relays: Vec<Relay>,
    clients: Vec<Client>,
    came: usize,
    /// For people, when the case fails.
    story: String,
}

struct Relay {
    hub: Hub,
    route: Arc<ServedRoute>,
    /// Once somebody has come.
    feed: Option<Arc<Feed>>,
    reads_seen: u64,
}

struct Client {
    name: usize,
    relay: usize,
    session: Session,
    witness: Witness,
    reads: bool,
    ended: bool,
}

impl World {
    pub(crate) async fn new(servers: &Servers, setup: &Setup) -> Self {
        let key = servers.next_key();
        let proxy = match servers.replica() {
            Some(_) => Some(Proxy::start(servers.primary().address()).await),
            None => None,
        };
        let url = match &proxy {
            Some(proxy) => proxy.redis_url(),
            None => servers.primary().url(),
        };
        let config = config(setup, &url, &key);
        Self {
            key: StreamKeys::new(vec![StreamKey::from(key)]),
            history: History::default(),
            redis: Servers::connect(servers.primary()),
            replica: servers.replica().map(Servers::connect),
            replica_address: servers
                .replica()
                .map(|redis| redis.address())
                .unwrap_or_default(),
            relays: (0..RELAYS).map(|_| Relay::start(&config)).collect(),
            proxy,
            clients: Vec::new(),
            came: 0,
            story: String::new(),
        }
    }

    /// Plays a case to its end. What went wrong comes with all that was seen.
    pub(crate) async fn play(mut self, ops: &[Op]) -> Result<(), String> {
        match self.play_all(ops).await {
            Ok(()) => Ok(()),
            Err(wrong) => Err(format!("{wrong}\n{}", self.story)),
        }
    }

    async fn play_all(&mut self, ops: &[Op]) -> Result<(), String> {
        for op in ops {
            writeln!(self.story, "{op:?}").ok();
            self.step(op).await?;
            self.clients.retain(|client| !client.ended);
        }
        // Whatever was left open: everybody reads, and the stream goes on.
        writeln!(self.story, "the end").ok();
        self.clients
            .iter_mut()
            .for_each(|client| client.reads = true);
        self.rest().await?;
        self.add(1, 1, Keep::All, 0);
        self.rest().await
    }

    async fn step(&mut self, op: &Op) -> Result<(), String> {
        match *op {
            Op::Add {
                count,
                step,
                keep,
                filling,
            } => self.add(count, step, keep, filling),
            Op::Trim(keep) => self.trim(keep),
            Op::Delete { from_newest } => self.delete(from_newest),
            Op::End {
                by_expiry,
                begin_low,
            } => self.end(by_expiry, begin_low),
            Op::Attach { relay } => self.enter(relay.of(RELAYS), None).await?,
            Op::Resume { relay, cursor } => {
                let ids: Vec<EntryId> = self.history.all().map(|entry| entry.id).collect();
                let chosen = cursor.of(ids.len() + 1).checked_sub(1);
                let cursor = chosen.map_or(EntryId::ZERO, |at| ids[at]);
                self.enter(relay.of(RELAYS), Some(cursor)).await?;
            }
            Op::Return { relay, client } if !self.clients.is_empty() => {
                let client = self.clients.remove(client.of(self.clients.len()));
                let cursor = client.witness.cursor();
                self.enter(relay.of(RELAYS), Some(cursor)).await?;
            }
            Op::Stall { client } if !self.clients.is_empty() => {
                let client = client.of(self.clients.len());
                self.clients[client].reads = false;
                let mut cx = Context::from_waker(Waker::noop());
                self.clients[client].session.note_stuck(&mut cx);
                self.clients[client].witness.fall_out_of_step(&self.history);
            }
            Op::Take { client, messages } if !self.clients.is_empty() => {
                let client = client.of(self.clients.len());
                self.take(client, messages).await?;
            }
            Op::Wake { client } if !self.clients.is_empty() => {
                let client = client.of(self.clients.len());
                self.clients[client].reads = true;
            }
            Op::Leave { client } if !self.clients.is_empty() => {
                self.clients.remove(client.of(self.clients.len()));
            }
            Op::Turn { turns } => {
                for client in &mut self.clients {
                    client.witness.fall_out_of_step(&self.history);
                }
                for _ in 0..turns {
                    self.answered();
                    self.turns(1).await?;
                }
            }
            Op::Rest => self.rest().await?,
            Op::Part => self.part(),
            Op::Promote => self.promote(),
            Op::Return { .. }
            | Op::Stall { .. }
            | Op::Take { .. }
            | Op::Wake { .. }
            | Op::Leave { .. } => {}
        }
        Ok(())
    }
}

/// What is done to the stream. The relays stand meanwhile.
impl World {
    fn add(&mut self, count: usize, step: u64, keep: Keep, filling: usize) {
        for _ in 0..count {
            let (id, tag) = (self.history.next_id(step), self.history.next_tag());
            let mut command = cmd("XADD");
            command.arg(self.key());
            keep.push(&mut command);
            let filling = ".".repeat(filling);
            let payload = format!(r#"{{"tag":{tag},"filling":"{filling}"}}"#);
            command.arg(id.to_string()).arg("data").arg(payload);
            command
                .exec(&mut self.redis)
                .expect("an entry can be added");
            self.history.add(id);
            self.note_trimmed();
        }
    }

    fn trim(&mut self, keep: Keep) {
        if matches!(keep, Keep::All) {
            return;
        }
        let mut command = cmd("XTRIM");
        command.arg(self.key());
        keep.push(&mut command);
        command
            .exec(&mut self.redis)
            .expect("a stream can be trimmed");
        self.note_trimmed();
    }

    /// How many have gone Redis itself says: with `~` that is its own choice.
    fn note_trimmed(&mut self) {
        let key = self.key();
        let length: usize = self.redis.xlen(key).expect("a stream has a length");
        self.history.trim_to(length);
        self.note();
    }

    fn delete(&mut self, from_newest: usize) {
        let Some(id) = self
            .history
            .kept()
            .rev()
            .nth(from_newest)
            .map(|entry| entry.id)
        else {
            return;
        };
        let key = self.key();
        let deleted: usize = self
            .redis
            .xdel(key, &[id.to_string()])
            .expect("an entry can be deleted");
        assert_eq!(deleted, 1, "{id}");
        let was_read = self
            .relays
            .iter()
            .filter_map(Relay::tail)
            .all(|tail| tail >= id);
        self.history.delete(id, was_read);
        self.note();
    }

    fn end(&mut self, by_expiry: bool, begin_low: bool) {
        let key = self.key();
        if by_expiry {
            let set: bool = self.redis.pexpire(&key, 1).expect("a key can expire");
            assert_eq!(set, self.history.exists());
            while self.redis.exists(&key).expect("a key exists or not") {}
        } else {
            let _: usize = self.redis.del(&key).expect("a key can be deleted");
        }
        self.history.end(begin_low);
        self.note();
    }

    fn part(&mut self) {
        let Some(replica) = &mut self.replica else {
            return;
        };
        Servers::part(&mut self.redis, replica);
        self.history.part();
    }

    fn promote(&mut self) {
        self.part();
        let (Some(replica), Some(proxy)) = (self.replica.take(), &self.proxy) else {
            return;
        };
        self.redis = replica;
        proxy.retarget(self.replica_address.as_str());
        proxy.cut();
        proxy.restore();
        self.history.promote();
        for client in &mut self.clients {
            client.witness.fall_out_of_step(&self.history);
        }
        self.note();
    }

    fn note(&mut self) {
        self.history.note_look_alikes();
        for client in &mut self.clients {
            client.witness.note(&self.history);
        }
    }

    fn key(&self) -> String {
        self.key.as_slice()[0].as_str().to_owned()
    }
}

impl Keep {
    fn push(self, command: &mut Cmd) {
        match self {
            Self::All => command,
            Self::Newest(count) => command.arg("MAXLEN").arg(count),
            Self::AboutNewest(count) => command.arg("MAXLEN").arg("~").arg(count),
        };
    }
}

/// Turns of the relays and their clients.
impl World {
    async fn enter(&mut self, relay: usize, cursor: Option<EntryId>) -> Result<(), String> {
        if self.clients.len() == MOST_CLIENTS {
            self.clients.remove(0);
        }
        let key = self.key.as_slice()[0].clone();
        let hub = self.relays[relay].hub.clone();
        let mut attaching = Box::pin(async move { hub.attach(&key).await });
        let mut looks = 0;
        let watch = loop {
            if let Poll::Ready(attached) = attaching.as_mut().poll(&mut idle()) {
                break attached.map_err(|error| format!("can't attach: {error}"))?;
            }
            self.turns(1).await?;
            self.pass(SHORT_STEP, &mut looks).await?;
        };
        let noted = watch.feed.tail();
        self.relays[relay].feed = Some(watch.feed.clone());
        let start = match cursor {
            Some(cursor) => {
                let text = Cursor::display(std::iter::once(cursor), &self.key).to_string();
                Start::Resume(Cursor::parse(&text, &self.key).ok_or("the cursor is none")?)
            }
            None => Start::Now(vec![noted]),
        };
        let position = cursor.unwrap_or(noted);
        if position != EntryId::ZERO && self.history.get(position).is_none() {
            return Err(format!("attached at {position}, which never was"));
        }
        self.came += 1;
        writeln!(self.story, "  client {} at {position}", self.came).ok();
        let route = self.relays[relay].route.clone();
        let mut client = Client {
            name: self.came,
            relay,
            session: Session::new(Opening {
                renew: None,
                presence: route.enter(()),
                route,
                keys: self.key.clone(),
                watches: vec![watch],
                start,
                callback: None,
                expires_at: None,
            }),
            witness: Witness::at(position, cursor.is_some()),
            reads: true,
            ended: false,
        };
        client.witness.note(&self.history);
        self.clients.push(client);
        Ok(())
    }

    /// Gives the relays turns, and lets the clients take what there is.
    async fn turns(&mut self, turns: usize) -> Result<bool, String> {
        let mut has_news = false;
        for _ in 0..turns {
            tokio::task::yield_now().await;
            for client in self.clients.iter_mut().filter(|client| client.reads) {
                let mut taken = 0;
                while client.take_one(&self.history, &mut self.story)? {
                    (has_news, taken) = (true, taken + 1);
                    if taken > MOST_OUTPUTS {
                        return Err(format!("client {} is sent without end", client.name));
                    }
                }
            }
        }
        Ok(has_news)
    }

    /// Redis has done what the relays have asked for before it answers this: so what they find at
    /// their next turn is not a matter of speed.
    fn answered(&mut self) {
        cmd("PING").exec(&mut self.redis).expect("redis answers");
    }

    /// Moves the relays' clock, but not while one of them waits for Redis.
    async fn pass(&mut self, step: Duration, looks: &mut usize) -> Result<(), String> {
        *looks += 1;
        self.answered();
        tokio::time::advance(step).await;
        match *looks < MOST_LOOKS {
            true => Ok(()),
            false => Err(format!("no rest within {MOST_LOOKS} looks")),
        }
    }

    /// A client that does not read takes a few messages after all.
    async fn take(&mut self, client: usize, messages: usize) -> Result<(), String> {
        self.clients[client].reads = false;
        let mut taken = 0;
        for _ in 0..200 {
            self.answered();
            self.turns(1).await?;
            if self.clients[client].take_one(&self.history, &mut self.story)? {
                taken += 1;
            }
            if taken == messages || self.clients[client].ended {
                break;
            }
        }
        self.clients[client].witness.fall_out_of_step(&self.history);
        Ok(())
    }

    async fn rest(&mut self) -> Result<(), String> {
        let (mut quiet, mut looks) = (0, 0);
        // What the server had to say of what was done is sent before it answers this.
        self.pass(SHORT_STEP, &mut looks).await?;
        while quiet < QUIET_LOOKS {
            let has_news = self.turns(6).await?;
            let is_reading = self.relays.iter_mut().any(Relay::is_reading);
            let lacking = self.lacking();
            let is_quiet = !has_news && !is_reading && lacking.is_none();
            quiet = if is_quiet { quiet + 1 } else { 0 };
            let step = match lacking.is_some() && looks > SHORT_LOOKS {
                true => LONG_STEP,
                false => SHORT_STEP,
            };
            let passed = self.pass(step, &mut looks).await;
            passed.map_err(|late| lacking.unwrap_or(late))?;
        }
        for client in self.clients.iter_mut().filter(|client| client.reads) {
            if let Some(tail) = self.relays[client.relay].tail() {
                client.witness.rest(&self.history, tail);
            }
        }
        Ok(())
    }

    /// What some client that reads should have by now.
    fn lacking(&self) -> Option<String> {
        let mut reading = self
            .clients
            .iter()
            .filter(|client| client.reads && !client.ended);
        reading.find_map(|client| {
            let lacks = client.witness.lacks(&self.history)?;
            Some(format!("client {} lacks {lacks}", client.name))
        })
    }
}

/// Clients are asked again in each turn: nobody needs to wake them.
fn idle() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Client {
    /// Takes what the session has for it next. Whether there was something.
    fn take_one(&mut self, history: &History, story: &mut String) -> Result<bool, String> {
        if self.ended {
            return Ok(false);
        }
        self.session.note_life();
        let Poll::Ready(output) = self.session.poll_next(&mut idle()) else {
            return Ok(false);
        };
        match output {
            Output::Messages(batch) => {
                for text in texts(&batch.parts) {
                    self.hear(history, story, &text)
                        .map_err(|wrong| format!("client {}: {wrong}", self.name))?;
                }
            }
            Output::Ping => {}
            Output::Close(close) => {
                writeln!(story, "  client {} closed", self.name).ok();
                self.ended = true;
                self.witness
                    .closed(close.refusal.reason)
                    .map_err(|wrong| format!("client {}: {wrong}", self.name))?;
            }
        }
        Ok(true)
    }

    fn hear(&mut self, history: &History, story: &mut String, text: &str) -> Result<(), String> {
        let frame: Value =
            serde_json::from_str(text).map_err(|error| format!("{error}: {text}"))?;
        let id = |name: &str| {
            let id = frame[name].as_str().and_then(EntryId::parse);
            id.ok_or_else(|| format!("{text} has no {name}"))
        };
        let shown: String = text.chars().take(120).collect();
        writeln!(story, "  client {}: {shown}", self.name).ok();
        match frame["type"].as_str() {
            Some("event") => {
                if frame["cursor"] != frame["id"] {
                    return Err(format!("{text}: the cursor is not the id"));
                }
                let tag = frame["data"]["tag"].as_u64().ok_or("no tag")?;
                self.witness.event(history, id("id")?, tag)
            }
            Some("live") => self.witness.live(history, id("cursor")?),
            Some("resync") => {
                let reason = frame["reason"].as_str().unwrap_or_default();
                let lost = frame["lost"].as_str().unwrap_or_default();
                self.witness.resync(history, reason, lost)
            }
            Some("status") => Ok(()),
            _ => Err(format!("an unexpected frame: {text}")),
        }
    }
}

impl Relay {
    fn start(config: &Arc<Config>) -> Self {
        let (tasks, metrics) = (Tasks::default(), Metrics::new());
        let hub = Hub::start(config.clone(), &tasks, &metrics).expect("the address is one");
        let drain = DrainSignal::new();
        let route = ServedRoute::new(config.clone(), 0, &hub, &drain, &tasks, &metrics);
        Self {
            hub,
            route: Arc::new(route),
            feed: None,
            reads_seen: 0,
        }
    }

    /// How far it has read, if it reads at all.
    fn tail(&self) -> Option<EntryId> {
        Some(self.feed.as_ref()?.tail())
    }

    /// Whether a read was sent since the last look, or is on its way.
    fn is_reading(&mut self) -> bool {
        let Some(feed) = &self.feed else {
            return false;
        };
        let reads = feed.reads_sent();
        let was_sent = std::mem::replace(&mut self.reads_seen, reads) != reads;
        was_sent || !feed.was_read_since(reads.saturating_sub(1))
    }
}

fn config(setup: &Setup, url: &str, key: &str) -> Arc<Config> {
    let Setup {
        ring_entries,
        hold_ms,
        is_polling,
    } = setup;
    // Pushes alone must do, but where there are none.
    let (wake, sweep) = match is_polling {
        true => ("poll", "1s"),
        false => ("tracking", "1h"),
    };
    let text = format!(
        r#"
        [redis]
        url = "{url}"
        wake = "{wake}"
        sweep = "{sweep}"
        hold = "{hold_ms}ms"
        ring_entries = {ring_entries}
        # Time is moved in steps, and not by what takes time.
        command_timeout = "10m"
        linger = "1h"

        [keepalive]
        ping = "10m"
        timeout = "20m"

        [auth]
        mode = "none"

        [[route]]
        name = "stream"
        path = "/stream"
        streams = ["{key}"]

        [route.message]
        field = "data"
        "#
    );
    let config = Config::parse(&text, "relay.toml", &|_| None);
    Arc::new(config.expect("the config of the test is good"))
}
