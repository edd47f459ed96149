//! Redis: the only place that names its commands.
//!
//! Two kinds of connection. The [`ReaderConnection`] is the reader's own, for pulls and
//! pushes. The pool serves short questions of sessions; two of its connections are kept for
//! attaching, so that a wave of backlog reads never delays a client that has just come.

mod connection;
pub mod live;
mod reply;

use std::time::Duration;

use deadpool_redis::{Manager, Pool, PoolConfig, Runtime, Timeouts};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, RedisError,
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::config::Redis;
use crate::metrics::{Metrics, REDIS_COMMANDS};
use crate::stream::{Entry, EntryId, StreamKey};

pub use connection::{Answer, Push, Read, ReaderConnection, Role};
pub use reply::StreamInfo;

/// Why Redis did not give what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No answer, or none that says anything about the key: worth another try.
    #[error("redis is unavailable: {0}")]
    Unavailable(String),
    /// This key can't be read; others can.
    #[error("{0}")]
    Unreadable(Unreadable),
}

/// Why one key can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It holds something else than a stream.
    #[error("the key does not hold a stream")]
    WrongType,
    /// The ACL of the relay's user does not allow it.
    #[error("the ACL does not allow it")]
    NoPermission,
    /// Redis refused for another reason; this is its error code.
    #[error("redis refused to read the key: {0}")]
    Refused(String),
}

/// Connections to one Redis.
pub struct Store {
    client: Client,
    client_name: String,
    pool: Pool,
    /// Holds questions back that are not about attaching.
    backlog_turns: Semaphore,
    command_timeout: Duration,
    pool_epoch: connection::PoolEpoch,
    metrics: Metrics,
}

/// Connections of the pool that backlog reads leave to attaching.
const KEPT_FOR_ATTACHING: usize = 2;

impl Store {
    /// Prepares the connections; none is opened yet.
    ///
    /// # Errors
    /// The URL is none that the client library understands.
    pub fn new(config: &Redis, metrics: &Metrics) -> Result<Self, RedisError> {
        let info = connection_info(config)?;
        let pool_epoch = connection::PoolEpoch::default();
        let pool = pool(config, info.clone(), &pool_epoch)?;
        Ok(Self {
            client: Client::open(info)?,
            client_name: config.client_name.clone(),
            pool,
            backlog_turns: Semaphore::new(
                config.pool_size.saturating_sub(KEPT_FOR_ATTACHING).max(1),
            ),
            command_timeout: config.command_timeout,
            pool_epoch,
            metrics: metrics.clone(),
        })
    }

    /// Opens the reader's own connection. With RESP3 refused it speaks RESP2 and can't track.
    ///
    /// `on_push` hears of changed keys and must not block.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], with the reason.
    pub async fn connect_reader(
        &self,
        on_push: impl Fn(Push) + Clone + Send + Sync + 'static,
    ) -> Result<ReaderConnection, StoreError> {
        let resp3 = self.open(ProtocolVersion::RESP3, on_push.clone());
        let (connection, protocol) = match within(self.command_timeout, resp3).await {
            Ok(connection) => (connection, ProtocolVersion::RESP3),
            Err(Failure::Redis(error)) if error.kind() == ErrorKind::RESP3NotSupported => {
                let resp2 = self.open(ProtocolVersion::RESP2, on_push);
                (
                    within(self.command_timeout, resp2).await?,
                    ProtocolVersion::RESP2,
                )
            }
            Err(failure) => return Err(failure.into()),
        };
        ReaderConnection::greet(
            connection,
            protocol,
            &self.client_name,
            self.command_timeout,
            self.metrics.clone(),
        )
        .await
    }

