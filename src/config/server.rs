//! `[server]`, `[client]` and `[log]`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;

use super::source::Source;
use super::value::{Wrong, address, one_of, positive_duration, size_from};
use super::written::Scalar;
use super::{Auth, ConfigError, Tls, written};
use crate::telemetry::{Log, LogFormat};

/// No limit needs to be higher.
const MOST: u32 = 1_000_000;

/// `[server]`.
#[derive(Debug, Clone)]
pub struct Server {
    /// Clients connect here.
    pub listen: SocketAddr,
    /// `/livez`, `/readyz`, `/metrics` and `/statusz` are here.
    pub admin_listen: SocketAddr,
    /// Clients at once; one more is refused.
    pub max_connections: usize,
    /// Connections of one address, an IPv6 /64 being one.
    pub max_connections_per_ip: Option<NonZeroU32>,
    /// Connections of one subject.
    pub max_connections_per_subject: Option<NonZeroU32>,
    /// Upgrade requests in a second.
    pub connects_per_second: Option<NonZeroU32>,
    /// From accept to the last byte of the request head, the TLS handshake included.
    pub handshake_timeout: Duration,
    /// Bytes of a request head; at least what the HTTP parser needs (8 KiB).
    pub max_head: usize,
    /// Bytes per client in the kernel (`SO_SNDBUF`, and `TCP_NOTSENT_LOWAT`).
    pub send_buffer: usize,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Empty: the page's host name must be the request's, or there is no Origin header.
    pub allowed_origins: Vec<OriginPattern>,
    /// Absent: the clients' port speaks plain HTTP.
    pub tls: Option<Tls>,
}

/// Pages that may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    /// `scheme://host[:port]`, in lower case; or `null`.
    Exact(String),
    /// `https://*.example.com`: any host below, at any depth, but not `example.com` itself.
    Below {
        /// `https`
        scheme: String,
        /// `.example.com`, with its dot, and with `:port` if the pattern has one.
        suffix: String,
    },
}

/// `[client]`.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Bytes of one message.
    pub max_message: usize,
    /// Messages per second; at least 1.
    pub max_messages_per_second: u32,
}

impl written::Server {
    pub(super) fn check(&self, source: &Source<'_>) -> Result<Server, ConfigError> {
        let server = Server {
            listen: source.parse_or(self.listen.as_ref(), "0.0.0.0:8081", address)?,
            admin_listen: source.parse_or(self.admin_listen.as_ref(), "0.0.0.0:9091", address)?,
            max_connections: source.number_or(
                self.max_connections.as_ref(),
                100_000,
                1..=10_000_000,
            )?,
            max_connections_per_ip: source.limit(self.max_connections_per_ip.as_ref())?,
            max_connections_per_subject: source.limit(self.max_connections_per_subject.as_ref())?,
            connects_per_second: source.limit(self.connects_per_second.as_ref())?,
            handshake_timeout: source.parse_or(
                self.handshake_timeout.as_ref(),
                "10s",
                positive_duration,
            )?,
            // The HTTP parser takes no smaller buffer.
            max_head: source.parse_or(self.max_head.as_ref(), "16KiB", size_from("8KiB"))?,
            send_buffer: source.parse_or(self.send_buffer.as_ref(), "128KiB", size_from("4KiB"))?,
            trusted_proxies: source.parse_list_or(self.trusted_proxies.as_ref(), &[], network)?,
            allowed_origins: source.parse_list_or(
                self.allowed_origins.as_ref(),
                &[],
                OriginPattern::parse,
            )?,
            tls: self.tls.check(source)?,
        };
        if let Some(written) = self.admin_listen.as_ref().or(self.listen.as_ref())
            && server.listen == server.admin_listen
            && server.listen.port() != 0
        {
            return Err(source.error(
                &written.span(),
                "`listen` and `admin_listen` are the same; expected two ports",
            ));
        }
        Ok(server)
    }

    /// Without tokens nobody is anybody.
    pub(super) fn check_with(&self, auth: &Auth, source: &Source<'_>) -> Result<(), ConfigError> {
        match &self.max_connections_per_subject {
            Some(written) if auth.jwt.is_none() && source.limit(Some(written))?.is_some() => {
                Err(source.error(
                    &written.span(),
                    r#"there are no subjects with auth.mode = "none"; expected 0 or nothing"#,
                ))
            }
            _ => Ok(()),
        }
    }
}

impl Source<'_> {
    /// A number that 0 turns off.
    fn limit(&self, written: Option<&Scalar>) -> Result<Option<NonZeroU32>, ConfigError> {
        let number = self.number_or(written, 0, 0..=MOST)?;
        Ok(NonZeroU32::new(number))
    }
}

/// `10.0.0.0/8`, or one address.
fn network(text: &str) -> Result<IpNet, Wrong> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| {
            Wrong::new(r#"is not a network; expected a CIDR such as "10.0.0.0/8", or an address"#)
        })?,
    };
    let truncated = network.trunc();
    if truncated != network {
        return Err(Wrong::new(format!(
            "has bits beyond its prefix; expected \"{truncated}\""
        )));
    }
    Ok(canonical(network))
}

