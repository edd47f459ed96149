//! What a linter can't see: which way imports point, how long files are, who names what, and
//! that the papers speak of things that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use regex::Regex;
use relay::metrics;

const MOST_LINES: usize = 400;

/// From the top down. A module imports from lower layers, and from its own without a circle.
const LAYERS: [&[&str]; 9] = [
    &["main", "cli", "lib"],
    &["relay"],
    &["listener", "admin", "drain"],
    &["router"],
    &["websocket", "session"],
    &["auth", "snapshot", "hub"],
    &["store"],
    &["config", "protocol"],
    &[
        "debounce",
        "stream",
        "secret",
        "metrics",
        "outbound",
        "rewound",
        "telemetry",
        "tasks",
        "throttle",
        "tls",
        "wake",
    ],
];

/// As they go over the wire. Left out is what is a word of HTTP or of logs too, as `GET` and `INFO`.
const REDIS_COMMANDS: [&str; 19] = [
    "AUTH",
    "CLIENT",
    "CONFIG",
    "EVAL",
    "HELLO",
    "PING",
    "PSUBSCRIBE",
    "SELECT",
    "SUBSCRIBE",
    "XACK",
    "XADD",
    "XDEL",
    "XGROUP",
    "XINFO",
    "XLEN",
    "XRANGE",
    "XREAD",
    "XREADGROUP",
    "XREVRANGE",
];

const SPAWNING: [&str; 7] = [
    "tokio::spawn",
    "task::spawn",
    "spawn_blocking",
    "spawn_local",
    "JoinSet",
    "thread::spawn",
    "thread::Builder",
];

const PAPERS: [&str; 10] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/KUBERNETES.md",
    "docs/OPERATIONS.md",
    "docs/PERFORMANCE.md",
    "docs/PROTOCOL.md",
    "docs/RELIABILITY.md",
    "docs/SECURITY.md",
];

const EMPTY_WORDS: [&str; 4] = ["blazingly", "robust", "seamless", "comprehensive"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is valid")
}

/// The first group of every match.
fn found<'t>(pattern: &Regex, text: &'t str) -> Vec<&'t str> {
    let captures = pattern.captures_iter(text);
    captures
        .filter_map(|captures| captures.get(1))
        .map(|group| group.as_str())
        .collect()
}

