//! `[[route]]`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::time::Duration;

use matchit::InsertError;
use regex::Regex;
use toml::Spanned;

use super::snapshot::header_name;
use super::source::{Source, Span};
use super::template::{Known, Template};
use super::value::{Wrong, any_of, one_of, positive_duration};
use super::written::{self, Text};
use super::{Authorize, ConfigError, Jwt, Message, Slow, Snapshot, TokenSource};

/// One `[[route]]`.
#[derive(Debug)]
pub struct Route {
    /// `[a-z0-9_-]{1,64}`: the label in logs and metrics.
    pub name: String,
    /// As `matchit` takes it: `/ws/jobs/{job_id}`.
    pub path: String,
    /// Keys of the streams, 1 to 16.
    pub streams: Vec<Template>,
    /// What the value of each path parameter (`job_id`) and query variable (`query.x`) must
    /// be as a whole; every variable that a template of this route uses is here.
    pub params: BTreeMap<String, Regex>,
    /// No token is asked for: `auth = "none"`, here or for all routes.
    pub public: bool,
    /// Who may read; absent: any valid token, or everybody if the route is public.
    pub authorize: Option<Authorize>,
    /// What comes before live entries.
    pub history: History,
    /// The query parameter that holds the cursor.
    pub resume_query: String,
    /// The callback that tells the current state; absent: no snapshot.
    pub snapshot: Option<Snapshot>,
    /// How entries and snapshots are written.
    pub message: Message,
    /// What happens to a client that lags.
    pub slow: Slow,
}

/// What a client without a cursor gets before live entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum History {
    /// Nothing.
    None,
    /// All that the stream keeps.
    All,
    /// The newest entries.
    Last(NonZeroU64),
    /// What was added in this time before the attach; never zero.
    Since(Duration),
}

/// What a path parameter and a query variable must be, unless the route says otherwise.
const PARAM: &str = "[A-Za-z0-9._~@-]{1,128}";

const MOST_STREAMS: usize = 16;

/// `jwt` is absent if every route is public.
pub(super) fn check_all(
    written: Vec<Spanned<written::Route>>,
    jwt: Option<&Jwt>,
    source: &Source<'_>,
) -> Result<Vec<Route>, ConfigError> {
    if written.is_empty() {
        let what = "is missing; expected at least one [[route]]";
        return Err(source.missing(&Span::default(), "route", what));
    }
    let mut routes = Vec::<Route>::with_capacity(written.len());
    let mut paths = matchit::Router::new();
    for written in written {
        let at = written.span();
        let written = written.into_inner();
        let (name_at, path_at) = (written.name.span(), written.path.span());
        let route = written.check(&at, jwt, source)?;
        if routes.iter().any(|other| other.name == route.name) {
            let what = format!("{:?} names two routes; expected another name", route.name);
            return Err(source.error(&name_at, what));
        }
        paths
            .insert(&route.path, ())
            .map_err(|error| source.error(&path_at, path_conflict(&error, &route, &routes)))?;
        routes.push(route);
    }
    Ok(routes)
}

fn path_conflict(error: &InsertError, route: &Route, others: &[Route]) -> String {
    match error {
        InsertError::Conflict { with } => {
            let other = others.iter().find(|other| other.path == *with);
            let other = other.map_or("another route".to_owned(), |other| {
                format!("the route {:?}", other.name)
            });
            format!(
                "the route {:?} takes the same requests as {other} ({with}); expected paths that differ",
                route.name,
            )
        }
        _ => format!(
            "{:?} can't be matched; expected at most one {{parameter}} between two slashes",
            route.path
        ),
    }
}

