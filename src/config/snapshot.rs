//! `[route.snapshot]`.

use std::time::Duration;

use hyper::header::HeaderName;
use hyper::{Method, Uri};

use super::ConfigError;
use super::route::template;
use super::source::Source;
use super::template::{Known, Template};
use super::value::{Wrong, duration, one_of, positive_duration, size_from};
use super::written;

/// `[route.snapshot]`: the callback.
#[derive(Debug)]
pub struct Snapshot {
    /// Values are percent-encoded when it is rendered.
    pub url: Template,
    /// `GET` or `POST`.
    pub method: Method,
    /// Added to the callback.
    pub headers: Vec<(HeaderName, Template)>,
    /// Taken over from the client's request.
    pub forward: Vec<HeaderName>,
    /// Per try.
    pub timeout: Duration,
    /// Tries after the first, on connect errors, 502, 503 and 504.
    pub retries: u32,
    /// Bytes of the body; a larger one is an error.
    pub max_bytes: usize,
    /// Callbacks at once for this route.
    pub max_in_flight: usize,
    /// How long others wait for their turn.
    pub queue: Duration,
    /// Whether clients share one callback.
    pub share: Share,
    /// The answer's header that holds the id of the last entry its state includes.
    pub cursor_header: HeaderName,
    /// What happens when the callback fails.
    pub on_error: OnError,
}

/// Whether clients share one callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Each client has its own.
    None,
    /// Clients that need the same snapshot share one callback; its body serves later ones for `ttl`.
    Url {
        /// From when the callback was sent; zero: only while it is in flight.
        ttl: Duration,
    },
}

/// What happens when the callback fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The client is refused or closed.
    Close,
    /// It goes on without a snapshot, and is told so.
    Stream,
}

impl written::Snapshot {
    pub(super) fn check(
        &self,
        known: &Known<'_>,
        source: &Source<'_>,
    ) -> Result<Snapshot, ConfigError> {
        let on_errors = [("close", OnError::Close), ("stream", OnError::Stream)];
        let headers = self.headers(known, source)?;
        let forward = self.forward(&headers, source)?;
        Ok(Snapshot {
            url: source.parse_hidden(&self.url, |text| url(text, known))?,
            method: source.parse_or(self.method.as_ref(), "GET", method)?,
            share: self.share(&headers, &forward, source)?,
            headers,
            forward,
            timeout: source.parse_or(self.timeout.as_ref(), "2s", positive_duration)?,
            retries: source.number_or(self.retries.as_ref(), 2, 0..=10)?,
            max_bytes: source.parse_or(self.max_bytes.as_ref(), "1MiB", size_from("1B"))?,
            max_in_flight: source.number_or(self.max_in_flight.as_ref(), 64, 1..=100_000)?,
            queue: source.parse_or(self.queue.as_ref(), "10s", duration)?,
            cursor_header: source.parse_or(
                self.cursor_header.as_ref(),
                "relay-cursor",
                header_name,
            )?,
            on_error: source.parse_or(self.on_error.as_ref(), "close", one_of(&on_errors))?,
        })
    }

    fn headers(
        &self,
        known: &Known<'_>,
        source: &Source<'_>,
    ) -> Result<Vec<(HeaderName, Template)>, ConfigError> {
        let mut headers = Vec::<(HeaderName, Template)>::new();
        for (written_name, written) in &self.headers {
            let at = written.span();
            let name = settable_header(written_name)
                .map_err(|wrong| source.error(&at, format!("{written_name:?} {wrong}")))?;
            if headers.iter().any(|(other, _)| *other == name) {
                let what = format!("{name:?} is listed twice; expected it once");
                return Err(source.error(&at, what));
            }
            headers.push((
                name,
                source.parse_hidden(written, |text| header_template(text, known))?,
            ));
        }
        Ok(headers)
    }

    fn forward(
        &self,
        headers: &[(HeaderName, Template)],
        source: &Source<'_>,
    ) -> Result<Vec<HeaderName>, ConfigError> {
        let default = ["authorization", "cookie", "traceparent", "x-request-id"];
        let mut forward = source.parse_list_or(self.forward.as_ref(), &default, settable_header)?;
        let is_set = |name: &HeaderName| headers.iter().any(|(set, _)| set == name);
        let Some(written) = &self.forward else {
            // A header that is set stands in for the one that would be forwarded anyway.
            forward.retain(|name| !is_set(name));
            return Ok(forward);
        };
        for (at, name) in forward.iter().enumerate() {
            let again = if forward[..at].contains(name) {
                "is listed twice"
            } else if is_set(name) {
                "is also set by `headers`"
            } else {
                continue;
            };
            let at = written.get_ref()[at].span();
            return Err(source.error(
                &at,
                format!("{:?} {again}; expected it once", name.as_str()),
            ));
        }
        Ok(forward)
    }

