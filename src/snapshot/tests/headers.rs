//! What the API is asked, and what its headers say.

use hyper::header::HeaderValue;

use super::api::{Act, Head, ok, reply};
use super::*;

fn names(names: &[&'static str]) -> Vec<HeaderName> {
    names.iter().map(|n| HeaderName::from_static(n)).collect()
}

/// All values of a header, in their order.
fn values<'a>(head: &'a Head, name: &str) -> Vec<&'a str> {
    head.iter()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .filter(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect()
}

fn client(headers: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    map
}

async fn ask(fixture: &Fixture, values: &Values, client: &HeaderMap) {
    let callback = fixture.snapshots.prepare(values, client, &keys(&["a"]));
    let fetched = fixture
        .snapshots
        .fetch(&callback.unwrap(), fixture.note(), None)
        .await;
    fetched.unwrap();
}

#[tokio::test]
async fn a_request_says_who_asks_for_what() {
    let api = Api::replying(&ok("1")).await;
    let fixture = Fixture::new(&api, |_| ());
    fixture.fetch().await.unwrap();
    let head = api.head(0);
    assert_eq!(head[0], "GET /state HTTP/1.1");
    assert_eq!(values(&head, "host"), [api.address.to_string()]);
    assert_eq!(values(&head, "accept"), ["application/json"]);
    let agent = format!("relay/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(values(&head, "user-agent"), [agent]);
    assert!(values(&head, "content-length").is_empty());
}

#[tokio::test]
async fn a_post_is_empty() {
    let api = Api::replying(&ok("1")).await;
    let fixture = Fixture::new(&api, |snapshot| snapshot.method = Method::POST);
    fixture.fetch().await.unwrap();
    assert_eq!(api.head(0)[0], "POST /state HTTP/1.1");
    assert_eq!(values(&api.head(0), "content-length"), ["0"]);
}

#[tokio::test]
async fn what_is_named_is_forwarded_as_it_is() {
    let api = Api::replying(&ok("1")).await;
    let fixture = Fixture::new(&api, |snapshot| {
        snapshot.forward = names(&["authorization", "cookie", "x-request-id", "traceparent"]);
    });
    let client = client(&[
        ("cookie", "a=1; b=2"),
        ("authorization", "Bearer t.o.k"),
        ("cookie", "c=3"),
        ("x-other", "no"),
        // A client must not choose which of its headers the API sees.
        ("connection", "upgrade, authorization"),
    ]);
    ask(&fixture, &Values::default(), &client).await;
    let head = api.head(0);
    assert_eq!(values(&head, "authorization"), ["Bearer t.o.k"]);
    assert_eq!(values(&head, "cookie"), ["a=1; b=2", "c=3"]);
    assert!(values(&head, "x-request-id").is_empty());
    assert!(values(&head, "x-other").is_empty());
}

#[tokio::test]
async fn headers_of_the_connection_are_not_forwarded_even_if_named() {
    let api = Api::replying(&ok("1")).await;
    let of_the_connection = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "expect",
        "accept-encoding",
        "sec-websocket-key",
        "sec-websocket-protocol",
    ];
    let fixture = Fixture::new(&api, |snapshot| {
        snapshot.forward = names(&of_the_connection);
        snapshot.forward.extend(names(&["host", "accept"]));
        snapshot.headers = vec![(names(&["content-length"])[0].clone(), template("7"))];
    });
    let mut sent: Vec<_> = of_the_connection.map(|name| (name, "7")).to_vec();
    sent.extend([("host", "evil"), ("accept", "text/plain")]);
    ask(&fixture, &Values::default(), &client(&sent)).await;
    let head = api.head(0);
    for name in of_the_connection {
        assert!(values(&head, name).is_empty(), "{name}");
    }
    assert_eq!(values(&head, "host"), [api.address.to_string()]);
    assert_eq!(values(&head, "accept"), ["text/plain"]);
}

