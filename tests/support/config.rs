//! The relay.toml of a test: a base that every scenario shares, and what it changes.

use toml::{Table, Value};

use super::api::FakeApi;
use super::proxy::Proxy;
use super::redis::Redis;
use super::token::SECRET;

pub(crate) struct Config {
    file: Table,
}

impl Config {
    /// One route, one HMAC key, no snapshot.
    pub(crate) fn new(redis: &Redis) -> Self {
        Self::with_url(&redis.url())
    }

    /// The same, with Redis behind a proxy.
    pub(crate) fn through(proxy: &Proxy) -> Self {
        Self::with_url(&proxy.redis_url())
    }

    fn with_url(url: &str) -> Self {
        let base = format!(
            r#"
            [server]
            listen = "127.0.0.1:0"
            admin_listen = "127.0.0.1:0"

            [redis]
            url = "{url}"

            [[auth.key]]
            algorithms = ["HS256"]
            secret = "{SECRET}"

            [[route]]
            name = "job"
            path = "/ws/jobs/{{job_id}}"
            streams = ["job:{{job_id}}:updates"]

            [route.message]
            field = "data"

            [log]
            format = "json"
            level = "debug"
            "#
        );
        Self { file: parse(&base) }
    }

    /// Adds to the file, or replaces what it says.
    pub(crate) fn with(mut self, text: &str) -> Self {
        merge(&mut self.file, parse(text));
        self
    }

    /// Takes all verification keys away.
    pub(crate) fn without_keys(mut self) -> Self {
        self.file.remove("auth");
        self
    }

    /// Takes a part of the route away, such as its `message`.
    pub(crate) fn route_without(mut self, key: &str) -> Self {
        let routes = self.file.get_mut("route").and_then(Value::as_array_mut);
        let route = routes.and_then(|routes| routes[0].as_table_mut());
        let removed = route.and_then(|route| route.remove(key));
        assert!(removed.is_some(), "the route has no {key}");
        self
    }

    /// Adds to the route, or replaces what it says: a `[snapshot]` here is its snapshot.
    pub(crate) fn route(mut self, text: &str) -> Self {
        let routes = self.file.get_mut("route").and_then(Value::as_array_mut);
        let route = routes.and_then(|routes| routes[0].as_table_mut());
        merge(route.expect("the base has a route"), parse(text));
        self
    }

    /// Adds a route.
    pub(crate) fn another_route(mut self, text: &str) -> Self {
        let routes = self.file.get_mut("route").and_then(Value::as_array_mut);
        let routes = routes.expect("the base has a route");
        routes.push(Value::Table(parse(text)));
        self
    }

    /// Lets the route fetch its snapshots there.
    pub(crate) fn snapshot_from(self, api: &FakeApi) -> Self {
        let url = api.url("/internal/jobs/{job_id}/state");
        self.route(&format!("[snapshot]\nurl = \"{url}\""))
    }

    /// The file.
    pub(crate) fn text(&self) -> String {
        toml::to_string(&self.file).expect("a table can be written")
    }
}

fn parse(text: &str) -> Table {
    text.parse()
        .unwrap_or_else(|error| panic!("the test's TOML is wrong: {error}\n{text}"))
}

/// Tables are merged, all else is replaced.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}
