//! The routes that are tried, and the config of a relay that has them.

/// What a client of a route may expect.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) name: &'static str,
    /// How many streams a client of it reads.
    pub(crate) streams: usize,
    pub(crate) has_snapshot: bool,
    /// Without a cursor it begins at the oldest entry kept.
    pub(crate) has_history: bool,
    /// Its events carry a cursor.
    pub(crate) has_cursor: bool,
    /// How many clients it gets, before the next has its turn.
    share: usize,
    /// Lines of its `[snapshot]` and of its `[message]`.
    snapshot: &'static str,
    message: &'static str,
}

const PLAIN: Route = Route {
    name: "plain",
    streams: 1,
    has_snapshot: false,
    has_history: false,
    has_cursor: true,
    share: 2,
    snapshot: "",
    message: "format = \"envelope\"",
};

pub(crate) const ROUTES: [Route; 7] = [
    Route {
        name: "state",
        share: 3,
        has_snapshot: true,
        ..PLAIN
    },
    PLAIN,
    Route {
        name: "history",
        has_history: true,
        ..PLAIN
    },
    Route {
        name: "several",
        streams: 3,
        ..PLAIN
    },
    Route {
        name: "shared",
        streams: 2,
        has_snapshot: true,
        snapshot: "share = \"url\"\nshare_ttl = \"500ms\"",
        ..PLAIN
    },
    Route {
        name: "merge",
        share: 1,
        message: "format = \"merge\"\nid_key = \"cursor\"",
        ..PLAIN
    },
    Route {
        name: "verbatim",
        share: 1,
        has_cursor: false,
        message: "format = \"verbatim\"",
        ..PLAIN
    },
];

/// What is the same for all relays. Clients that don't read are given up soon, so that there
/// are many of them, and a relay ends soon.
pub(crate) const COMMON: &str = r#"
[server]
send_buffer = "32KiB"

[redis]
command_timeout = "500ms"
ring_entries = 64

[drain]
delay = "100ms"
window = "1s"
grace = "1s"

[log]
level = "info"
"#;

/// How each of the relays notices changes.
pub(crate) const WAKES: [&str; 3] = [
    "[redis]\nwake = \"auto\"",
    "[redis]\nhold = \"0ms\"\nsweep = \"3s\"",
    "[redis]\nwake = \"poll\"",
];

/// The name of a stream.
pub(crate) fn key(stream: usize) -> String {
    format!("torture:{stream}")
}

impl Route {
    /// That of a client: by their shares, in turn.
    pub(crate) fn of_client(client: usize) -> &'static Self {
        let shares = ROUTES
            .iter()
            .flat_map(|route| std::iter::repeat_n(route, route.share));
        let mut shares = shares.cycle().skip(client);
        shares.next().expect("a cycle does not end")
    }

    pub(crate) fn path(&self, streams: &[usize]) -> String {
        let streams: Vec<String> = streams.iter().map(ToString::to_string).collect();
        format!("/{}/{}", self.name, streams.join("/"))
    }

    /// As a `[[route]]` of relay.toml. The API answers below this address.
    pub(crate) fn config(&self, api: &str) -> String {
        let places = &["{a}", "{b}", "{c}"][..self.streams];
        let keys: Vec<String> = places
            .iter()
            .map(|place| format!("\"torture:{place}\""))
            .collect();
        let (name, places, keys) = (self.name, places.join("/"), keys.join(", "));
        let history = if self.has_history { "all" } else { "none" };
        let mut text = format!(
            "name = \"{name}\"\npath = \"/{name}/{places}\"\nstreams = [{keys}]\nhistory = \"{history}\"\n\
             [slow]\nwrite_timeout = \"3s\"\n[message]\nfield = \"data\"\n{}\n",
            self.message
        );
        if self.has_snapshot {
            let own = self.snapshot;
            text += &format!("[snapshot]\nurl = \"{api}/{places}\"\nforward = []\n{own}\n");
        }
        text
    }
}
