//! The reader's own connection: pulls in trains, pushes as they come.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use deadpool_redis::{Hook, HookError};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ProtocolVersion, PushInfo, PushKind, RedisResult, Value};
use tokio::time::{Instant, timeout};

use super::reply::{self, StreamInfo};
use super::{StoreError, Unreadable};
use crate::metrics::{Metrics, REDIS_COMMANDS};
use crate::stream::{Entry, EntryId, StreamKey};

/// What Redis says unasked.
#[derive(Debug)]
pub enum Push {
    /// These keys have changed since they were last read.
    Changed(Vec<Bytes>),
    /// Every key may have changed: a FLUSHDB or FLUSHALL.
    AllChanged,
    /// The connection is gone.
    Disconnected,
}

impl Push {
    pub(super) fn read(push: PushInfo) -> Option<Self> {
        match push.kind {
            PushKind::Disconnection => Some(Self::Disconnected),
            PushKind::Invalidate => match push.data.into_iter().next() {
                Some(Value::Array(keys)) => Some(Self::Changed(
                    keys.into_iter()
                        .filter_map(|key| match key {
                            Value::BulkString(key) => Some(key.into()),
                            _ => None,
                        })
                        .collect(),
                )),
                _ => Some(Self::AllChanged),
            },
            _ => None,
        }
    }
}

/// One question about a stream: `XRANGE key from + COUNT count`, `from` included.
#[derive(Debug, Clone)]
pub struct Read {
    /// The stream.
    pub key: StreamKey,
    /// The first id that may be in the answer.
    pub from: EntryId,
    /// How many entries at the most.
    pub count: usize,
    /// Whether `XINFO STREAM` is asked right behind it.
    pub with_info: bool,
}

/// The answer to a [`Read`].
#[derive(Debug)]
pub struct Answer {
    /// Ascending, the one at `from` included.
    pub entries: Vec<Entry>,
    /// Of the stream, if it was asked for: the inner `None` says that there is no such key.
    pub info: Option<Option<StreamInfo>>,
}

/// What a server is to its replication, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role(Option<Bytes>);

/// A connection that only the reader uses. Dropping it closes it.
pub struct ReaderConnection {
    connection: MultiplexedConnection,
    protocol: ProtocolVersion,
    role: Role,
    command_timeout: Duration,
    metrics: Metrics,
}

impl ReaderConnection {
    /// Names the connection and notes the server's role.
    pub(super) async fn greet(
        connection: MultiplexedConnection,
        protocol: ProtocolVersion,
        client_name: &str,
        command_timeout: Duration,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        let mut this = Self {
            connection,
            protocol,
            role: Role(None),
            command_timeout,
            metrics,
        };
        let naming = set_name(client_name);
        // The name is for people: a server or an ACL that refuses it is none the worse for it.
        match this.ask(&naming, "client").await {
            Err(StoreError::Unavailable(reason)) => return Err(StoreError::Unavailable(reason)),
            Ok(_) | Err(StoreError::Unreadable(_)) => {}
        }
        this.role = this.current_role().await?;
        Ok(this)
    }

    /// The server's role when the connection was made.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The server's role now. Also the sign of life: `HELLO` keeps tracking armed, and a
    /// demoted primary tells on itself, which would answer `PING` for ever and push nothing.
    ///
    /// # Errors
    /// No answer within `command_timeout`.
    pub async fn current_role(&mut self) -> Result<Role, StoreError> {
        let version = if self.protocol == ProtocolVersion::RESP3 {
            3
        } else {
            2
        };
        let mut hello = Cmd::new();
        hello.arg("HELLO").arg(version);
        match self.ask(&hello, "hello").await {
            Ok(value) => Ok(Role(reply::role(Ok(value))?)),
            // A server too old for HELLO, or a proxy: its answer is a sign of life all the same.
            Err(StoreError::Unreadable(_)) => Ok(Role(None)),
            Err(error) => Err(error),
        }
    }

    /// Whether the server serves: while it loads its data it refuses this.
    ///
    /// # Errors
    /// It does not, or not within `command_timeout`.
    pub async fn ping(&mut self) -> Result<(), StoreError> {
        let mut ping = Cmd::new();
        ping.arg("PING");
        self.ask(&ping, "ping").await.map(|_| ())
    }

    /// Asks for pushes. `Ok(Err(_))` says why Redis does not allow it.
    ///
    /// # Errors
    /// No answer within `command_timeout`.
    pub async fn track(&mut self) -> Result<Result<(), Unreadable>, StoreError> {
        if self.protocol != ProtocolVersion::RESP3 {
            return Ok(Err(Unreadable::Refused("RESP3".into())));
        }
        self.set_tracking("ON").await
    }

    /// Asks for no more pushes.
    ///
    /// # Errors
    /// No answer within `command_timeout`.
    pub async fn stop_tracking(&mut self) -> Result<(), StoreError> {
        self.set_tracking("OFF").await.map(|_| ())
    }

    async fn set_tracking(&mut self, to: &str) -> Result<Result<(), Unreadable>, StoreError> {
        let mut tracking = Cmd::new();
        tracking.arg("CLIENT").arg("TRACKING").arg(to);
        match self.ask(&tracking, "client").await {
            Ok(_) => Ok(Ok(())),
            Err(StoreError::Unreadable(reason)) => Ok(Err(reason)),
            Err(error) => Err(error),
        }
    }

    /// Asks everything at once and collects the answers in order. The deadline is per reply,
    /// not for the train: a slow link may take long, a dead one may not.
    ///
    /// # Errors
    /// The connection is of no use any more. What is wrong with one key alone is in its answer.
    pub async fn read_all(
        &mut self,
        reads: &[Read],
    ) -> Result<Vec<Result<Answer, Unreadable>>, StoreError> {
        exchange(&self.connection, reads, self.command_timeout, &self.metrics).await
    }

