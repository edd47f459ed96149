//! Where a request's token is.

use std::borrow::Cow;

use cookie::Cookie;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL};

use super::{Request, TokenFault};
use crate::config::TokenSource;

/// The token of a request: the first source that is present decides. An empty or unreadable
/// token is present, so it is never passed over for the next source.
pub(super) fn find<'a>(
    sources: &[TokenSource],
    request: &Request<'a>,
) -> Result<Cow<'a, str>, TokenFault> {
    if let Some(token) = request.message {
        return Ok(token.expose().into());
    }
    let headers = request.headers;
    let read = |source: &TokenSource| match source {
        TokenSource::Header => bearer(headers),
        TokenSource::Subprotocol { prefix } => {
            subprotocol(offered(headers), prefix).map(|(_, token)| Ok(token.into()))
        }
        TokenSource::Cookie { name } => cookie(headers, name).map(|token| Ok(token.into())),
        TokenSource::Query { name } => request.query.get(name).map(|token| Ok(token.into())),
        TokenSource::FirstMessage => None,
    };
    sources
        .iter()
        .find_map(read)
        .unwrap_or(Err(TokenFault::Missing))
}

/// The first of these subprotocols that begins with the prefix, and the token that follows it.
pub(super) fn subprotocol<'a>(
    mut offered: impl Iterator<Item = &'a str>,
    prefix: &str,
) -> Option<(&'a str, &'a str)> {
    offered.find_map(|value| Some((value, value.strip_prefix(prefix)?)))
}

/// `authorization: Bearer …` (RFC 6750 section 2.1). Another scheme is no token, so that basic
/// authentication of a proxy does not hide the next source. Two such headers are what one
/// server reads this way and another that way: refused.
fn bearer(headers: &HeaderMap) -> Option<Result<Cow<'_, str>, TokenFault>> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() {
        return Some(Err(TokenFault::Malformed));
    }
    let end_of_scheme = value.iter().position(|&byte| byte == b' ');
    let (scheme, token) = value.split_at(end_of_scheme.unwrap_or(value.len()));
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    let text = std::str::from_utf8(token.trim_ascii()).map_err(|_| TokenFault::Malformed);
    Some(text.map(Cow::Borrowed))
}

/// What the client offers (RFC 6455 section 11.3.4: one header with a list, or several).
fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    texts(headers, SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|text| match text {
            Cow::Borrowed(text) => Some(text),
            // Not UTF-8, so no list of subprotocols.
            Cow::Owned(_) => None,
        })
        .flat_map(|list| list.split(','))
        .map(str::trim_ascii)
}

/// The first cookie of this name, which is the one with the most specific path (RFC 6265
/// section 5.4).
fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    texts(headers, COOKIE).find_map(|text| {
        Cookie::split_parse(text)
            .flatten()
            .find(|cookie| cookie.name() == name)
            .map(|cookie| cookie.value_trimmed().to_owned())
    })
}

