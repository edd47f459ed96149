//! Which pages may connect: browsers send cookies and let no page forge its origin, so the
//! `Origin` header tells a page of somebody else's (RFC 6454, RFC 6455 section 10.2).

use hyper::HeaderMap;
use hyper::header::{HOST, ORIGIN};

use crate::config::OriginPattern;

/// Without a list the page's host must be the request's, whatever the ports. No `Origin` at all
/// is no browser.
pub(super) fn is_allowed(headers: &HeaderMap, allowed: &[OriginPattern]) -> bool {
    let mut origins = headers.get_all(ORIGIN).iter();
    let Some(origin) = origins.next() else {
        return true;
    };
    let (Ok(origin), None) = (origin.to_str(), origins.next()) else {
        return false;
    };
    let origin = origin.to_ascii_lowercase();
    if allowed.is_empty() {
        return is_same_host(&origin, headers);
    }
    allowed.iter().any(|pattern| pattern.matches(&origin))
}

fn is_same_host(origin: &str, headers: &HeaderMap) -> bool {
    let page = origin
        .split_once("://")
        .map(|(_, authority)| host(authority));
    let asked = headers.get(HOST).and_then(|asked| asked.to_str().ok());
    let asked = asked.map(str::to_ascii_lowercase);
    page.is_some() && page == asked.as_deref().map(host)
}

/// An authority without its port.
fn host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(origin: &str, host: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        headers.insert(ORIGIN, HeaderValue::from_str(origin).unwrap());
        headers
    }

    #[test]
    fn without_a_list_the_host_decides_and_ports_do_not_matter() {
        for (origin, host, allowed) in [
            ("https://app.example.com", "app.example.com", true),
            ("http://LocalHost:8000", "localhost:8081", true),
            ("http://[::1]:8000", "[::1]:8081", true),
            ("https://evil.com", "app.example.com", false),
            ("https://app.example.com.evil.com", "app.example.com", false),
            ("null", "app.example.com", false),
        ] {
            assert_eq!(is_allowed(&headers(origin, host), &[]), allowed, "{origin}");
        }
        assert!(is_allowed(&HeaderMap::new(), &[]));
    }

    #[test]
    fn a_list_is_exact_but_for_its_wildcards() {
        let below = |suffix: &str| OriginPattern::Below {
            scheme: "https".into(),
            suffix: suffix.into(),
        };
        let list = [
            OriginPattern::Exact("https://a.com".into()),
            below(".example.com"),
        ];
        for (origin, allowed) in [
            ("https://a.com", true),
            ("https://a.com:8443", false),
            ("http://a.com", false),
            ("https://x.example.com", true),
            ("https://x.y.example.com", true),
            ("https://example.com", false),
            ("https://evilexample.com", false),
            ("https://evil.com/.example.com", false),
            ("null", false),
        ] {
            assert_eq!(
                is_allowed(&headers(origin, "relay"), &list),
                allowed,
                "{origin}"
            );
        }
    }

    proptest! {
        /// Whatever stands before or behind it, another page's origin is not ours.
        #[test]
        fn no_other_origin_is_allowed(before in "[a-z@:/.]{0,9}", behind in "[a-z@:/.?#]{0,9}") {
            let listed = [OriginPattern::Exact("https://app.example".to_owned())];
            let origin = format!("{before}https://app.example{behind}");
            let headers = headers(&origin, "app.example");
            prop_assert_eq!(is_allowed(&headers, &listed), before.is_empty() && behind.is_empty());
        }

        #[test]
        fn any_bytes_are_read(origin in "[ -~\u{80}-\u{ff}]{0,30}", host in "[ -~]{0,30}") {
            let bytes: Vec<_> = origin.chars().map(|c| u8::try_from(c).unwrap()).collect();
            let mut headers = headers("x", &host);
            headers.insert(ORIGIN, HeaderValue::from_bytes(&bytes).unwrap());
            let _either = is_allowed(&headers, &[]);
        }
    }
}