/// A file of the source, by its path below `src`.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// `hub` for `hub/feed.rs`.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.trim_end_matches(".rs")
    }

    /// A file of tests, or of what they need.
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// Up to its tests, which come last.
    fn without_tests(&self) -> &str {
        let tests = self.text.find("\n#[cfg(test)]\nmod tests {");
        &self.text[..tests.map_or(self.text.len(), |at| at + 1)]
    }

    /// Without comments of whole lines.
    fn code(&self) -> String {
        let lines = self.text.lines();
        let lines = lines.filter(|line| !line.trim_start().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("the entry can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(root().join("src"));
                let below = below.expect("it is below src").display().to_string();
                sources.push(Source {
                    text: read(&format!("src/{below}")),
                    path: below,
                });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 50, "only {} files", sources.len());
    sources
}

fn papers() -> Vec<(&'static str, String)> {
    assert!(!PAPERS.is_empty());
    PAPERS.map(|path| (path, read(path))).into()
}

fn none(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
}

/// Which top-level module imports which, with a file that does.
fn imports() -> BTreeMap<(String, String), String> {
    let grouped = pattern(r"\b(?:crate|relay)::\{");
    let import = pattern(r"\bcrate::([a-z_]+)");
    let mut imports = BTreeMap::new();
    for source in sources() {
        let code = source.code();
        assert!(
            !grouped.is_match(&code),
            "{}: one `use` for each module",
            source.path
        );
        for module in found(&import, &code) {
            if module != source.module() {
                let edge = (source.module().to_owned(), module.to_owned());
                imports.insert(edge, source.path.clone());
            }
        }
    }
    assert!(imports.len() > 20, "only {} imports", imports.len());
    imports
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

#[test]
fn every_module_has_its_layer() {
    let modules: BTreeSet<_> = sources().iter().map(|s| s.module().to_owned()).collect();
    let layered: BTreeSet<_> = LAYERS.concat().into_iter().map(str::to_owned).collect();
    assert_eq!(modules, layered);
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for ((from, to), path) in imports() {
        let below = match (layer(&from), layer(&to)) {
            (Some(from), Some(to)) => from <= to,
            (None, _) | (_, None) => false,
        };
        if !below {
            wrong.push(format!("{path}: {from} imports {to}"));
        }
    }
    none("imports that point up", &wrong);
}

#[test]
fn no_imports_go_in_a_circle() {
    let mut edges: BTreeSet<_> = imports().into_keys().collect();
    assert!(!edges.is_empty());
    // What imports nothing is in no circle, and neither is what imports only such modules.
    loop {
        let importing: BTreeSet<_> = edges.iter().map(|(from, _)| from.clone()).collect();
        let before = edges.len();
        edges.retain(|(_, to)| importing.contains(to));
        if edges.len() == before {
            break;
        }
    }
    let left = edges.iter().map(|(from, to)| format!("{from} > {to}"));
    none("imports in a circle", &left.collect::<Vec<_>>());
}

#[test]
fn files_are_short_and_named() {
    let sources = sources();
    let named = sources
        .iter()
        .filter(|source| source.path.ends_with("mod.rs"))
        .map(|source| source.path.clone());
    none("foo.rs, not foo/mod.rs", &named.collect::<Vec<_>>());
    let lengths = sources
        .iter()
        .filter(|source| !source.is_test())
        .map(|source| (&source.path, source.without_tests().lines().count()));
    let long = lengths
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| format!("{path}: {lines}"));
    none("over 400 lines without tests", &long.collect::<Vec<_>>());
}

#[test]
fn only_the_store_names_redis_commands() {
    let command = pattern(&format!("\"(?:{})\"", REDIS_COMMANDS.join("|")));
    let client = pattern(r"redis::(?:cmd|Cmd|pipe|Pipeline|AsyncCommands|aio)\b|deadpool_redis");
    let (inside, outside): (Vec<_>, Vec<_>) = sources()
        .into_iter()
        .partition(|source| source.module() == "store");
    let names = |source: &Source| {
        let code = source.code();
        command.is_match(&code) || client.is_match(&code)
    };
    assert!(inside.iter().any(names), "the store names none");
    let wrong = outside.iter().filter(|source| names(source));
    let wrong: Vec<_> = wrong.map(|source| source.path.clone()).collect();
    none("Redis commands outside the store", &wrong);
}

#[test]
fn every_task_has_an_owner() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let code = source.code();
        let calls = SPAWNING.iter().filter(|call| code.contains(*call));
        if source.path != "tasks.rs" {
            wrong.extend(calls.map(|call| format!("{}: {call}", source.path)));
        }
    }
    none("tasks beside Tasks::spawn", &wrong);
}

#[test]
fn every_metric_is_documented_with_its_labels() {
    assert!(!metrics::ALL.is_empty());
    let text = read("docs/OPERATIONS.md");
    let rows: Vec<_> = metrics::ALL
        .iter()
        .map(|metric| {
            let labels = metric.labels.iter().map(|label| format!("`{label}`"));
            let labels = labels.collect::<Vec<_>>().join(", ");
            let labels = if labels.is_empty() { "–" } else { &labels };
            format!("| `{}` | {labels} | ", metric.name)
        })
        .filter(|row| !text.contains(row))
        .collect();
    none("missing rows", &rows);
}

#[test]
fn every_documented_metric_exists() {
    let name = pattern(r"\b(relay_[a-z_]+)\b");
    let mut count = 0;
    for (path, text) in papers() {
        for name in found(&name, &text) {
            count += 1;
            let series = name
                .trim_end_matches("_bucket")
                .trim_end_matches("_sum")
                .trim_end_matches("_count");
            let exists = metrics::ALL.iter().any(|metric| metric.name == series);
            assert!(exists, "{path}: {name}");
        }
    }
    assert!(count >= metrics::ALL.len());
}

/// `section.key` of every key in relay.toml, those in comments too, and every section.
fn keys() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut section = String::new();
    for line in read("relay.toml").lines() {
        if let Some(header) = line.strip_prefix('[') {
            let name = header.trim_start_matches('[').split(']').next();
            section = name.unwrap_or_default().to_owned();
            keys.insert(section.clone());
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ") {
            keys.insert(format!("{section}.{key}"));
        }
    }
    assert!(keys.len() > 60, "only {} keys", keys.len());
    keys
}