    async fn open(
        &self,
        protocol: ProtocolVersion,
        on_push: impl Fn(Push) + Send + Sync + 'static,
    ) -> Result<redis::aio::MultiplexedConnection, RedisError> {
        let info = self.client.get_connection_info();
        let settings = info.redis_settings().clone().set_protocol(protocol);
        let client = Client::open(info.clone().set_redis_settings(settings))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.command_timeout))
            // Deadlines are per reply here: see ReaderConnection::read_all.
            .set_response_timeout(None)
            .set_push_sender(move |push| {
                if let Some(push) = Push::read(push) {
                    on_push(push);
                }
                Ok::<_, std::convert::Infallible>(())
            });
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Gives up every connection of the pool: they lead to a server that has changed its role.
    pub fn drop_pool(&self) {
        self.pool_epoch.advance();
    }

    /// What Redis knows of a stream; `None` if there is no such key. For attaching: it uses
    /// the connections that are kept for that.
    ///
    /// # Errors
    /// No answer within `command_timeout`, or the key is no stream that can be read.
    pub async fn stream_info(&self, key: &StreamKey) -> Result<Option<StreamInfo>, StoreError> {
        self.metrics.counter(&REDIS_COMMANDS, &["xinfo"]).inc();
        let question = async {
            let mut connection = self.connection().await?;
            let reply = connection
                .send_packed_command(&connection::xinfo(key))
                .await;
            reply::stream_info(reply)
        };
        within(self.command_timeout, question)
            .await
            .map_err(StoreError::from)
    }

    /// Reads as a page of the backlog, or whatever else a session needs.
    ///
    /// # Errors
    /// As with [`stream_info`](Self::stream_info); waiting for a turn counts too.
    pub async fn read(&self, read: &Read) -> Result<Answer, StoreError> {
        let question = async {
            let (_turn, connection) = self.in_turn().await?;
            let reads = std::slice::from_ref(read);
            let answers =
                connection::exchange(&connection, reads, self.command_timeout, &self.metrics)
                    .await?;
            let answer = answers.into_iter().next().expect("one read has one answer");
            answer.map_err(StoreError::Unreadable)
        };
        // The turn, the connection and the answer each may take their time; none for ever.
        within(self.command_timeout * 3, question)
            .await
            .map_err(StoreError::from)
    }

    /// Up to `count` entries that are not after `until`, newest first.
    ///
    /// # Errors
    /// As with [`read`](Self::read).
    pub async fn newest(
        &self,
        key: &StreamKey,
        until: EntryId,
        count: u64,
    ) -> Result<Vec<Entry>, StoreError> {
        self.metrics.counter(&REDIS_COMMANDS, &["xrevrange"]).inc();
        let mut command = Cmd::new();
        command
            .arg("XREVRANGE")
            .arg(key.as_str())
            .arg(until.to_string())
            .arg("-")
            .arg("COUNT")
            .arg(count);
        let question = async {
            let (_turn, mut connection) = self.in_turn().await?;
            reply::entries(connection.send_packed_command(&command).await)
        };
        within(self.command_timeout * 3, question)
            .await
            .map_err(StoreError::from)
    }

    /// A connection for a question that is not about attaching.
    async fn in_turn(
        &self,
    ) -> Result<(SemaphorePermit<'_>, deadpool_redis::Connection), StoreError> {
        let turn = self.backlog_turns.acquire().await;
        let turn = turn.expect("the semaphore is never closed");
        Ok((turn, self.connection().await?))
    }

    async fn connection(&self) -> Result<deadpool_redis::Connection, StoreError> {
        self.pool
            .get()
            .await
            .map_err(|error| StoreError::Unavailable(error.to_string()))
    }
}

/// The address and credentials of the config, with TCP settings that notice a dead peer.
fn connection_info(config: &Redis) -> Result<ConnectionInfo, RedisError> {
    let info = config.url.expose().into_connection_info()?;
    // Redis 7.0 knows no ACL rule for CLIENT SETINFO.
    let mut settings = info.redis_settings().clone().set_skip_set_lib_name();
    if !config.username.is_empty() {
        settings = settings.set_username(&config.username);
    }
    if !config.password.expose().is_empty() {
        settings = settings.set_password(config.password.expose());
    }
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10));
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(keepalive);
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp))
}

fn pool(
    config: &Redis,
    info: ConnectionInfo,
    epoch: &connection::PoolEpoch,
) -> Result<Pool, RedisError> {
    let connection = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(config.command_timeout))
        .set_response_timeout(Some(config.command_timeout));
    let manager = Manager::new_with_config(info, connection)?;
    let deadline = Some(config.command_timeout);
    let pool_config = PoolConfig {
        max_size: config.pool_size,
        timeouts: Timeouts {
            wait: deadline,
            create: deadline,
            recycle: deadline,
        },
        ..PoolConfig::default()
    };
    let pool = Pool::builder(manager)
        .config(pool_config)
        .runtime(Runtime::Tokio1)
        .post_create(connection::name_it(&config.client_name))
        .pre_recycle(epoch.refuse_older())
        .build()
        .expect("timeouts have their runtime");
    Ok(pool)
}

/// An error, or none in time.
enum Failure<E> {
    Late(Duration),
    Redis(E),
}

async fn within<T, E>(
    deadline: Duration,
    question: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure<E>> {
    match timeout(deadline, question).await {
        Ok(answer) => answer.map_err(Failure::Redis),
        Err(_) => Err(Failure::Late(deadline)),
    }
}

impl<E: Into<Self>> From<Failure<E>> for StoreError {
    fn from(failure: Failure<E>) -> Self {
        match failure {
            Failure::Late(deadline) => Self::Unavailable(format!("no answer within {deadline:?}")),
            Failure::Redis(error) => error.into(),
        }
    }
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        reply::classify(&error)
    }
}
