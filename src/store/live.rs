//! What `relay check --live` asks of Redis, on one short connection of its own.

use std::collections::BTreeMap;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, ProtocolVersion, RedisError,
    RedisResult, ServerErrorKind, Value, cmd,
};

use crate::config::Redis;
use crate::stream::EntryId;

/// What a relay sends, as an ACL names it. `client|setinfo` is not there: an ACL that names it
/// is refused before Redis 7.2.
const COMMANDS: [&str; 10] = [
    "hello",
    "auth",
    "ping",
    "client|setname",
    "client|tracking",
    "xrange",
    "xrevrange",
    "xinfo|stream",
    "xread",
    "unwatch",
];

/// A connection to the Redis of the config.
pub struct Live {
    connection: MultiplexedConnection,
}

/// Which server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `redis`, `valkey` or what else it calls itself.
    pub name: String,
    /// As it says it.
    pub version: String,
    /// `master`, or what a relay should not read from.
    pub role: String,
}

/// What Redis does when its memory is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// `maxmemory-policy`.
    pub policy: String,
    /// Whether there is a limit at all.
    pub limited: bool,
}

/// What a stream keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Entries.
    pub length: u64,
    /// The oldest entry that is kept.
    pub first: Option<EntryId>,
    /// The newest id that was ever given out.
    pub last: EntryId,
}

/// Host and port of the Redis of the config, or its socket's path; never its password.
pub fn address(redis: &Redis) -> RedisResult<String> {
    let info = redis.url.expose().into_connection_info()?;
    Ok(info.addr().to_string())
}

/// Every command that a relay sends to this Redis, as an ACL names them.
pub fn commands(redis: &Redis) -> RedisResult<Vec<&'static str>> {
    let mut commands = COMMANDS.to_vec();
    if redis
        .url
        .expose()
        .into_connection_info()?
        .redis_settings()
        .db()
        != 0
    {
        commands.push("select");
    }
    Ok(commands)
}

impl Live {
    /// Connects; a server that can't speak RESP3 is spoken to in RESP2.
    pub async fn connect(redis: &Redis) -> RedisResult<Self> {
        match Self::connect_with(redis, ProtocolVersion::RESP3).await {
            Err(error) if error.kind() == ErrorKind::RESP3NotSupported => {
                Self::connect_with(redis, ProtocolVersion::RESP2).await
            }
            connected => connected,
        }
    }

    async fn connect_with(redis: &Redis, protocol: ProtocolVersion) -> RedisResult<Self> {
        let info = super::connection_info(redis)?;
        let settings = info.redis_settings().clone().set_protocol(protocol);
        let client = Client::open(info.set_redis_settings(settings))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(redis.command_timeout))
            .set_response_timeout(Some(redis.command_timeout));
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        Ok(Self { connection })
    }

    /// Asks the server who it is.
    pub async fn server(&mut self) -> RedisResult<Server> {
        let said: BTreeMap<String, Value> = cmd("HELLO")
            .arg(3)
            .query_async(&mut self.connection)
            .await?;
        let text = |name| said.get(name).map(text).unwrap_or_default();
        Ok(Server {
            name: text("server"),
            version: text("version"),
            role: text("role"),
        })
    }

    /// Whether changes would be pushed.
    pub async fn track(&mut self) -> RedisResult<()> {
        let mut on = cmd("CLIENT");
        on.arg("TRACKING").arg("ON");
        on.exec_async(&mut self.connection).await
    }

    /// Asks for the policy: the config if that is allowed, else what INFO says.
    pub async fn eviction(&mut self) -> RedisResult<Eviction> {
        let mut wanted = cmd("CONFIG");
        wanted.arg("GET").arg("maxmemory*");
        let said: RedisResult<BTreeMap<String, String>> =
            wanted.query_async(&mut self.connection).await;
        let said = match said {
            Ok(said) => said,
            Err(error) if is_refusal(&error) => self.memory_info().await?,
            Err(error) => return Err(error),
        };
        let of = |name: &str, other: &str| said.get(name).or_else(|| said.get(other)).cloned();
        Ok(Eviction {
            policy: of("maxmemory-policy", "maxmemory_policy").unwrap_or_default(),
            limited: of("maxmemory", "maxmemory").is_some_and(|bytes| bytes != "0"),
        })
    }

    async fn memory_info(&mut self) -> RedisResult<BTreeMap<String, String>> {
        let info: String = cmd("INFO")
            .arg("memory")
            .query_async(&mut self.connection)
            .await?;
        let pairs = info.lines().filter_map(|line| line.split_once(':'));
        Ok(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    /// The commands that a relay needs and may not send for this key. Nothing is changed by
    /// asking: they only read, and the key need not exist.
    pub async fn refused(&mut self, key: &str) -> RedisResult<Vec<&'static str>> {
        let mut refused = Vec::new();
        for (name, command) in reads(key) {
            match command.exec_async(&mut self.connection).await {
                Err(error) if is_refusal(&error) => refused.push(name),
                Err(error) if error.is_io_error() => return Err(error),
                // No such key, or no stream: the command itself is allowed.
                Ok(()) | Err(_) => {}
            }
        }
        Ok(refused)
    }

    /// What this stream keeps; `None` if it does not exist.
    pub async fn retention(&mut self, key: &str) -> RedisResult<Option<Retention>> {
        let mut info = cmd("XINFO");
        info.arg("STREAM").arg(key);
        let said: RedisResult<BTreeMap<String, Value>> =
            info.query_async(&mut self.connection).await;
        let said = match said {
            Ok(said) => said,
            Err(error) if error.detail() == Some("no such key") => return Ok(None),
            Err(error) => return Err(error),
        };
        let id = |value: &Value| EntryId::parse(&text(value));
        let first = match said.get("first-entry") {
            Some(Value::Array(entry)) => entry.first().and_then(id),
            _ => None,
        };
        Ok(Some(Retention {
            length: said
                .get("length")
                .map(text)
                .and_then(|n| n.parse().ok())
                .unwrap_or(0),
            first,
            last: said
                .get("last-generated-id")
                .and_then(id)
                .unwrap_or(EntryId::ZERO),
        }))
    }
}

/// The server knows the command and does not let this user send it.
pub fn is_refusal(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
}

/// The commands that read a stream, each asking for as little as it can.
fn reads(key: &str) -> [(&'static str, redis::Cmd); 4] {
    let mut range = cmd("XRANGE");
    range.arg(key).arg("-").arg("+").arg("COUNT").arg(1);
    let mut reverse = cmd("XREVRANGE");
    reverse.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
    let mut info = cmd("XINFO");
    info.arg("STREAM").arg(key);
    let mut read = cmd("XREAD");
    read.arg("COUNT").arg(1).arg("STREAMS").arg(key).arg("0-0");
    [
        ("xrange", range),
        ("xrevrange", reverse),
        ("xinfo|stream", info),
        ("xread", read),
    ]
}

fn text(value: &Value) -> String {
    match value {
        Value::Int(number) => number.to_string(),
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    }
}