#[test]
fn every_documented_key_exists() {
    let keys = keys();
    let sections = keys.iter().filter_map(|key| key.split('.').next());
    let sections: BTreeSet<_> = sections.collect();
    let key = pattern(r"`\[*([a-z]+(?:\.[a-z_]+)+)\]*(?: = [^`]*)?`");
    let (mut count, mut wrong) = (0, Vec::new());
    for (path, text) in papers() {
        for name in found(&key, &text) {
            let section = name.split('.').next().unwrap_or_default();
            let is_file = [".rs", ".toml", ".md"]
                .iter()
                .any(|end| name.ends_with(end));
            if is_file || !sections.contains(section) {
                continue;
            }
            count += 1;
            if !keys.contains(name) {
                wrong.push(format!("{path}: {name}"));
            }
        }
    }
    assert!(count > 20, "only {count} keys are documented");
    none("keys that relay.toml does not have", &wrong);
}

#[test]
fn the_map_has_every_file() {
    let text = read("ARCHITECTURE.md");
    let row = pattern(r"(?m)^\| `([a-z_/]+\.rs)` \|");
    let mapped: BTreeSet<_> = found(&row, &text).into_iter().map(str::to_owned).collect();
    let sources = sources().into_iter().filter(|source| !source.is_test());
    let files: BTreeSet<_> = sources.map(|source| source.path).collect();
    assert_eq!(mapped, files);
}

/// The numbers of the scenarios, and those by which the names of tests begin.
#[test]
fn every_scenario_has_a_test() {
    let table = pattern(r"(?m)^//! \| (\d\d[a-z]?) \|");
    let test = pattern(r"#\[(?:tokio::)?test[^\]]*\]\n(?:async )?fn s(\d\d[a-z]?)_");
    let main = read("tests/scenarios/main.rs");
    let numbers: BTreeSet<_> = found(&table, &main)
        .into_iter()
        .map(str::to_owned)
        .collect();
    assert!(numbers.len() > 30, "only {} scenarios", numbers.len());
    let mut tested = BTreeSet::new();
    for entry in fs::read_dir(root().join("tests/scenarios")).expect("the folder can be read") {
        let path = entry.expect("the entry can be read").path();
        let text = fs::read_to_string(path).expect("it is text");
        tested.extend(found(&test, &text).into_iter().map(str::to_owned));
    }
    assert_eq!(tested, numbers);
}

#[test]
fn walkthroughs_name_functions_that_exist() {
    let text = read("ARCHITECTURE.md");
    let call = pattern(r"`([A-Za-z_]+::[A-Za-z_]+)`");
    let names = found(&call, &text);
    assert!(names.len() > 40, "only {} names", names.len());
    let code: String = sources().iter().map(Source::code).collect();
    let mut wrong = Vec::new();
    for name in names {
        let (owner, item) = name.split_once("::").unwrap_or_default();
        let is_there = match item.chars().all(|c| c.is_lowercase() || c == '_') {
            true => code.contains(&format!("fn {item}(")) || code.contains(&format!("fn {item}<")),
            false => pattern(&format!(r"(?m)^\s+{item}\b")).is_match(&code),
        };
        let has_owner = owner.chars().all(char::is_lowercase)
            || pattern(&format!(r"\b(?:struct|enum|type) {owner}\b")).is_match(&code);
        if !is_there || !has_owner {
            wrong.push(name.to_owned());
        }
    }
    none("names that the source does not have", &wrong);
}

#[test]
fn papers_use_plain_words() {
    for (path, text) in papers() {
        let lower = text.to_lowercase();
        for word in EMPTY_WORDS {
            assert!(!lower.contains(word), "{path}: {word}");
        }
        for heading in text.lines().filter(|line| line.starts_with('#')) {
            assert!(heading.is_ascii(), "{path}: {heading}");
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let link = pattern(r"\]\(([^)#]+)(?:#[^)]*)?\)");
    let mut count = 0;
    for (path, text) in papers() {
        let folder = Path::new(path).parent().unwrap_or(Path::new(""));
        for target in found(&link, &text) {
            if target.contains("://") {
                continue;
            }
            count += 1;
            assert!(
                root().join(folder).join(target).exists(),
                "{path}: {target}"
            );
        }
    }
    assert!(count > 5, "only {count} links");
}
