//! What only a connection can tell.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Uri;
use relay::auth::Authority;
use relay::config::template::{Unusable, Values};
use relay::config::{Config, Redis, Wake};
use relay::metrics::Metrics;
use relay::store::live::{Live, Retention, address, commands, is_refusal};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Report, count};

/// Stands for any value of a template.
const ANY: &str = "relay-check";
/// More variables than any template has.
const MANY: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The first second of the year 10000.
const END_OF_TIME_MS: u64 = 253_402_300_800_000;

pub(super) async fn check(
    config: &Config,
    streams: &[String],
    report: &mut Report,
) -> io::Result<()> {
    let address = address(&config.redis).unwrap_or_default();
    match Live::connect(&config.redis).await {
        Ok(mut live) => {
            server(&mut live, &address, report).await?;
            tracking(&mut live, config.redis.wake, report).await?;
            permissions(&mut live, config, report).await?;
            eviction(&mut live, report).await?;
            for key in streams {
                retention(&mut live, key, report).await?;
            }
        }
        Err(error) => report.fail(&format!("redis: no connection to {address}: {error}"))?,
    }
    jwks(config, report).await?;
    callbacks(config, report).await
}

async fn jwks(config: &Config, report: &mut Report) -> io::Result<()> {
    let authority = Authority::new(config, &Metrics::new());
    for fetched in authority.fetch_jwks().await {
        let place = format!(
            "jwks: [[auth.key]] {} from {}",
            fetched.index + 1,
            fetched.authority
        );
        match fetched.keys {
            Ok((usable, 0)) => report.ok(&format!("{place}: {}", keys(usable)))?,
            Ok((usable, others)) => report.ok(&format!(
                "{place}: {}, {others} of other kinds",
                keys(usable)
            ))?,
            Err(error) => report.fail(&format!("{place}: {error}"))?,
        }
    }
    Ok(())
}

fn keys(number: usize) -> String {
    count(number as u64, "usable key", "usable keys")
}

async fn server(live: &mut Live, address: &str, report: &mut Report) -> io::Result<()> {
    match live.server().await {
        Ok(server) if server.role == "master" => report.ok(&format!(
            "redis: {} {} at {address}",
            server.name, server.version
        )),
        Ok(server) => report.warn(&format!(
            "redis: {} {} at {address} is a {}: entries arrive late, or not at all after a failover",
            server.name, server.version, server.role
        )),
        Err(error) => report.warn(&format!("redis: {address} does not say what it is: {error}")),
    }
}

async fn tracking(live: &mut Live, wake: Wake, report: &mut Report) -> io::Result<()> {
    match (live.track().await, wake) {
        (_, Wake::Poll) => report.ok("wake: streams are polled, as redis.wake says"),
        (Ok(()), _) => report.ok("wake: changes are pushed (CLIENT TRACKING)"),
        (Err(error), Wake::Auto) => report.warn(&format!(
            "wake: CLIENT TRACKING is refused, so streams are polled: {error}"
        )),
        (Err(error), Wake::Tracking) => {
            report.fail(&format!("wake: CLIENT TRACKING is refused: {error}"))
        }
    }
}

/// Tries the commands on keys such as the routes will read.
async fn permissions(live: &mut Live, config: &Config, report: &mut Report) -> io::Result<()> {
    let keys: BTreeSet<_> = config
        .routes
        .iter()
        .flat_map(|route| &route.streams)
        .filter_map(|stream| example(|values| stream.render(values)))
        .collect();
    let mut all_allowed = true;
    for key in &keys {
        let pattern = pattern(key);
        match live.refused(key).await {
            Ok(refused) if refused.is_empty() => {}
            Ok(refused) => {
                all_allowed = false;
                let refused = refused.join(", ");
                report.fail(&format!("acl: may not send {refused} for {pattern}"))?;
            }
            Err(error) => {
                all_allowed = false;
                report.fail(&format!("acl: {pattern} could not be tried: {error}"))?;
            }
        }
    }
    if all_allowed {
        report.ok("acl: every stream of the routes may be read")?;
    }
    report.note(&format!(
        "a user of its own needs no more than: {}",
        acl(&config.redis, &keys)
    ))
}

fn acl(redis: &Redis, keys: &BTreeSet<String>) -> String {
    let user = match redis.username.as_str() {
        "" => "relay",
        name => name,
    };
    let keys: Vec<_> = keys
        .iter()
        .map(|key| format!("~{}", pattern(key)))
        .collect();
    let commands = commands(redis).unwrap_or_default();
    let commands: Vec<_> = commands.iter().map(|name| format!("+{name}")).collect();
    format!(
        "ACL SETUSER {user} on >PASSWORD resetkeys {} -@all {}",
        keys.join(" "),
        commands.join(" ")
    )
}

fn pattern(key: &str) -> String {
    key.replace(ANY, "*")
}