/// Addresses are compared as IPv4 where they are IPv4.
fn canonical(network: IpNet) -> IpNet {
    let mapped = match network {
        IpNet::V6(v6) => v6
            .network()
            .to_ipv4_mapped()
            .zip(v6.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    mapped
        .and_then(|(address, prefix)| IpNet::new(address.into(), prefix).ok())
        .unwrap_or(network)
}

impl OriginPattern {
    fn parse(text: &str) -> Result<Self, Wrong> {
        let wrong = || {
            Wrong::new(
                r#"is not an origin; expected "https://host", "https://host:port", "https://*.host" or "null""#,
            )
        };
        let origin = text.to_ascii_lowercase();
        if origin == "null" {
            return Ok(Self::Exact(origin));
        }
        let (scheme, authority) = origin.split_once("://").ok_or_else(wrong)?;
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let port = port
            .map(|port| port.parse::<u16>().map_err(|_| wrong()))
            .transpose()?
            // Browsers leave the usual port out.
            .filter(|port| !matches!((scheme, port), ("http", 80) | ("https", 443)))
            .map_or(String::new(), |port| format!(":{port}"));
        let below = host.strip_prefix("*.");
        if !is_scheme(scheme) || !is_host(below.unwrap_or(host)) {
            return Err(wrong());
        }
        Ok(match below {
            Some(host) => Self::Below {
                scheme: scheme.to_owned(),
                suffix: format!(".{host}{port}"),
            },
            None => Self::Exact(format!("{scheme}://{host}{port}")),
        })
    }

    /// Whether the value of an Origin header is one of these.
    pub fn matches(&self, origin: &str) -> bool {
        let origin = origin.to_ascii_lowercase();
        match self {
            Self::Exact(exact) => origin == *exact,
            Self::Below { scheme, suffix } => origin
                .strip_prefix(scheme.as_str())
                .and_then(|rest| rest.strip_prefix("://"))
                .and_then(|rest| rest.strip_suffix(suffix.as_str()))
                .is_some_and(is_host),
        }
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// A name or an address; a loose check, as a host that does not exist matches nothing.
fn is_host(text: &str) -> bool {
    if let Some(address) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    text.split('.').all(|label| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    })
}

impl written::Client {
    pub(super) fn check(&self, source: &Source<'_>) -> Result<Client, ConfigError> {
        Ok(Client {
            max_message: source.parse_or(self.max_message.as_ref(), "16KiB", size_from("128B"))?,
            max_messages_per_second: source.number_or(
                self.max_messages_per_second.as_ref(),
                10,
                1..=1_000_000,
            )?,
        })
    }
}

impl written::Log {
    pub(super) fn check(&self, source: &Source<'_>) -> Result<Log, ConfigError> {
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        Ok(Log {
            format: source.parse_or(self.format.as_ref(), "text", one_of(&formats))?,
            level: source.parse_or(self.level.as_ref(), "info", level)?,
        })
    }
}

/// `info`, or `info,relay::hub=debug`.
fn level(text: &str) -> Result<String, Wrong> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_target = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_:-".contains(&b))
    };
    let is_directive = |directive: &str| match directive.split_once('=') {
        Some((target, level)) => is_target(target) && LEVELS.contains(&level),
        None => LEVELS.contains(&directive),
    };
    if text.split(',').all(is_directive) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        r#"is not a level; expected "error", "warn", "info", "debug", "trace" or "off", or a list such as "info,relay::hub=debug""#,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, origin: &str) -> bool {
        OriginPattern::parse(pattern).unwrap().matches(origin)
    }

    #[test]
    fn an_exact_origin_is_that_origin_alone() {
        assert!(matches(
            "https://app.example.com",
            "https://app.example.com"
        ));
        assert!(matches(
            "HTTPS://App.Example.com",
            "https://APP.example.com"
        ));
        assert!(matches(
            "https://app.example.com:443",
            "https://app.example.com"
        ));
        assert!(matches("http://[::1]:3000", "http://[::1]:3000"));
        assert!(matches("null", "null"));
        for origin in [
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.com",
            "https://evil.com/https://app.example.com",
            "null",
            "",
        ] {
            assert!(!matches("https://app.example.com", origin), "{origin}");
        }
    }

    #[test]
    fn a_wildcard_is_any_host_below() {
        let pattern = "https://*.example.com";
        assert!(matches(pattern, "https://app.example.com"));
        assert!(matches(pattern, "https://a.b.example.com"));
        assert!(matches(
            "https://*.example.com:8443",
            "https://a.example.com:8443"
        ));
        for origin in [
            "https://example.com",
            "https://.example.com",
            "https://evilexample.com",
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.com",
            "https://evil.com/.example.com",
            "https://evil.com#.example.com",
            "https://user@.example.com",
            "null",
        ] {
            assert!(!matches(pattern, origin), "{origin}");
        }
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in [
            "",
            "*",
            "example.com",
            "https://",
            "https://*",
            "https://*.",
            "https://a/",
            "https://a b",
            "https://a:",
            "https://a:x",
            "https://**.a",
            "://a",
            "https://[::1",
            "1http://a",
        ] {
            assert!(OriginPattern::parse(text).is_err(), "{text:?}");
        }
    }
}
