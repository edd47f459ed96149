//! Publishers: they add entries, trim, delete, and write down what they do.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisResult};
use relay::stream::EntryId;
use tokio::time::{Instant, sleep};

use super::chance::Chance;
use super::payload;
use super::routes::key;
use super::world::World;

/// Longer than Redis is ever stopped: an answer that does not come is one of a dead server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Within this time Redis is back.
const OUTAGE: Duration = Duration::from_secs(60);
/// Ids begin with the time: after this pause they are greater, also of a stream made anew.
const LATER: Duration = Duration::from_millis(5);
const KEPT: u64 = 300;
const BURST: u64 = 24;

/// How entries leave a stream.
#[derive(Clone, Copy, Debug)]
enum Style {
    /// Not at all.
    Kept,
    /// By `MAXLEN`, which a burst may go over.
    Bounded,
    /// By `MAXLEN ~`.
    AboutBounded,
    /// By `XTRIM`, down to nothing at times.
    Trimmed,
    /// With the whole stream.
    Deleted,
}

impl Style {
    fn of(stream: usize) -> Self {
        match stream % 6 {
            0 | 1 => Self::Kept,
            2 => Self::Bounded,
            3 => Self::AboutBounded,
            4 => Self::Trimmed,
            _ => Self::Deleted,
        }
    }
}

pub(crate) struct Publisher {
    world: Arc<World>,
    streams: Vec<usize>,
    chance: Chance,
    connection: Option<MultiplexedConnection>,
    pause_ms: u64,
}

/// `Err` is a violation, or what makes the run worthless.
type Done<T = ()> = Result<T, String>;

impl Publisher {
    /// One of so many, who share the streams. It rests up to this long between two bursts.
    pub(crate) fn new(world: Arc<World>, index: usize, of: usize, pause_ms: u64) -> Self {
        let streams = (0..world.log.streams())
            .filter(|stream| stream % of == index)
            .collect();
        Self {
            streams,
            chance: Chance::of(world.seed, "publisher", index),
            connection: None,
            pause_ms,
            world,
        }
    }

    /// Until the run is quiet; then one last entry for each stream.
    pub(crate) async fn run(mut self, until: Instant) -> Done {
        while Instant::now() < until {
            let stream = self.streams[self.chance.index(self.streams.len())];
            self.act(stream).await?;
            sleep(self.chance.ms(0, self.pause_ms)).await;
        }
        Ok(())
    }

    /// So that every stream has an end that everybody can reach.
    pub(crate) async fn last_entries(world: Arc<World>) -> Done {
        let mut publisher = Self::new(world, 0, 1, 0);
        for stream in publisher.streams.clone() {
            publisher.add(stream, 1).await?;
        }
        Ok(())
    }

    async fn act(&mut self, stream: usize) -> Done {
        let burst = self.chance.between(1, BURST);
        match Style::of(stream) {
            Style::Kept | Style::AboutBounded => self.add(stream, burst).await,
            Style::Bounded if self.chance.once_in(150) => self.burst(stream, KEPT + burst).await,
            Style::Bounded => self.add(stream, burst).await,
            Style::Trimmed => {
                self.add(stream, burst).await?;
                match self.chance.once_in(60) {
                    true => self.trim(stream).await,
                    false => Ok(()),
                }
            }
            Style::Deleted => {
                self.add(stream, burst).await?;
                match self.chance.once_in(150) {
                    true => self.delete(stream).await,
                    false => Ok(()),
                }
            }
        }
    }

    /// Adds the next entries. Where the answer is lost with its server, the stream itself says
    /// which were added; the others are sent again.
    async fn add(&mut self, stream: usize, count: u64) -> Done {
        let last = self.world.log.facts(stream).written + count;
        let is_atomic = self.chance.once_in(4);
        loop {
            let next = self.world.log.facts(stream).written + 1;
            if next > last {
                self.world.totals.entries.add(count);
                return Ok(());
            }
            self.connect().await?;
            let world = self.world.clone();
            let _adding = world.adding.read().await;
            self.note_sending(stream, last);
            let xadds = self.xadds(stream, next, last, is_atomic);
            match self.ask::<Vec<String>>(&xadds).await {
                Some(ids) => world.log.written(stream, &parsed(&ids)?)?,
                None => self.learn(stream, next, last - next + 1).await?,
            }
        }
    }

    /// More entries at once than the stream keeps: of the first ones only the answer tells the
    /// ids, so Redis must live until it has come.
    async fn burst(&mut self, stream: usize, count: u64) -> Done {
        let world = self.world.clone();
        let _answered = world.answered.read().await;
        self.world.totals.removals.add("burst");
        self.add(stream, count).await
    }

    fn note_sending(&self, stream: usize, last: u64) {
        self.world.log.sending(stream, last);
        if matches!(Style::of(stream), Style::Bounded | Style::AboutBounded) {
            self.world.log.removing(stream, last.saturating_sub(KEPT));
        }
    }

