//! The address of a route, with and without a cursor.

use std::str::FromStr;

use hyper::Uri;

const CURSOR: &str = "cursor";

/// An address that a cursor can be put into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Up to the query.
    base: String,
    /// As it was given, without the cursor.
    query: Vec<String>,
    cursor: Option<String>,
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: Uri = text.parse().map_err(|_| "is not a URL")?;
        if !matches!(uri.scheme_str(), Some("ws" | "wss")) {
            return Err("expected ws://… or wss://…");
        }
        // The fragment is cut by the parser; a name without a host is none.
        let authority = uri.authority().ok_or("expected a host")?;
        if authority.host().is_empty() {
            return Err("expected a host");
        }
        let pairs = uri.query().unwrap_or_default().split('&');
        let (cursors, query): (Vec<_>, Vec<_>) = pairs
            .filter(|pair| !pair.is_empty())
            .partition(|pair| name_of(pair) == CURSOR);
        Ok(Self {
            base: format!(
                "{}://{authority}{}",
                uri.scheme_str().unwrap_or("ws"),
                uri.path()
            ),
            query: query.into_iter().map(str::to_owned).collect(),
            cursor: cursors.first().and_then(|pair| value_of(pair)),
        })
    }
}

impl Target {
    /// The cursor that the address had.
    pub(super) fn cursor(&self) -> Option<String> {
        self.cursor.clone()
    }

    /// The address to connect to.
    pub(super) fn uri(&self, cursor: Option<&str>) -> Uri {
        let mut query = self.query.clone();
        if let Some(cursor) = cursor {
            let mut pair = form_urlencoded::Serializer::new(String::new());
            query.push(pair.append_pair(CURSOR, cursor).finish());
        }
        let question = if query.is_empty() { "" } else { "?" };
        let text = format!("{}{question}{}", self.base, query.join("&"));
        text.parse().expect("its parts were parsed or encoded")
    }
}

fn name_of(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

fn value_of(pair: &str) -> Option<String> {
    let (_, value) = form_urlencoded::parse(pair.as_bytes()).next()?;
    (!value.is_empty()).then(|| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_is_put_into_the_query() {
        let table = [
            (
                "ws://h:1/ws/jobs/1",
                Some("1-0"),
                "ws://h:1/ws/jobs/1?cursor=1-0",
            ),
            (
                "wss://h/ws?x=%20y",
                Some("a~1-0,2-0"),
                "wss://h/ws?x=%20y&cursor=a%7E1-0%2C2-0",
            ),
            (
                "ws://h/ws?cursor=0-1&x=1",
                Some("1-0"),
                "ws://h/ws?x=1&cursor=1-0",
            ),
            ("ws://h/ws?cursor=", None, "ws://h/ws"),
            ("ws://h", None, "ws://h/"),
        ];
        for (given, cursor, expected) in table {
            let target: Target = given.parse().unwrap();
            assert_eq!(target.uri(cursor), expected, "{given}");
        }
    }

    #[test]
    fn a_cursor_in_the_address_is_where_to_begin() {
        let cursor = |text: &str| text.parse::<Target>().unwrap().cursor();
        assert_eq!(cursor("ws://h/ws?cursor=a%7E1-0"), Some("a~1-0".to_owned()));
        assert_eq!(cursor("ws://h/ws?cursor="), None);
        assert_eq!(cursor("ws://h/ws"), None);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "h/ws",
            "http://h/ws",
            "/ws/jobs/1",
            "ws:///x",
            "ws://a b/",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
