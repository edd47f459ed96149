//! Who a client is that comes through proxies.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use ipnet::IpNet;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The client's address: the last one in `X-Forwarded-For` that no trusted proxy has.
///
/// Each proxy adds at the right whom it was asked by, so the list is read from there, and only as
/// far as the one who wrote an entry is trusted. What stands further left may be the client's own
/// invention. An entry that is no address ends it too: the proxy that wrote it counts as client.
pub(super) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let mut entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let mut client = peer.to_canonical();
    while is_trusted(client, trusted) {
        let Some(address) = entries.next().and_then(address) else {
            break;
        };
        client = address;
    }
    client
}

pub(super) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// An address as proxies write it: alone, with a port, or in brackets.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim_ascii();
    let in_brackets = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let address = match in_brackets {
        Some(text) => IpAddr::V6(text.parse().ok()?),
        None => text.parse().or_else(|_| with_port(text)).ok()?,
    };
    Some(address.to_canonical())
}

fn with_port(text: &str) -> Result<IpAddr, std::net::AddrParseError> {
    text.parse::<SocketAddr>().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const PEER: &str = "10.0.0.1";

    fn trusted() -> Vec<IpNet> {
        ["10.0.0.0/8", "fd00::/8"]
            .map(|net| net.parse().unwrap())
            .into()
    }

    fn seen(peer: &str, lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(
                X_FORWARDED_FOR,
                HeaderValue::from_bytes(line.as_bytes()).unwrap(),
            );
        }
        client_address(peer.parse().unwrap(), &headers, &trusted()).to_string()
    }

    #[test]
    fn the_list_is_read_from_the_right() {
        let table: &[(&[&str], &str)] = &[
            (&[], PEER),
            (&["192.0.2.7"], "192.0.2.7"),
            (&["203.0.113.9, 192.0.2.7"], "192.0.2.7"),
            (&["203.0.113.9,192.0.2.7,10.2.3.4"], "192.0.2.7"),
            (
                &["203.0.113.9", "192.0.2.7, 10.2.3.4", "10.9.9.9"],
                "192.0.2.7",
            ),
            (&["192.0.2.7:4711"], "192.0.2.7"),
            (&["2001:db8::1"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["[2001:db8::1]:4711"], "2001:db8::1"),
            (&["192.0.2.7, [fd00::1]:80"], "192.0.2.7"),
            (&["::ffff:192.0.2.7"], "192.0.2.7"),
            (&["192.0.2.7, ::ffff:10.2.3.4"], "192.0.2.7"),
            // All of them are proxies: the first is the one that asked.
            (&["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
            // What can't be read ends the list at the proxy that wrote it.
            (&["192.0.2.7, unknown, 10.2.3.4"], "10.2.3.4"),
            (&["192.0.2.7, "], PEER),
            (&["192.0.2.7", ""], PEER),
            (&["192.0.2.7, 10.2.3.4:99999"], PEER),
            (&["192.0.2.7, [10.2.3.4]"], PEER),
            (&["192.0.2.7, \u{e9}"], PEER),
        ];
        assert!(!table.is_empty());
        for (lines, expected) in table {
            assert_eq!(seen(PEER, lines), *expected, "{lines:?}");
        }
    }

    #[test]
    fn a_peer_that_is_no_proxy_is_the_client() {
        assert_eq!(seen("192.0.2.1", &["203.0.113.9"]), "192.0.2.1");
        assert_eq!(seen("::ffff:192.0.2.1", &["203.0.113.9"]), "192.0.2.1");
        assert_eq!(seen("::ffff:10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
    }

    fn addresses() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
            any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
        ]
    }

    /// The ways to write an address.
    fn written(address: IpAddr, way: u8, port: u16) -> String {
        match (address, way % 3) {
            (IpAddr::V6(v6), 1) => format!("[{v6}]"),
            (IpAddr::V6(v6), 2) => format!("[{v6}]:{port}"),
            (IpAddr::V4(v4), 2) => format!("{v4}:{port}"),
            _ => address.to_string(),
        }
    }

    proptest! {
        /// Whatever a client claims, it is the one that the outermost proxy has seen.
        #[test]
        fn nothing_that_a_client_claims_counts(
            claims in proptest::collection::vec("[0-9a-f:.,\\[\\] ]{0,40}", 0..4),
            client in addresses(),
            proxies in proptest::collection::vec(any::<[u8; 3]>(), 0..4),
            (way, port) in any::<(u8, u16)>(),
            one_line in any::<bool>(),
        ) {
            let client = client.to_canonical();
            prop_assume!(!is_trusted(client, &trusted()));
            let mut lines = claims;
            lines.push(written(client, way, port));
            lines.extend(proxies.iter().map(|[a, b, c]| format!("10.{a}.{b}.{c}")));
            let lines = if one_line { vec![lines.join(", ")] } else { lines };
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            prop_assert_eq!(seen(PEER, &lines), client.to_string());
        }

        #[test]
        fn any_bytes_are_read(lines in proptest::collection::vec("[ -~\u{80}-\u{ff}]{0,60}", 0..5)) {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let client: IpAddr = seen(PEER, &lines).parse().unwrap();
            prop_assert_eq!(client, client.to_canonical());
        }
    }
}
