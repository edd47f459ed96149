//! `[auth]`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use toml::Spanned;

use super::source::{Source, Span};
use super::value::{Wrong, duration, not_empty, one_of};
use super::{ConfigError, Server, VerificationKey, key, written};

/// `[auth]`.
#[derive(Debug)]
pub struct Auth {
    /// How an upgrade request is refused.
    pub reject: Reject,
    /// Absent with `mode = "none"`: every route is public.
    pub jwt: Option<Jwt>,
}

/// How an upgrade request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// Accepted, then closed with the code.
    Close,
    /// The HTTP status, before the upgrade.
    Http,
    /// TCP is dropped.
    Abort,
}

/// How tokens are found and verified.
#[derive(Debug)]
pub struct Jwt {
    /// The first that is present decides.
    pub token_from: Vec<TokenSource>,
    /// Accepted values; empty: not checked.
    pub audience: Vec<String>,
    /// Claims that must have exactly this value.
    pub require: BTreeMap<String, Value>,
    /// Accepted values of the header's `typ`, as media types: lower case, with `application/`.
    /// Empty: not checked.
    pub typ: Vec<String>,
    /// The claim that says who it is.
    pub subject_claim: String,
    /// How far clocks may differ; at most an hour.
    pub leeway: Duration,
    /// What happens to a session when its token ends.
    pub expiry: Expiry,
    /// At least one.
    pub keys: Vec<VerificationKey>,
}

/// What happens to a session when its token ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// It is closed at `exp` plus leeway.
    Close,
    /// It outlives its token.
    Ignore,
}

/// Where a token may be in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// `authorization: Bearer …`
    Header,
    /// A subprotocol that begins with this prefix; the rest is the token.
    Subprotocol {
        /// Such as `bearer.`; never a prefix of `relay.v1`.
        prefix: String,
    },
    /// A cookie.
    Cookie {
        /// Its name.
        name: String,
    },
    /// A query parameter; no route has its cursor in the same one.
    Query {
        /// Its name.
        name: String,
    },
    /// The first message after the upgrade; the last source, since it is there only if it is
    /// waited for.
    FirstMessage,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Jwt,
    None,
}

pub(super) fn check(
    written: Option<Spanned<written::Auth>>,
    server: &Server,
    source: &Source<'_>,
) -> Result<Auth, ConfigError> {
    let at = written.as_ref().map(Spanned::span);
    let written = written.map(Spanned::into_inner).unwrap_or_default();
    let modes = [("jwt", Mode::Jwt), ("none", Mode::None)];
    let rejects = [
        ("close", Reject::Close),
        ("http", Reject::Http),
        ("abort", Reject::Abort),
    ];
    let reject = source.parse_or(written.reject.as_ref(), "close", one_of(&rejects))?;
    let jwt = match source.parse_or(written.mode.as_ref(), "jwt", one_of(&modes))? {
        Mode::Jwt => Some(written.jwt(at, server, source)?),
        Mode::None => {
            written.refuse_what_is_not_checked(source)?;
            None
        }
    };
    Ok(Auth { reject, jwt })
}

impl written::Auth {
    fn jwt(
        &self,
        at: Option<Span>,
        server: &Server,
        source: &Source<'_>,
    ) -> Result<Jwt, ConfigError> {
        if self.key.is_empty() {
            let what = r#"is missing; expected at least one [[auth.key]], or mode = "none""#;
            return Err(match at {
                Some(section) => source.missing(&section, "key", what),
                None => source.missing(&Span::default(), "auth.key", what),
            });
        }
        let expiries = [("close", Expiry::Close), ("ignore", Expiry::Ignore)];
        let issuer = source.parse_list_or(self.issuer.as_ref(), &[], not_empty)?;
        Ok(Jwt {
            token_from: self.token_from(server, source)?,
            audience: source.parse_list_or(self.audience.as_ref(), &[], not_empty)?,
            require: self.require(source)?,
            typ: source.parse_list_or(self.typ.as_ref(), &[], typ)?,
            subject_claim: source.parse_or(self.subject_claim.as_ref(), "sub", not_empty)?,
            leeway: source.parse_or(self.leeway.as_ref(), "30s", leeway)?,
            expiry: source.parse_or(self.expiry.as_ref(), "close", one_of(&expiries))?,
            keys: self
                .key
                .iter()
                .map(|key| key::check(key, &issuer, source))
                .collect::<Result<_, _>>()?,
        })
    }