impl written::Route {
    fn check(
        self,
        at: &Span,
        jwt: Option<&Jwt>,
        source: &Source<'_>,
    ) -> Result<Route, ConfigError> {
        let name = source.parse(&self.name, name)?;
        let (path, path_params) = source.parse(&self.path, path)?;
        let accesses = [("inherit", false), ("none", true)];
        let public = source.parse_or(self.auth.as_ref(), "inherit", one_of(&accesses))?;
        let jwt = jwt.filter(|_| !public);
        let known = Known {
            params: &path_params,
            claims: jwt.is_some(),
        };
        let streams = self.streams(&known, source)?;
        let snapshot = self
            .snapshot
            .as_ref()
            .map(|snapshot| snapshot.check(&known, source))
            .transpose()?;
        let params = self.params(&path_params, &streams, snapshot.as_ref(), source)?;
        Ok(Route {
            name,
            path,
            params,
            public: jwt.is_none(),
            authorize: self.authorize(jwt.is_none(), source)?,
            history: history(self.history.as_ref(), source)?,
            resume_query: self.resume_query(at, jwt, source)?,
            message: self.message.check(snapshot.is_some(), source)?,
            slow: self.slow.check(snapshot.is_some(), source)?,
            streams,
            snapshot,
        })
    }

    fn streams(
        &self,
        known: &Known<'_>,
        source: &Source<'_>,
    ) -> Result<Vec<Template>, ConfigError> {
        let at = self.streams.span();
        let count = self.streams.get_ref().len();
        if !(1..=MOST_STREAMS).contains(&count) {
            return Err(source.error(
                &at,
                format!("has {count} streams; expected 1 to {MOST_STREAMS}"),
            ));
        }
        let compile = |text: &str| match text {
            "" => Err(Wrong::new("is empty; expected the key of a stream")),
            text => template(text, known),
        };
        let streams = source.parse_list_or(Some(&self.streams), &[], compile)?;
        for (at, stream) in streams.iter().enumerate() {
            if streams[..at].contains(stream) {
                let written = &self.streams.get_ref()[at];
                let what = format!("{:?} is listed twice; expected it once", written.get_ref());
                return Err(source.error(&written.span(), what));
            }
        }
        Ok(streams)
    }

    /// The patterns of all path parameters, and of the query variables that templates use.
    fn params(
        &self,
        path_params: &[String],
        streams: &[Template],
        snapshot: Option<&Snapshot>,
        source: &Source<'_>,
    ) -> Result<BTreeMap<String, Regex>, ConfigError> {
        let headers = snapshot.map_or(&[][..], |snapshot| &snapshot.headers);
        let templates = streams
            .iter()
            .chain(snapshot.map(|snapshot| &snapshot.url))
            .chain(headers.iter().map(|(_, template)| template));
        let used = templates
            .flat_map(Template::variables)
            .chain(path_params.iter().map(String::as_str))
            .collect::<BTreeSet<_>>();
        if let Some((name, written)) = self
            .params
            .iter()
            .find(|(name, _)| !used.contains(name.as_str()))
        {
            return Err(source.error(&written.span(), unused_param(name, &used)));
        }
        used.into_iter()
            .map(|name| {
                let pattern = source.parse_or(self.params.get(name), PARAM, whole)?;
                Ok((name.to_owned(), pattern))
            })
            .collect()
    }

    fn authorize(
        &self,
        public: bool,
        source: &Source<'_>,
    ) -> Result<Option<Authorize>, ConfigError> {
        let headers = source.parse_list_or(self.authorize_headers.as_ref(), &[], header_name)?;
        let Some(written) = &self.authorize else {
            return match &self.authorize_headers {
                Some(list) if !headers.is_empty() => Err(source.error(
                    &list.span(),
                    "has a meaning only beside `authorize`; expected that, or nothing here",
                )),
                Some(_) | None => Ok(None),
            };
        };
        if public {
            return Err(source.error(
                &written.span(),
                "the route is public, so nobody is asked who they are; expected no `authorize`, or a route with tokens",
            ));
        }
        let compile = |text: &str| Authorize::compile(text, headers.clone());
        source.parse_hidden(written, compile).map(Some)
    }

    fn resume_query(
        &self,
        route: &Span,
        jwt: Option<&Jwt>,
        source: &Source<'_>,
    ) -> Result<String, ConfigError> {
        let name = source.parse_or(self.resume.as_ref(), "query:cursor", resume)?;
        let token = TokenSource::Query { name: name.clone() };
        if jwt.is_some_and(|jwt| jwt.token_from.contains(&token)) {
            let what = format!(
                "the query parameter {name:?} is the token's (`auth.token_from`); expected another"
            );
            return Err(match &self.resume {
                Some(written) => source.error(&written.span(), what),
                None => source.missing(route, "resume", what),
            });
        }
        Ok(name)
    }
}