#[tokio::test]
async fn the_config_s_headers_win_over_the_client_s() {
    let api = Api::replying(&ok("1")).await;
    let fixture = Fixture::new(&api, |snapshot| {
        snapshot.forward = names(&["x-relay-subject"]);
        let [subject, host] = ["x-relay-subject", "host"].map(HeaderName::from_static);
        snapshot.headers = vec![
            (subject, template("{claims.sub}")),
            (host, template("api.internal")),
        ];
    });
    let mut values_of_ann = Values::default();
    let ann = serde_json::json!({ "sub": "Änn" });
    values_of_ann.claims = ann.as_object().unwrap().clone();
    let forged = client(&[("x-relay-subject", "root"), ("x-relay-subject", "root")]);
    ask(&fixture, &values_of_ann, &forged).await;
    assert_eq!(values(&api.head(0), "x-relay-subject"), ["Änn"]);
    assert_eq!(values(&api.head(0), "host"), ["api.internal"]);

    let without_claims = fixture
        .snapshots
        .prepare(&Values::default(), &forged, &keys(&["a"]));
    assert!(without_claims.is_err());
}

#[tokio::test]
async fn hostile_values_stay_in_their_segment() {
    let api = Api::replying(&ok("1")).await;
    let fixture = Fixture::new(&api, |snapshot| {
        let url = format!("http://{}/jobs/{{job_id}}/state?x={{query.x}}", api.address);
        snapshot.url = template(&url);
    });
    let hostile = [
        ("op1/../op2", "op1%2F..%2Fop2"),
        ("%2e%2e", "%252e%252e"),
        ("op1\r\nX: y", "op1%0D%0AX%3A%20y"),
        ("*", "%2A"),
        ("{x}", "%7Bx%7D"),
        ("\0", "%00"),
        ("a?b=c&d#e", "a%3Fb%3Dc%26d%23e"),
        ("@host:1", "%40host%3A1"),
        ("ключ", "%D0%BA%D0%BB%D1%8E%D1%87"),
    ];
    for (number, (value, encoded)) in hostile.into_iter().enumerate() {
        let mut values = Values::default();
        for name in ["job_id", "query.x"] {
            values.params.insert(name.to_owned(), value.to_owned());
        }
        ask(&fixture, &values, &HeaderMap::new()).await;
        let expected = format!("GET /jobs/{encoded}/state?x={encoded} HTTP/1.1");
        assert_eq!(api.head(number)[0], expected);
    }
    for dots in [".", ".."] {
        let mut values = Values::default();
        for name in ["job_id", "query.x"] {
            values.params.insert(name.to_owned(), dots.to_owned());
        }
        let prepared = fixture
            .snapshots
            .prepare(&values, &HeaderMap::new(), &keys(&["a"]));
        assert!(prepared.is_err(), "{dots}");
    }
}

#[tokio::test]
async fn nothing_of_a_callback_is_shown() {
    let api = Api::replying(&ok("1")).await;
    let fixture = Fixture::new(&api, |s| s.forward = names(&["authorization"]));
    let client = client(&[("authorization", "Bearer t.o.k")]);
    let callback = fixture
        .snapshots
        .prepare(&Values::default(), &client, &keys(&["a"]));
    let shown = format!("{:?}", callback.unwrap());
    assert!(
        !shown.contains("t.o.k") && !shown.contains("state"),
        "{shown}"
    );
}

#[tokio::test]
async fn the_api_declares_what_its_state_includes() {
    let api = Api::start(|_, _| {
        let headers = ["relay-cursor: b=2-0", "relay-cursor: zzz=9-0"];
        Act::Reply(reply(200, &headers, "1"))
    })
    .await;
    let fixture = Fixture::new(&api, |_| ());
    let callback =
        fixture
            .snapshots
            .prepare(&Values::default(), &HeaderMap::new(), &keys(&["a", "b"]));
    let snapshot = fixture
        .snapshots
        .fetch(&callback.unwrap(), fixture.note(), None)
        .await;
    let expected = [None, Some("2-0".to_owned())];
    assert_eq!(snapshot.unwrap().declared, expected);
    let ignored = "relay_snapshot_cursors_ignored_total{reason=\"unknown_stream\",route=\"job\"}";
    assert_eq!(fixture.metric(ignored), Some(1.0));
}