    /// One client's rights must not decide what another gets.
    fn share(
        &self,
        headers: &[(HeaderName, Template)],
        forward: &[HeaderName],
        source: &Source<'_>,
    ) -> Result<Share, ConfigError> {
        let ttl = source.parse_or(self.share_ttl.as_ref(), "0s", duration)?;
        let words = [("none", false), ("url", true)];
        let Some(written) = &self.share else {
            return self.unshared(ttl.is_zero(), source);
        };
        if !source.parse(written, one_of(&words))? {
            return self.unshared(ttl.is_zero(), source);
        }
        let personal = |name: &&HeaderName| matches!(name.as_str(), "authorization" | "cookie");
        if let Some(name) = forward.iter().find(personal) {
            let at = self
                .forward
                .as_ref()
                .map_or(written.span(), |list| list.span());
            return Err(source.error(
                &at,
                format!("a shared callback can't forward {:?} of one client for all; expected `forward` without it", name.as_str()),
            ));
        }
        if let Some((name, _)) = headers.iter().find(|(_, template)| template.uses_claims()) {
            return Err(source.error(
                &written.span(),
                format!("a shared callback can't send claims of one client for all, as the header {:?} does; expected headers without claims", name.as_str()),
            ));
        }
        Ok(Share::Url { ttl })
    }

    fn unshared(&self, ttl_is_zero: bool, source: &Source<'_>) -> Result<Share, ConfigError> {
        match &self.share_ttl {
            Some(written) if !ttl_is_zero => Err(source.error(
                &written.span(),
                r#"has a meaning only with share = "url"; expected that, or "0s""#,
            )),
            _ => Ok(Share::None),
        }
    }
}

/// No value of a request may choose the host that is asked.
fn url(text: &str, known: &Known<'_>) -> Result<Template, Wrong> {
    let wrong = |what: &str| {
        Wrong::new(format!(
            r#"{what}; expected a url such as "http://127.0.0.1:8000/jobs/{{job_id}}""#
        ))
    };
    let template = template(text, known)?;
    let prefix = template.literal_prefix();
    let (scheme, rest) = prefix
        .split_once("://")
        .ok_or_else(|| wrong("does not begin with http:// or https://"))?;
    if !matches!(scheme, "http" | "https") {
        return Err(wrong("does not begin with http:// or https://"));
    }
    let authority_end = rest.find(['/', '?']);
    if authority_end.is_none() && template.has_variables() {
        return Err(wrong("has a variable in its host"));
    }
    if text.contains('#') {
        return Err(wrong("has a fragment, which is never sent"));
    }
    let uri = template
        .sample()
        .parse::<Uri>()
        .map_err(|_| wrong("is not a url"))?;
    let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("has a user in it, which is not sent (use `headers`)"));
    }
    if authority.host().is_empty() {
        return Err(wrong("has no host"));
    }
    if authority.as_str() != authority.host() && authority.port_u16().is_none() {
        return Err(wrong("has a port that is none"));
    }
    Ok(template)
}

fn method(text: &str) -> Result<Method, Wrong> {
    match text {
        "GET" => Ok(Method::GET),
        "POST" => Ok(Method::POST),
        _ => Err(Wrong::new(r#"is unknown; expected "GET" or "POST""#)),
    }
}

pub(super) fn header_name(text: &str) -> Result<HeaderName, Wrong> {
    text.parse()
        .map_err(|_| Wrong::new("is not the name of a header; expected one such as \"x-user\""))
}

/// A header that says something to the API, not one that the connection itself needs.
fn settable_header(text: &str) -> Result<HeaderName, Wrong> {
    let name = header_name(text)?;
    let is_of_connection = matches!(
        name.as_str(),
        "connection"
            | "content-length"
            | "expect"
            | "host"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    );
    if is_of_connection {
        return Err(Wrong::new(
            "belongs to the connection; expected a header for the API",
        ));
    }
    Ok(name)
}

fn header_template(text: &str, known: &Known<'_>) -> Result<Template, Wrong> {
    if text.chars().any(char::is_control) {
        return Err(Wrong::new(
            "has a control character; expected a value for a header",
        ));
    }
    template(text, known)
}