async fn eviction(live: &mut Live, report: &mut Report) -> io::Result<()> {
    let eviction = match live.eviction().await {
        Ok(eviction) => eviction,
        Err(error) if is_refusal(&error) => {
            return report.warn(
                "eviction: this user may not ask; maxmemory-policy should be noeviction, or \
                 streams may vanish",
            );
        }
        Err(error) => return report.warn(&format!("eviction: unknown: {error}")),
    };
    let policy = &eviction.policy;
    if policy == "noeviction" {
        return report.ok("eviction: maxmemory-policy is noeviction");
    }
    let which = match policy.starts_with("volatile") {
        true => "streams with an expiry",
        false => "any stream",
    };
    let when = match eviction.limited {
        true => "when memory is full",
        false => "once there is a maxmemory (there is none now)",
    };
    report.warn(&format!(
        "eviction: maxmemory-policy is {policy}: {which} may vanish {when}"
    ))
}

async fn retention(live: &mut Live, key: &str, report: &mut Report) -> io::Result<()> {
    match live.retention(key).await {
        Ok(Some(kept)) => report.ok(&format!("stream {key}: {}", describe(&kept, now_ms()))),
        Ok(None) => report.warn(&format!("stream {key}: does not exist (now)")),
        Err(error) => report.fail(&format!("stream {key}: {error}")),
    }
}

fn describe(kept: &Retention, now_ms: u64) -> String {
    let Some(first) = kept.first else {
        return format!("empty; the last entry was {}", time(kept.last.ms));
    };
    let age = Duration::from_secs(now_ms.saturating_sub(first.ms) / 1000);
    format!(
        "{} from {} to {}; a client may be away for {}",
        count(kept.length, "entry", "entries"),
        time(first.ms),
        time(kept.last.ms),
        humantime::format_duration(age)
    )
}

fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let ms = since_1970.unwrap_or_default().as_millis();
    u64::try_from(ms).unwrap_or(u64::MAX)
}

/// Ids need not be times: what is beyond the calendar is shown as it is.
fn time(ms: u64) -> String {
    if ms >= END_OF_TIME_MS {
        return format!("{ms} ms");
    }
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

async fn callbacks(config: &Config, report: &mut Report) -> io::Result<()> {
    let snapshots = config
        .routes
        .iter()
        .filter_map(|route| route.snapshot.as_ref());
    let hosts: BTreeSet<_> = snapshots
        .filter_map(|snapshot| example(|values| snapshot.url.render_url(values)))
        .filter_map(|url| host(&url))
        .collect();
    for host in hosts {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(&host)).await {
            Ok(Ok(_)) => report.ok(&format!("callback: {host} accepts connections"))?,
            Ok(Err(error)) => report.fail(&format!("callback: {host}: {error}"))?,
            Err(_) => report.fail(&format!(
                "callback: {host}: no answer in {CONNECT_TIMEOUT:?}"
            ))?,
        }
    }
    Ok(())
}

/// `host:port` of an address.
fn host(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let default_port = match uri.scheme_str() {
        Some("https") => 443,
        _ => 80,
    };
    Some(format!(
        "{}:{}",
        uri.host()?,
        uri.port_u16().unwrap_or(default_port)
    ))
}

/// A template with every variable replaced. It says itself which variables it has.
fn example(render: impl Fn(&Values) -> Result<String, Unusable>) -> Option<String> {
    let mut values = Values::default();
    for _ in 0..MANY {
        match render(&values) {
            Ok(text) => return Some(text),
            Err(Unusable::Param(name)) => {
                values.params.insert(name, ANY.to_owned());
            }
            Err(Unusable::Claim(name)) => {
                values.claims.insert(name, ANY.into());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use relay::stream::EntryId;

    use super::*;

    #[test]
    fn retention_is_told_in_times() {
        let kept = Retention {
            length: 3,
            first: Some(EntryId::new(1_700_000_000_000, 0)),
            last: EntryId::new(1_700_000_060_000, 4),
        };
        let said = describe(&kept, 1_700_000_090_000);
        let expected = "3 entries from 2023-11-14T22:13:20Z to 2023-11-14T22:14:20Z; \
                        a client may be away for 1m 30s";
        assert_eq!(said, expected);
    }

    #[test]
    fn ids_beyond_the_calendar_are_shown() {
        assert_eq!(time(u64::MAX), "18446744073709551615 ms");
    }

    #[test]
    fn hosts_have_ports() {
        let table = [
            ("http://127.0.0.1:8000/internal/x", "127.0.0.1:8000"),
            ("http://api/x", "api:80"),
            ("https://api/x", "api:443"),
            ("http://[::1]:8000/x", "[::1]:8000"),
        ];
        for (url, expected) in table {
            assert_eq!(host(url).as_deref(), Some(expected));
        }
    }
}