    fn token_from(
        &self,
        server: &Server,
        source: &Source<'_>,
    ) -> Result<Vec<TokenSource>, ConfigError> {
        let default = ["header", "subprotocol:bearer."];
        let sources =
            source.parse_list_or(self.token_from.as_ref(), &default, TokenSource::parse)?;
        let Some(written) = &self.token_from else {
            return Ok(sources);
        };
        let at = written.span();
        if sources.is_empty() {
            return Err(source.error(&at, r#"is empty; expected a source such as "header""#));
        }
        if let Some(again) = first_duplicate(&sources) {
            let text = written.get_ref()[again].get_ref();
            return Err(source.error(&at, format!("{text:?} is listed twice; expected it once")));
        }
        let first_message = sources.iter().position(|s| *s == TokenSource::FirstMessage);
        if first_message.is_some_and(|at| at + 1 < sources.len()) {
            let what = r#""first_message" is what is left if no other source has a token; expected it at the end"#;
            return Err(source.error(&at, what));
        }
        let has_cookie = sources
            .iter()
            .any(|source| matches!(source, TokenSource::Cookie { .. }));
        if has_cookie && server.allowed_origins.is_empty() {
            // A browser sends cookies with a WebSocket that any page opens.
            return Err(source.error(
                &at,
                "a cookie is sent for any page that connects; expected `server.allowed_origins` to say which may",
            ));
        }
        Ok(sources)
    }

    fn require(&self, source: &Source<'_>) -> Result<BTreeMap<String, Value>, ConfigError> {
        let Some(written) = &self.require else {
            return Ok(BTreeMap::new());
        };
        written
            .get_ref()
            .iter()
            .map(|(claim, value)| Ok((claim.clone(), json(value, &written.span(), source)?)))
            .collect()
    }

    /// With `mode = "none"`, whoever writes what tokens must be is mistaken.
    fn refuse_what_is_not_checked(&self, source: &Source<'_>) -> Result<(), ConfigError> {
        let keys = self.key.first().map(Spanned::span);
        let lists = [&self.issuer, &self.audience, &self.typ]
            .into_iter()
            .flatten();
        let lists = lists.filter(|list| !list.get_ref().is_empty());
        let require = self.require.iter();
        let require = require.filter(|require| !require.get_ref().is_empty());
        let unchecked = keys
            .into_iter()
            .chain(lists.map(Spanned::span))
            .chain(require.map(Spanned::span))
            .next();
        match unchecked {
            Some(at) => Err(source.error(
                &at,
                r#"with mode = "none" no token is looked at; expected nothing here, or mode = "jwt""#,
            )),
            None => Ok(()),
        }
    }
}

impl TokenSource {
    fn parse(text: &str) -> Result<Self, Wrong> {
        let (kind, name) = match text.split_once(':') {
            Some((kind, name)) => (kind, Some(name)),
            None => (text, None),
        };
        match (kind, name) {
            ("header", None) => Ok(Self::Header),
            ("subprotocol", Some(prefix)) if is_token(prefix) => {
                if "relay.v1".starts_with(prefix) {
                    return Err(Wrong::new(
                        r#"would take the subprotocol "relay.v1" for a token; expected another prefix, such as "bearer.""#,
                    ));
                }
                Ok(Self::Subprotocol {
                    prefix: prefix.to_owned(),
                })
            }
            ("cookie", Some(name)) if is_token(name) => Ok(Self::Cookie {
                name: name.to_owned(),
            }),
            ("query", Some(name)) if !name.is_empty() => Ok(Self::Query {
                name: name.to_owned(),
            }),
            ("first_message", None) => Ok(Self::FirstMessage),
            _ => Err(Wrong::new(
                r#"is not a source of tokens; expected "header", "subprotocol:PREFIX", "cookie:NAME", "query:NAME" or "first_message""#,
            )),
        }
    }
}

fn typ(text: &str) -> Result<String, Wrong> {
    not_empty(text).map(|text| media_type(&text))
}

/// A `typ` as the media type that it means (RFC 7515 section 4.1.9): without a slash it has
/// lost its `application/`, and case does not matter.
pub fn media_type(typ: &str) -> String {
    let typ = typ.to_ascii_lowercase();
    match typ.contains('/') {
        true => typ,
        false => format!("application/{typ}"),
    }
}

fn leeway(text: &str) -> Result<Duration, Wrong> {
    let leeway = duration(text)?;
    if leeway > Duration::from_secs(3600) {
        return Err(Wrong::new(r#"is too long; expected at most "1h""#));
    }
    Ok(leeway)
}

fn json(value: &toml::Value, at: &Span, source: &Source<'_>) -> Result<Value, ConfigError> {
    Ok(match value {
        toml::Value::String(text) => Value::String(source.text_at(at, text)?),
        toml::Value::Integer(number) => Value::from(*number),
        toml::Value::Boolean(flag) => Value::from(*flag),
        // JSON has no number for inf and nan.
        toml::Value::Float(number) if number.is_finite() => Value::from(*number),
        toml::Value::Array(values) => values
            .iter()
            .map(|value| json(value, at, source))
            .collect::<Result<_, _>>()?,
        toml::Value::Table(table) => table
            .iter()
            .map(|(key, value)| Ok((key.clone(), json(value, at, source)?)))
            .collect::<Result<_, _>>()?,
        toml::Value::Float(_) | toml::Value::Datetime(_) => {
            return Err(source.error(
                at,
                "holds a date or a number that JSON lacks, which no claim equals; expected a string, number, true, false, list or table",
            ));
        }
    })
}

fn first_duplicate<T: PartialEq>(items: &[T]) -> Option<usize> {
    (1..items.len()).find(|at| items[..*at].contains(&items[*at]))
}

/// What HTTP calls a token: the characters of subprotocols and of names of cookies.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