    fn xadds(&self, stream: usize, first: u64, last: u64, is_atomic: bool) -> Pipeline {
        let mut pipeline = redis::pipe();
        if is_atomic {
            pipeline.atomic();
        }
        for n in first..=last {
            let xadd = pipeline.cmd("XADD").arg(key(stream));
            match Style::of(stream) {
                Style::Bounded => xadd.arg("MAXLEN").arg(KEPT),
                Style::AboutBounded => xadd.arg("MAXLEN").arg("~").arg(KEPT),
                Style::Kept | Style::Trimmed | Style::Deleted => xadd,
            };
            let data = payload::text(self.world.seed, stream, n);
            xadd.arg("*").arg("data").arg(data);
        }
        pipeline
    }

    /// What was added of entries whose answer was lost. Nobody else adds, and the server that
    /// was asked is dead: what is not there will not come.
    async fn learn(&mut self, stream: usize, next: u64, count: u64) -> Done {
        let mut newest = redis::cmd("XREVRANGE");
        newest
            .arg(key(stream))
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(count);
        let entries: Vec<(String, Vec<(String, String)>)> = self.insist(&newest).await?;
        let mut ids = Vec::new();
        for (id, fields) in entries.iter().rev() {
            let data = fields
                .first()
                .map(|(_, data)| data.as_str())
                .unwrap_or_default();
            let payload: payload::Payload<'_> = serde_json::from_str(data)
                .map_err(|error| format!("{error} in an entry of stream {stream}: {data}"))?;
            if payload.n < next {
                continue;
            }
            if payload.n != next + ids.len() as u64 {
                return Err(format!(
                    "stream {stream}: {} was added, and not all before it",
                    payload.n
                ));
            }
            ids.push(id.clone());
        }
        let log = &self.world.log;
        log.written(stream, &parsed(&ids)?)?;
        if log.facts(stream).written < next + count - 1 {
            log.not_written(stream)?;
        }
        self.world.totals.note(&format!(
            "stream {stream}: the answer to {count} entries from {next} on was lost, {} were added",
            ids.len()
        ));
        Ok(())
    }

    async fn trim(&mut self, stream: usize) -> Done {
        let keep = [0, 1, 5, 50, 200][self.chance.index(5)];
        let world = self.world.clone();
        let _adding = world.adding.read().await;
        let last = world.log.facts(stream).written;
        world.log.removing(stream, last.saturating_sub(keep));
        world.totals.removals.add("trim");
        let mut xtrim = redis::cmd("XTRIM");
        xtrim.arg(key(stream)).arg("MAXLEN").arg(keep);
        self.insist::<u64>(&xtrim).await?;
        Ok(())
    }

    async fn delete(&mut self, stream: usize) -> Done {
        let world = self.world.clone();
        {
            let _adding = world.adding.read().await;
            world.log.deleting(stream);
            world.totals.removals.add("delete");
            let mut del = redis::cmd(if self.chance.once_in(2) {
                "DEL"
            } else {
                "UNLINK"
            });
            del.arg(key(stream));
            self.insist::<u64>(&del).await?;
        }
        sleep(LATER + self.chance.ms(0, 20) * if self.chance.once_in(2) { 50 } else { 0 }).await;
        Ok(())
    }

    /// Asks once. Without an answer the connection is given up.
    async fn ask<T: redis::FromRedisValue>(&mut self, pipeline: &Pipeline) -> Option<T> {
        let connection = self.connection.as_mut()?;
        let answer: RedisResult<T> = pipeline.query_async(connection).await;
        if answer.is_err() {
            self.connection = None;
        }
        answer.ok()
    }

    /// Asks until there is an answer: for commands that may be carried out twice.
    async fn insist<T: redis::FromRedisValue>(&mut self, command: &Cmd) -> Done<T> {
        loop {
            let mut connection = self.connect().await?;
            let answer: RedisResult<T> = command.query_async(&mut connection).await;
            match answer {
                Ok(answer) => return Ok(answer),
                Err(_) => self.connection = None,
            }
        }
    }

    async fn connect(&mut self) -> Done<MultiplexedConnection> {
        let since = Instant::now();
        loop {
            if let Some(connection) = &self.connection {
                return Ok(connection.clone());
            }
            match connection(&self.world.redis_url).await {
                Ok(connection) => self.connection = Some(connection),
                Err(error) if since.elapsed() > OUTAGE => {
                    return Err(format!("Redis has not come back: {error}"));
                }
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// To a server that serves: one that is loading its data does not.
async fn connection(url: &str) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER_TIMEOUT))
        .set_response_timeout(Some(ANSWER_TIMEOUT));
    let client = redis::Client::open(url)?;
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&config)
        .await?;
    redis::cmd("PING").exec_async(&mut connection).await?;
    Ok(connection)
}

fn parsed(ids: &[String]) -> Done<Vec<EntryId>> {
    let id = |text: &String| EntryId::parse(text).ok_or_else(|| format!("the id {text}"));
    ids.iter().map(id).collect()
}