/// A template, as a value of the config.
pub(super) fn template(text: &str, known: &Known<'_>) -> Result<Template, Wrong> {
    Template::compile(text, known).map_err(|error| Wrong::new(error.to_string()))
}

fn name(text: &str) -> Result<String, Wrong> {
    let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(is_name) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        "is not a name; expected 1 to 64 of a to z, 0 to 9, _ and -",
    ))
}

/// A path and its parameters.
fn path(text: &str) -> Result<(String, Vec<String>), Wrong> {
    let wrong = |what: &str| {
        Wrong::new(format!(
            r#"{what}; expected a path such as "/ws/jobs/{{job_id}}""#
        ))
    };
    let is_plain = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_graphic() && !b"?#{}*\\".contains(&b))
    };
    let mut params = Vec::<String>::new();
    let mut pieces = text.split('{');
    let first = pieces.next().unwrap_or_default();
    if !first.starts_with('/') {
        return Err(wrong("does not begin with a slash"));
    }
    if !is_plain(first) {
        return Err(wrong("has characters that no path has"));
    }
    for piece in pieces {
        let Some((param, rest)) = piece.split_once('}') else {
            return Err(wrong("has a `{` without its `}`"));
        };
        if !is_identifier(param) {
            return Err(wrong("has a parameter that is not letters, digits and _"));
        }
        if params.iter().any(|other| other == param) {
            return Err(wrong("has the same parameter twice"));
        }
        if !is_plain(rest) {
            return Err(wrong("has characters that no path has"));
        }
        params.push(param.to_owned());
    }
    matchit::Router::new()
        .insert(text, ())
        .map_err(|_| wrong("has two parameters between two slashes"))?;
    Ok((text.to_owned(), params))
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A pattern that holds for the value as a whole.
fn whole(pattern: &str) -> Result<Regex, Wrong> {
    // Alone first: `a)|(b` is a pattern only between our brackets.
    Regex::new(pattern)
        .and_then(|_| Regex::new(&format!(r"\A(?:{pattern})\z")))
        .map_err(|error| {
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default();
            let reason = reason.strip_prefix("error: ").unwrap_or(reason);
            Wrong::new(format!(
                "is not a pattern ({reason}); expected a regular expression for the whole value"
            ))
        })
}

fn unused_param(name: &str, used: &BTreeSet<&str>) -> String {
    let used = any_of(used.iter().map(|name| format!("{name:?}")));
    let expected = match used.as_str() {
        "" => "no pattern, as the route has no parameters",
        used => used,
    };
    format!("{name:?} is neither in the path nor in a template of the route; expected {expected}")
}

fn resume(text: &str) -> Result<String, Wrong> {
    match text.strip_prefix("query:") {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(Wrong::new(
            r#"is not a place for a cursor; expected "query:NAME", such as "query:cursor""#,
        )),
    }
}

fn history(
    written: Option<&Spanned<written::History>>,
    source: &Source<'_>,
) -> Result<History, ConfigError> {
    const EXPECTED: &str = r#"expected "none", "all", { last = 100 } or { since = "10s" }"#;
    let Some(written) = written else {
        return Ok(History::None);
    };
    let at = written.span();
    match written.get_ref() {
        written::History::Named(name) => match source.text_at(&at, name)?.as_str() {
            "none" => Ok(History::None),
            "all" => Ok(History::All),
            _ => Err(source.error(&at, format!("{name:?} is unknown; {EXPECTED}"))),
        },
        written::History::Part(part) => match (&part.last, &part.since) {
            (Some(last), None) => {
                let count = source.number_or(Some(last), 1, 1..=u32::MAX)?;
                let count = NonZeroU64::new(u64::from(count)).unwrap_or(NonZeroU64::MIN);
                Ok(History::Last(count))
            }
            (None, Some(since)) => since_part(since, source),
            (Some(_), Some(_)) | (None, None) => {
                Err(source.error(&at, format!("is not one of `last` and `since`; {EXPECTED}")))
            }
        },
    }
}

fn since_part(since: &Text, source: &Source<'_>) -> Result<History, ConfigError> {
    source.parse(since, positive_duration).map(History::Since)
}
