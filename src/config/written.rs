//! `relay.toml` as it is written: which keys there are, and of which TOML type.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use toml::Spanned;

/// A string in which `${NAME}` has not been replaced yet.
pub(super) type Text = Spanned<String>;

/// A number or true/false; or a string that brings one from the environment.
pub(super) type Scalar = Spanned<ScalarValue>;

/// A list of strings.
pub(super) type Texts = Spanned<Vec<Text>>;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) server: Server,
    #[serde(default)]
    pub(super) redis: Redis,
    pub(super) auth: Option<Spanned<Auth>>,
    #[serde(default)]
    pub(super) route: Vec<Spanned<Route>>,
    #[serde(default)]
    pub(super) keepalive: Keepalive,
    #[serde(default)]
    pub(super) drain: Drain,
    #[serde(default)]
    pub(super) client: Client,
    #[serde(default)]
    pub(super) log: Log,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Server {
    pub(super) listen: Option<Text>,
    pub(super) admin_listen: Option<Text>,
    pub(super) max_connections: Option<Scalar>,
    pub(super) max_connections_per_ip: Option<Scalar>,
    pub(super) max_connections_per_subject: Option<Scalar>,
    pub(super) connects_per_second: Option<Scalar>,
    pub(super) handshake_timeout: Option<Text>,
    pub(super) max_head: Option<Text>,
    pub(super) send_buffer: Option<Text>,
    pub(super) trusted_proxies: Option<Texts>,
    pub(super) allowed_origins: Option<Texts>,
    #[serde(default)]
    pub(super) tls: Tls,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) cert: Option<Text>,
    pub(super) key: Option<Text>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Redis {
    pub(super) url: Option<Text>,
    pub(super) username: Option<Text>,
    pub(super) password: Option<Text>,
    pub(super) client_name: Option<Text>,
    pub(super) pool_size: Option<Scalar>,
    pub(super) wake: Option<Text>,
    pub(super) sweep: Option<Text>,
    pub(super) poll: Option<Text>,
    pub(super) command_timeout: Option<Text>,
    pub(super) ring_entries: Option<Scalar>,
    pub(super) ring_bytes: Option<Text>,
    pub(super) ring_total: Option<Text>,
    pub(super) backlog_total: Option<Text>,
    pub(super) hold: Option<Text>,
    pub(super) linger: Option<Text>,
    pub(super) grace: Option<Text>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Auth {
    pub(super) mode: Option<Text>,
    pub(super) token_from: Option<Texts>,
    pub(super) issuer: Option<Texts>,
    pub(super) audience: Option<Texts>,
    pub(super) require: Option<Spanned<toml::Table>>,
    pub(super) typ: Option<Texts>,
    pub(super) subject_claim: Option<Text>,
    pub(super) leeway: Option<Text>,
    pub(super) expiry: Option<Text>,
    pub(super) reject: Option<Text>,
    #[serde(default)]
    pub(super) key: Vec<Spanned<Key>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    pub(super) algorithms: Texts,
    pub(super) issuer: Option<Texts>,
    pub(super) secret: Option<Text>,
    pub(super) public_key: Option<Text>,
    pub(super) jwks_url: Option<Text>,
    pub(super) refresh: Option<Text>,
    pub(super) cooldown: Option<Text>,
    pub(super) ca_file: Option<Text>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub(super) name: Text,
    pub(super) path: Text,
    pub(super) streams: Texts,
    #[serde(default)]
    pub(super) params: BTreeMap<String, Text>,
    pub(super) auth: Option<Text>,
    pub(super) authorize: Option<Text>,
    pub(super) authorize_headers: Option<Texts>,
    pub(super) history: Option<Spanned<History>>,
    pub(super) resume: Option<Text>,
    pub(super) snapshot: Option<Snapshot>,
    #[serde(default)]
    pub(super) message: Message,
    #[serde(default)]
    pub(super) slow: Slow,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snapshot {
    pub(super) url: Text,
    pub(super) method: Option<Text>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, Text>,
    pub(super) forward: Option<Texts>,
    pub(super) timeout: Option<Text>,
    pub(super) retries: Option<Scalar>,
    pub(super) max_bytes: Option<Text>,
    pub(super) max_in_flight: Option<Scalar>,
    pub(super) queue: Option<Text>,
    pub(super) share: Option<Text>,
    pub(super) share_ttl: Option<Text>,
    pub(super) cursor_header: Option<Text>,
    pub(super) on_error: Option<Text>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Message {
    pub(super) format: Option<Text>,
    pub(super) field: Option<Text>,
    pub(super) id_key: Option<Text>,
    pub(super) control: Option<Scalar>,
    pub(super) snapshot_template: Option<Text>,
    pub(super) max_bytes: Option<Text>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Slow {
    pub(super) write_timeout: Option<Text>,
    pub(super) max_lag: Option<Scalar>,
    pub(super) then: Option<Text>,
    pub(super) conflate_by: Option<Text>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keepalive {
    pub(super) ping: Option<Text>,
    pub(super) timeout: Option<Text>,
    pub(super) max_age: Option<Text>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    pub(super) delay: Option<Text>,
    pub(super) window: Option<Text>,
    pub(super) grace: Option<Text>,
    pub(super) mode: Option<Text>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Client {
    pub(super) max_message: Option<Text>,
    pub(super) max_messages_per_second: Option<Scalar>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    pub(super) format: Option<Text>,
    pub(super) level: Option<Text>,
}

pub(super) enum ScalarValue {
    Integer(i64),
    Flag(bool),
    Text(String),
}

impl<'de> Deserialize<'de> for ScalarValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalars;

        impl Visitor<'_> for Scalars {
            type Value = ScalarValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, true or false")
            }

            fn visit_i64<E>(self, value: i64) -> Result<ScalarValue, E> {
                Ok(ScalarValue::Integer(value))
            }

            fn visit_bool<E>(self, value: bool) -> Result<ScalarValue, E> {
                Ok(ScalarValue::Flag(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<ScalarValue, E> {
                Ok(ScalarValue::Text(value.to_owned()))
            }
        }

        deserializer.deserialize_any(Scalars)
    }
}

pub(super) enum History {
    Named(String),
    Part(HistoryPart),
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryPart {
    pub(super) last: Option<Scalar>,
    pub(super) since: Option<Text>,
}

impl<'de> Deserialize<'de> for History {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Histories;

        impl<'de> Visitor<'de> for Histories {
            type Value = History;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#""none", "all", { last = 100 } or { since = "10s" }"#)
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<History, E> {
                Ok(History::Named(value.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<History, A::Error> {
                HistoryPart::deserialize(MapAccessDeserializer::new(map)).map(History::Part)
            }
        }

        deserializer.deserialize_any(Histories)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::de::DeserializeOwned;

    use super::*;

    const REFERENCE: &str = include_str!("../../relay.toml");

    /// Keys that the reference shows in comments only: they can't stand beside the others.
    const COMMENTED: [&str; 5] = [
        "auth.key.public_key",
        "auth.key.jwks_url",
        "auth.key.refresh",
        "auth.key.cooldown",
        "auth.key.ca_file",
    ];

    /// All keys of a table: serde lists them when it meets one that is not among them.
    fn keys_of<T: DeserializeOwned>(table: &str) -> BTreeSet<String> {
        let Err(error) = toml::from_str::<T>("no_such_key = 1") else {
            panic!("{table} takes any key");
        };
        let names = error.message().split('`').skip(3).step_by(2);
        let keys = names
            .map(|name| format!("{table}.{name}"))
            .collect::<BTreeSet<_>>();
        assert!(keys.len() >= 2, "{}", error.message());
        keys
    }

    /// The keys in the reference, those in comments apart.
    fn keys_in_reference() -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut keys, mut commented) = (BTreeSet::new(), BTreeSet::new());
        let mut table = "";
        for line in REFERENCE.lines() {
            if let Some(header) = line.strip_prefix('[') {
                table = header.trim_start_matches('[').split(']').next().unwrap();
                continue;
            }
            let (line, found) = match line.strip_prefix("# ") {
                Some(line) => (line, &mut commented),
                None => (line, &mut keys),
            };
            if let Some((key, _)) = line.split_once(" = ")
                && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            {
                found.insert(format!("{table}.{key}"));
            }
        }
        (keys, commented)
    }

    #[test]
    fn the_reference_has_every_key() {
        let mut known = BTreeSet::new();
        known.extend(keys_of::<Server>("server"));
        known.extend(keys_of::<Tls>("server.tls"));
        known.extend(keys_of::<Redis>("redis"));
        known.extend(keys_of::<Auth>("auth"));
        known.extend(keys_of::<Key>("auth.key"));
        known.extend(keys_of::<Route>("route"));
        known.extend(keys_of::<Snapshot>("route.snapshot"));
        known.extend(keys_of::<Message>("route.message"));
        known.extend(keys_of::<Slow>("route.slow"));
        known.extend(keys_of::<Keepalive>("keepalive"));
        known.extend(keys_of::<Drain>("drain"));
        known.extend(keys_of::<Client>("client"));
        known.extend(keys_of::<Log>("log"));
        let tables = ["auth.key", "route.snapshot", "route.message", "route.slow"];
        for table in tables.into_iter().chain(["server.tls"]) {
            assert!(known.remove(table), "{table}");
        }
        let (mut found, commented) = keys_in_reference();
        assert_eq!(commented, COMMENTED.map(str::to_owned).into());
        found.extend(commented);
        assert_eq!(found, known);
    }

    #[test]
    fn the_reference_has_every_table() {
        let tables = keys_of::<Config>("");
        for table in tables {
            let table = table.trim_start_matches('.');
            assert!(REFERENCE.contains(&format!("[{table}]")), "{table}");
        }
        for key in keys_of::<HistoryPart>("") {
            let example = format!("{{ {} = ", key.trim_start_matches('.'));
            assert!(REFERENCE.contains(&example), "{example}");
        }
    }
}