/// The values of a header as text. Bytes that are not UTF-8 are replaced: a cookie of somebody
/// else must not hide ours.
fn texts(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = Cow<'_, str>> {
    let values = headers.get_all(name).iter();
    values
        .map(HeaderValue::as_bytes)
        .map(String::from_utf8_lossy)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sources() -> [TokenSource; 4] {
        [
            TokenSource::Header,
            TokenSource::Subprotocol {
                prefix: "bearer.".to_owned(),
            },
            TokenSource::Cookie {
                name: "session".to_owned(),
            },
            TokenSource::Query {
                name: "token".to_owned(),
            },
        ]
    }

    /// A header's name and value.
    type Line = (&'static str, &'static str);

    fn found(lines: &[Line], query: &str) -> Result<String, TokenFault> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let query = form_urlencoded::parse(query.as_bytes()).into_owned();
        let request = Request {
            message: None,
            headers: &headers,
            params: &BTreeMap::new(),
            query: &query.collect(),
        };
        find(&sources(), &request).map(Cow::into_owned)
    }

    #[test]
    fn each_source_is_read() {
        const AUTH: &str = "authorization";
        const PROTOCOL: &str = "sec-websocket-protocol";
        const COOKIE: &str = "cookie";
        let missing = Err(TokenFault::Missing);
        let cases: &[(&[Line], Result<&str, TokenFault>)] = &[
            (&[(AUTH, "Bearer a.b.c")], Ok("a.b.c")),
            (&[(AUTH, "bearer a")], Ok("a")),
            (&[(AUTH, "BEARER   a")], Ok("a")),
            (&[(AUTH, "Bearer")], Ok("")),
            (&[(AUTH, "Bearer ")], Ok("")),
            (&[(AUTH, "Bearer ä")], Ok("ä")),
            (&[(AUTH, "Basic YTpi")], missing),
            (&[(AUTH, "a.b.c")], missing),
            (&[(AUTH, "Bearera")], missing),
            (&[(AUTH, "")], missing),
            (
                &[(AUTH, "Bearer a"), (AUTH, "Bearer a")],
                Err(TokenFault::Malformed),
            ),
            (
                &[(AUTH, "Basic a"), (AUTH, "Bearer a")],
                Err(TokenFault::Malformed),
            ),
            (&[(PROTOCOL, "relay.v1, bearer.a.b.c")], Ok("a.b.c")),
            (&[(PROTOCOL, "relay.v1"), (PROTOCOL, "bearer.a")], Ok("a")),
            (&[(PROTOCOL, "bearer.a,bearer.b")], Ok("a")),
            (&[(PROTOCOL, "bearer.")], Ok("")),
            (&[(PROTOCOL, "Bearer.a")], missing),
            (&[(PROTOCOL, ",, ,")], missing),
            (&[(COOKIE, "x=1; session=a; y=2")], Ok("a")),
            (&[(COOKIE, "x=1"), (COOKIE, "session=a")], Ok("a")),
            (&[(COOKIE, "session=a; session=b")], Ok("a")),
            (&[(COOKIE, "session=\"a\"")], Ok("a")),
            (&[(COOKIE, "bad; =; x=ü; session=a==")], Ok("a==")),
            (&[(COOKIE, "session=")], Ok("")),
            (&[(COOKIE, "Session=a; xsession=b")], missing),
            (&[], missing),
        ];
        assert!(!cases.is_empty());
        for (lines, expected) in cases {
            assert_eq!(found(lines, ""), expected.map(str::to_owned), "{lines:?}");
        }
        assert_eq!(found(&[], "token=a&x=1"), Ok("a".to_owned()));
        assert_eq!(found(&[], "token="), Ok(String::new()));
        assert_eq!(found(&[], "tokens=a"), Err(TokenFault::Missing));
    }

    #[test]
    fn the_first_source_that_is_present_decides() {
        let header = ("authorization", "Bearer header");
        let protocol = ("sec-websocket-protocol", "bearer.protocol");
        let cookie = ("cookie", "session=cookie");
        let all = [cookie, protocol, header];
        assert_eq!(found(&all, "token=query"), Ok("header".to_owned()));
        assert_eq!(found(&all[..2], "token=query"), Ok("protocol".to_owned()));
        assert_eq!(found(&all[..1], "token=query"), Ok("cookie".to_owned()));
        let empty = [("authorization", "Bearer"), protocol];
        assert_eq!(
            found(&empty, ""),
            Ok(String::new()),
            "present, though empty"
        );
        let basic = [("authorization", "Basic a"), protocol];
        assert_eq!(found(&basic, ""), Ok("protocol".to_owned()));
    }

    #[test]
    fn bytes_that_are_no_text_hide_nothing_but_themselves() {
        let mut headers = HeaderMap::new();
        headers.append(
            AUTHORIZATION,
            HeaderValue::from_bytes(b"Bearer \xff").unwrap(),
        );
        assert_eq!(bearer(&headers), Some(Err(TokenFault::Malformed)));
        headers.append(
            COOKIE,
            HeaderValue::from_bytes(b"x=\xff; session=a").unwrap(),
        );
        assert_eq!(cookie(&headers, "session"), Some("a".to_owned()));
    }
}
