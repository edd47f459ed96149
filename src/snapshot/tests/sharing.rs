//! `share = "url"`, from the outside.

use std::pin::pin;

use futures_util::future::join_all;
use hyper::header::HeaderValue;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::api::{Act, ok, reply};
use super::*;

/// An API that answers each request with its number when the gate lets it.
async fn gated() -> (Api, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let of_api = gate.clone();
    let api =
        Api::start(move |number, _| Act::ReplyWhen(of_api.clone(), ok(&number.to_string()))).await;
    (api, gate)
}

fn shared(api: &Api, ttl: Duration) -> Fixture {
    Fixture::new(api, |snapshot| snapshot.share = Share::Url { ttl })
}

#[tokio::test]
async fn a_hundred_clients_share_one_callback_and_its_positions() {
    let (api, gate) = gated().await;
    let fixture = shared(&api, Duration::ZERO);
    let mut joined: Vec<_> = (0..100).map(|_| Box::pin(fixture.fetch())).collect();
    for fetch in &mut joined {
        begin!(*fetch);
    }
    api.has_been_asked(1).await;
    let mut late = Box::pin(fixture.fetch());
    begin!(late);
    joined.push(late);
    gate.add_permits(100);
    for snapshot in join_all(joined).await {
        let snapshot = snapshot.unwrap();
        assert_eq!(snapshot.body, "0");
        assert_eq!(snapshot.positions, position(1));
    }
    assert_eq!((api.requests(), fixture.noted()), (1, 1));
    assert_eq!(fixture.outcome("ok"), Some(1.0), "shared ones count once");

    let next = fixture.fetch().await.unwrap();
    assert_eq!(next.positions, position(2), "without a ttl nothing is kept");
}

#[tokio::test]
async fn a_leader_that_leaves_takes_nothing_away() {
    let (api, gate) = gated().await;
    let fixture = shared(&api, Duration::ZERO);
    let mut leader = Box::pin(fixture.fetch());
    let mut follower = pin!(fixture.fetch());
    begin!(leader);
    begin!(follower);
    api.has_been_asked(1).await;
    drop(leader);
    gate.add_permits(1);
    assert_eq!(follower.await.unwrap().positions, position(1));
    assert_eq!(api.requests(), 1);
}

#[tokio::test]
async fn what_nobody_waits_for_is_given_up() {
    let (api, gate) = gated().await;
    let fixture = shared(&api, Duration::ZERO);
    let mut joined: Vec<_> = (0..3).map(|_| Box::pin(fixture.fetch())).collect();
    for fetch in &mut joined {
        begin!(*fetch);
    }
    api.has_been_asked(1).await;
    drop(joined);
    api.has_been_left(1).await;
    fixture.tasks.wait().await;
    assert_eq!(fixture.in_flight(), Some(0.0));
    assert_eq!(fixture.outcome("abandoned"), Some(1.0));
    gate.add_permits(1);
    assert_eq!(fixture.fetch().await.unwrap().positions, position(2));
}

#[tokio::test]
async fn a_body_serves_later_ones_with_its_own_positions() {
    let (api, gate) = gated().await;
    let fixture = shared(&api, Duration::from_secs(3600));
    gate.add_permits(2);
    for _ in 0..3 {
        let snapshot = fixture.fetch().await.unwrap();
        assert_eq!(snapshot.body, "0");
        assert_eq!(snapshot.positions, position(1));
    }
    assert_eq!(api.requests(), 1);

    let fresh = fixture
        .snapshots
        .fetch(&fixture.callback(), fixture.note(), Some(Instant::now()))
        .await
        .unwrap();
    assert_eq!((fresh.body, fresh.positions), ("1".into(), position(2)));
    assert_eq!(fixture.fetch().await.unwrap().positions, position(2));
    assert_eq!(api.requests(), 2);
}

#[tokio::test]
async fn a_failure_is_told_to_those_who_wait_and_not_kept() {
    for failing in [500, 404] {
        let api = Api::start(move |number, _| match number {
            0 => Act::Reply(reply(failing, &[], "")),
            _ => Act::Reply(ok("1")),
        })
        .await;
        let fixture = shared(&api, Duration::from_secs(3600));
        let (first, second) = tokio::join!(fixture.body(), fixture.body());
        let reason = first.unwrap_err().reason();
        assert_eq!(reason, second.unwrap_err().reason());
        assert_eq!(api.requests(), 1);
        assert_eq!(fixture.body().await.unwrap(), "1");
    }
}

#[tokio::test]
async fn only_the_same_question_is_shared() {
    let (api, gate) = gated().await;
    let names = ["x-tenant", "traceparent"].map(HeaderName::from_static);
    let fixture = Fixture::new(&api, |snapshot| {
        let ttl = Duration::from_secs(3600);
        snapshot.share = Share::Url { ttl };
        snapshot.forward = names.to_vec();
        snapshot.url = template(&format!("http://{}/{{job_id}}", api.address));
    });
    gate.add_permits(100);
    let questions = [
        (("1", "a", "t1", "k"), "0"),
        (("1", "a", "t2", "k"), "0"), // a trace is not a question
        (("2", "a", "t1", "k"), "1"),
        (("1", "b", "t1", "k"), "2"),
        (("1", "a", "t1", "l"), "3"),
        (("1", "b", "t3", "k"), "2"),
    ];
    for ((job, tenant, trace, key), body) in questions {
        let mut values = Values::default();
        values.params.insert("job_id".to_owned(), job.to_owned());
        let mut client = HeaderMap::new();
        for (name, value) in names.iter().zip([tenant, trace]) {
            client.insert(name, HeaderValue::from_str(value).unwrap());
        }
        let callback = fixture.snapshots.prepare(&values, &client, &keys(&[key]));
        let snapshot = fixture
            .snapshots
            .fetch(&callback.unwrap(), fixture.note(), None)
            .await;
        assert_eq!(snapshot.unwrap().body, body);
    }
}

#[tokio::test]
async fn a_queued_flight_notes_when_it_is_sent() {
    let (api, gate) = gated().await;
    let fixture = Fixture::new(&api, |snapshot| {
        snapshot.share = Share::Url {
            ttl: Duration::ZERO,
        };
        snapshot.max_in_flight = 1;
        snapshot.url = template(&format!("http://{}/{{job_id}}", api.address));
    });
    let ask = |job: &str| {
        let mut values = Values::default();
        values.params.insert("job_id".to_owned(), job.to_owned());
        let callback = fixture
            .snapshots
            .prepare(&values, &HeaderMap::new(), &keys(&["a"]))
            .unwrap();
        let (note, now) = (fixture.note(), Instant::now());
        let snapshots = fixture.snapshots.clone();
        async move { snapshots.fetch(&callback, note, Some(now)).await }
    };
    let mut first = pin!(ask("1"));
    begin!(first);
    api.has_been_asked(1).await;
    let mut second = pin!(ask("2"));
    begin!(second);
    // It asks for what is sent from now on: what is queued will be.
    let mut third = pin!(ask("2"));
    begin!(third);
    assert_eq!(fixture.noted(), 1);
    gate.add_permits(3);
    assert_eq!(first.await.unwrap().positions, position(1));
    assert_eq!(second.await.unwrap().positions, position(2));
    assert_eq!(third.await.unwrap().positions, position(2));
    assert_eq!(api.requests(), 2);
}