    /// Which of these keys have entries after the id given with them. Not for long lists: one
    /// key that can't be read fails all, as `Ok(Err(_))`.
    ///
    /// # Errors
    /// No answer within `command_timeout`.
    pub async fn keys_with_news(
        &mut self,
        after: &[(StreamKey, EntryId)],
    ) -> Result<Result<Vec<Bytes>, Unreadable>, StoreError> {
        let mut command = Cmd::new();
        command.arg("XREAD").arg("COUNT").arg(1).arg("STREAMS");
        for (key, _) in after {
            command.arg(key.as_str());
        }
        for (_, id) in after {
            command.arg(id.to_string());
        }
        match self.ask(&command, "xread").await {
            Ok(value) => reply::keys_with_news(Ok(value)).map(Ok),
            Err(StoreError::Unreadable(reason)) => Ok(Err(reason)),
            Err(error) => Err(error),
        }
    }

    async fn ask(&mut self, command: &Cmd, name: &'static str) -> Result<Value, StoreError> {
        self.metrics.counter(&REDIS_COMMANDS, &[name]).inc();
        let asked = self.connection.send_packed_command(command);
        let reply = timeout(self.command_timeout, asked)
            .await
            .map_err(|_| late(self.command_timeout))?;
        reply::plain(reply)
    }
}

/// Sends all reads at once and collects the answers in order, each reply within the deadline.
pub(super) async fn exchange(
    connection: &MultiplexedConnection,
    reads: &[Read],
    deadline: Duration,
    metrics: &Metrics,
) -> Result<Vec<Result<Answer, Unreadable>>, StoreError> {
    let mut replies = FuturesOrdered::new();
    for read in reads {
        replies.push_back(ask(connection.clone(), xrange(read)));
        if read.with_info {
            replies.push_back(ask(connection.clone(), xinfo(&read.key)));
        }
    }
    let with_info = reads.iter().filter(|read| read.with_info).count();
    metrics
        .counter(&REDIS_COMMANDS, &["xrange"])
        .inc_by(reads.len() as u64);
    metrics
        .counter(&REDIS_COMMANDS, &["xinfo"])
        .inc_by(with_info as u64);
    let mut answers = Vec::with_capacity(reads.len());
    for read in reads {
        let entries = reply::entries(next(&mut replies, deadline).await?);
        let info = match read.with_info {
            true => Some(reply::stream_info(next(&mut replies, deadline).await?)),
            false => None,
        };
        answers.push(match (entries, info.transpose()) {
            (Ok(entries), Ok(info)) => Ok(Answer { entries, info }),
            (Err(StoreError::Unreadable(reason)), _) | (_, Err(StoreError::Unreadable(reason))) => {
                Err(reason)
            }
            (Err(error), _) | (_, Err(error)) => return Err(error),
        });
    }
    Ok(answers)
}

type Reply = RedisResult<Value>;

async fn next(
    replies: &mut FuturesOrdered<BoxFuture<'static, Reply>>,
    deadline: Duration,
) -> Result<Reply, StoreError> {
    let reply = timeout(deadline, replies.next())
        .await
        .map_err(|_| late(deadline))?;
    Ok(reply.expect("there is a reply for each command"))
}

fn ask(mut connection: MultiplexedConnection, command: Cmd) -> BoxFuture<'static, Reply> {
    Box::pin(async move { connection.send_packed_command(&command).await })
}

fn xrange(read: &Read) -> Cmd {
    let mut command = Cmd::new();
    command
        .arg("XRANGE")
        .arg(read.key.as_str())
        .arg(read.from.to_string())
        .arg("+")
        .arg("COUNT")
        .arg(read.count);
    command
}

pub(super) fn xinfo(key: &StreamKey) -> Cmd {
    let mut command = Cmd::new();
    command.arg("XINFO").arg("STREAM").arg(key.as_str());
    command
}

fn late(deadline: Duration) -> StoreError {
    StoreError::Unavailable(format!("no answer within {deadline:?}"))
}

/// A hook that names a connection of the pool. The name is for people: a server or an ACL that
/// refuses it is none the worse for it.
pub(super) fn name_it(client_name: &str) -> Hook {
    let naming = set_name(client_name);
    Hook::async_fn(move |connection, _| {
        let naming = naming.clone();
        Box::pin(async move {
            let _refused = connection.send_packed_command(&naming).await;
            Ok(())
        })
    })
}

fn set_name(client_name: &str) -> Cmd {
    let mut naming = Cmd::new();
    naming.arg("CLIENT").arg("SETNAME").arg(client_name);
    naming
}

/// Tells connections of the pool that were made before a change of servers from later ones.
#[derive(Clone, Default)]
pub(super) struct PoolEpoch {
    /// Connections made before are of no use any more.
    oldest: Arc<Mutex<Option<std::time::Instant>>>,
}

impl PoolEpoch {
    /// Every connection made so far is of no use any more.
    pub(super) fn advance(&self) {
        let now = Instant::now().into_std();
        *self.oldest.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// A hook that lets the pool drop older connections instead of lending them.
    pub(super) fn refuse_older(&self) -> Hook {
        let oldest = self.oldest.clone();
        Hook::sync_fn(move |_, metrics| {
            let oldest = *oldest.lock().unwrap_or_else(PoisonError::into_inner);
            match oldest {
                Some(oldest) if metrics.created < oldest => {
                    Err(HookError::message("the server has changed its role"))
                }
                _ => Ok(()),
            }
        })
    }
}
