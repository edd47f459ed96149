//! What counts as an answer, what is tried again, and what a failure is called.

use hyper::StatusCode;
use tokio::time::Instant;

use super::api::{Act, chunked, ok, reply};
use super::*;
use crate::protocol::outcome::Outcome;

fn status(status: u16) -> SnapshotError {
    SnapshotError::Status(StatusCode::from_u16(status).unwrap())
}

/// Fails with this text where something else than the API's words is in it.
fn is_unreachable(result: &Result<String, SnapshotError>) -> bool {
    matches!(result, Err(SnapshotError::Unreachable(_)))
}

#[tokio::test]
async fn the_body_is_what_the_api_sent() {
    let api = Api::replying(&ok(" {\"b\": 1.0,\n\"a\": \"\\u00e9\"}\n")).await;
    let fixture = Fixture::new(&api, |_| ());
    let snapshot = fixture.fetch().await.unwrap();
    assert_eq!(snapshot.body, " {\"b\": 1.0,\n\"a\": \"\\u00e9\"}\n");
    assert_eq!(snapshot.positions, position(1));
    assert_eq!(snapshot.declared, [None]);
}

#[tokio::test]
async fn a_route_without_a_snapshot_has_no_callbacks() {
    let api = Api::replying(&ok("1")).await;
    let mut route = route(snapshot(&format!("http://{}", api.address)), ENVELOPE);
    route.snapshot = None;
    assert!(Snapshots::new(&route, &Tasks::default(), &Metrics::new()).is_none());
}

#[tokio::test]
async fn gateway_failures_are_tried_again() {
    for failing in [502, 503, 504] {
        let api = Api::start(move |number, _| match number {
            0 | 1 => Act::Reply(reply(failing, &[], "down")),
            _ => Act::Reply(ok("1")),
        })
        .await;
        let fixture = Fixture::new(&api, |_| ());
        assert_eq!(fixture.body().await.unwrap(), "1", "after {failing}");
        assert_eq!(api.requests(), 3);
        assert_eq!(fixture.noted(), 1, "the position is that of the first try");
    }
}

#[tokio::test]
async fn retries_end() {
    let api = Api::replying(&reply(503, &[], "")).await;
    let fixture = Fixture::new(&api, |snapshot| snapshot.retries = 1);
    assert_eq!(fixture.body().await, Err(status(503)));
    assert_eq!(api.requests(), 2);
    assert_eq!(fixture.outcome("snapshot_status"), Some(1.0));
}

#[tokio::test]
async fn other_answers_are_final() {
    let cases = [
        (400, status(400), Outcome::CallbackFailed, "snapshot_status"),
        (429, status(429), Outcome::CallbackFailed, "snapshot_status"),
        (500, status(500), Outcome::CallbackFailed, "snapshot_status"),
        (
            401,
            SnapshotError::Unauthorized,
            Outcome::Unauthenticated,
            "snapshot_unauthorized",
        ),
        (
            403,
            SnapshotError::Forbidden,
            Outcome::Forbidden,
            "snapshot_forbidden",
        ),
        (
            404,
            SnapshotError::NotFound,
            Outcome::NotFound,
            "snapshot_not_found",
        ),
    ];
    for (answer, error, outcome, reason) in cases {
        let api = Api::replying(&reply(answer, &[], "{}")).await;
        let fixture = Fixture::new(&api, |_| ());
        assert_eq!(fixture.body().await, Err(error.clone()));
        assert_eq!(api.requests(), 1, "{answer} is not tried again");
        let refusal = error.refusal();
        assert_eq!((refusal.outcome, refusal.reason), (outcome, reason));
        assert_eq!(error.is_refusal_by_api(), [401, 403, 404].contains(&answer));
        let counted = match error.is_refusal_by_api() {
            true => "refused",
            false => reason,
        };
        assert_eq!(fixture.outcome(counted), Some(1.0));
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    for code in [301, 302, 303, 307, 308] {
        let api = Api::replying(&reply(code, &["location: /elsewhere"], "")).await;
        let fixture = Fixture::new(&api, |_| ());
        let error = fixture.body().await.unwrap_err();
        assert_eq!(error.reason(), "snapshot_redirect");
        assert_eq!(api.requests(), 1);
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_again() {
    let api = Api::replying(&ok("1")).await;
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    // Bound and not listening: connections are refused, and nobody else gets the port.
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = nobody.local_addr().unwrap();
    let fixture = Fixture::new(&api, |snapshot| {
        snapshot.url = template(&format!("http://{address}/state/secret"));
    });
    let start = Instant::now();
    let error = fixture.body().await.unwrap_err();
    assert_eq!(error.reason(), "snapshot_unreachable");
    let backoffs = Duration::from_millis(50 + 100);
    assert!(start.elapsed() >= backoffs, "it was tried three times");
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn a_connection_lost_before_the_response_is_tried_again_where_that_is_safe() {
    for (method, requests) in [(Method::GET, 2), (Method::POST, 1)] {
        let api = Api::start(|number, _| match number {
            0 => Act::Cut(String::new()),
            _ => Act::Reply(ok("1")),
        })
        .await;
        let fixture = Fixture::new(&api, |snapshot| snapshot.method = method.clone());
        let body = fixture.body().await;
        assert_eq!(is_unreachable(&body), method == Method::POST, "{body:?}");
        assert_eq!(api.requests(), requests);
    }
}

#[tokio::test]
async fn a_body_that_is_cut_is_a_failure() {
    let announced = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[1";
    let in_chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n[1\r\n";
    for part in [announced, in_chunks] {
        let api = Api::start(|_, _| Act::Cut(part.to_owned())).await;
        let fixture = Fixture::new(&api, |_| ());
        let body = fixture.body().await;
        assert!(is_unreachable(&body), "{body:?}");
        assert_eq!(api.requests(), 1);
    }
}

#[tokio::test]
async fn what_is_no_http_is_a_failure() {
    let api = Api::replying("SSH-2.0-OpenSSH_9.9\r\n\r\n").await;
    let fixture = Fixture::new(&api, |_| ());
    let body = fixture.body().await;
    assert!(is_unreachable(&body), "{body:?}");
    assert_eq!(api.requests(), 1);
}

#[tokio::test]
async fn a_try_has_its_time_to_the_last_byte() {
    let in_the_body = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[1";
    for part in ["", in_the_body] {
        let api = Api::start(|_, _| Act::Stall(part.to_owned())).await;
        let fixture = Fixture::new(&api, |s| s.timeout = Duration::from_millis(100));
        assert_eq!(fixture.body().await, Err(SnapshotError::Timeout));
        assert_eq!(api.requests(), 1, "a timeout is not tried again");
        api.has_been_left(1).await;
    }
}

#[tokio::test]
async fn each_try_has_its_own_time() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let late = gate.clone();
    let api = Api::start(move |number, _| match number {
        0 => Act::ReplyWhen(late.clone(), reply(503, &[], "")),
        _ => Act::Stall(String::new()),
    })
    .await;
    let fixture = Fixture::new(&api, |s| s.timeout = Duration::from_millis(300));
    let start = Instant::now();
    let release = async {
        api.has_been_asked(1).await;
        gate.add_permits(1);
    };
    let (body, ()) = tokio::join!(fixture.body(), release);
    assert_eq!(body, Err(SnapshotError::Timeout));
    assert_eq!(api.requests(), 2);
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_body_may_have_max_bytes_and_not_one_more() {
    let full = format!("\"{}\"", "x".repeat(62));
    let over = format!("\"{}\"", "x".repeat(63));
    let cases = [
        (ok(&full), Ok(full.clone())),
        (chunked(&[&full[..40], &full[40..]]), Ok(full.clone())),
        (ok(&over), Err(SnapshotError::TooLarge)),
        (
            chunked(&[&over[..40], &over[40..]]),
            Err(SnapshotError::TooLarge),
        ),
    ];
    for (reply, expected) in cases {
        let api = Api::replying(&reply).await;
        let fixture = Fixture::new(&api, |snapshot| snapshot.max_bytes = 64);
        assert_eq!(fixture.body().await, expected);
        assert_eq!(api.requests(), 1);
    }
}

#[tokio::test]
async fn reading_stops_at_max_bytes() {
    let announced = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
    let api = Api::start(|number, _| match number {
        0 => Act::Endless,
        _ => Act::Stall(announced.to_owned()),
    })
    .await;
    let fixture = Fixture::new(&api, |_| ());
    assert_eq!(fixture.body().await, Err(SnapshotError::TooLarge));
    api.has_been_left(1).await;
    assert_eq!(fixture.body().await, Err(SnapshotError::TooLarge));
    api.has_been_left(2).await;
}

#[tokio::test]
async fn the_format_says_what_a_body_must_be() {
    let verbatim = || FormatKind::Verbatim {
        field: "data".to_owned(),
    };
    let merge = || FormatKind::Merge {
        field: "data".to_owned(),
        id_key: "id".to_owned(),
    };
    let empty = "HTTP/1.1 204 No Content\r\n\r\n".to_owned();
    let cases = [
        (ENVELOPE, ok("{\"a\":"), Err(SnapshotError::InvalidJson)),
        (ENVELOPE, ok("1 2"), Err(SnapshotError::InvalidJson)),
        (ENVELOPE, ok(""), Err(SnapshotError::InvalidJson)),
        (ENVELOPE, empty.clone(), Ok("null")),
        (verbatim(), ok("<p>hello"), Ok("<p>hello")),
        (verbatim(), ok(""), Ok("")),
        (verbatim(), empty.clone(), Ok("")),
        (merge(), ok("hello"), Ok("hello")),
        (merge(), empty, Ok("")),
    ];
    for (kind, reply, expected) in cases {
        let api = Api::replying(&reply).await;
        let fixture = Fixture::with_format(&api, kind, |_| ());
        let body = fixture.body().await;
        assert_eq!(body.as_deref().map_err(Clone::clone), expected, "{reply}");
    }
}

#[tokio::test]
async fn connections_are_kept() {
    let api = Api::replying(&ok("1")).await;
    let fixture = Fixture::new(&api, |_| ());
    for _ in 0..5 {
        fixture.body().await.unwrap();
    }
    assert_eq!((api.requests(), api.connections()), (5, 1));
    assert_eq!(fixture.outcome("ok"), Some(5.0));
}

#[tokio::test]
async fn an_api_that_speaks_no_tls_is_unreachable_over_https() {
    let api = Api::replying(&ok("1")).await;
    let fixture = Fixture::new(&api, |snapshot| {
        snapshot.url = template(&format!("https://{}/state", api.address));
        snapshot.retries = 0;
        snapshot.timeout = Duration::from_secs(1);
    });
    let error = fixture.body().await.unwrap_err();
    assert!(matches!(
        error.reason(),
        "snapshot_unreachable" | "snapshot_timeout"
    ));
}

#[tokio::test]
async fn every_outcome_is_counted_from_the_start() {
    let api = Api::replying(&ok("1")).await;
    let fixture = Fixture::new(&api, |_| ());
    for outcome in ["ok", "refused", "abandoned"]
        .into_iter()
        .chain(SnapshotError::FAILURES)
    {
        assert_eq!(fixture.outcome(outcome), Some(0.0), "{outcome}");
    }
    let ignored = "relay_snapshot_cursors_ignored_total{reason=\"unknown_stream\",route=\"job\"}";
    assert_eq!(fixture.metric(ignored), Some(0.0));
}
