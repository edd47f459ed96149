//! `max_in_flight`, `queue`, and clients that leave.

use std::pin::pin;

use tokio::sync::Semaphore;

use super::api::{Act, ok};
use super::*;
use crate::protocol::outcome::Outcome;

/// An API that answers each request when the gate lets it.
async fn gated() -> (Api, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let of_api = gate.clone();
    let api = Api::start(move |_, _| Act::ReplyWhen(of_api.clone(), ok("1"))).await;
    (api, gate)
}

#[tokio::test]
async fn the_position_is_noted_when_the_callback_is_sent() {
    let (api, gate) = gated().await;
    let fixture = Fixture::new(&api, |snapshot| snapshot.max_in_flight = 1);
    let mut first = pin!(fixture.fetch());
    let mut second = pin!(fixture.fetch());
    begin!(first);
    begin!(second);
    assert_eq!(fixture.noted(), 1, "the second is queued");
    assert_eq!(fixture.in_flight(), Some(1.0));
    gate.add_permits(2);
    assert_eq!(first.await.unwrap().positions, position(1));
    assert_eq!(fixture.noted(), 1);
    assert_eq!(second.await.unwrap().positions, position(2));
    assert_eq!(fixture.in_flight(), Some(0.0));
}

#[tokio::test]
async fn turns_are_taken_in_order() {
    let (api, gate) = gated().await;
    let fixture = Fixture::new(&api, |snapshot| snapshot.max_in_flight = 1);
    let mut waiting: Vec<_> = (0..5).map(|_| Box::pin(fixture.fetch())).collect();
    for fetch in &mut waiting {
        begin!(*fetch);
    }
    gate.add_permits(5);
    let fetched = futures_util::future::join_all(waiting).await;
    for (ms, snapshot) in (1..).zip(fetched) {
        assert_eq!(snapshot.unwrap().positions, position(ms));
    }
}

#[tokio::test]
async fn a_wait_that_is_too_long_is_refused_with_a_time_to_come_back() {
    let (api, _gate) = gated().await;
    let fixture = Fixture::new(&api, |snapshot| {
        snapshot.max_in_flight = 1;
        snapshot.queue = Duration::from_millis(50);
    });
    let mut first = pin!(fixture.fetch());
    begin!(first);
    let error = fixture.fetch().await.unwrap_err();
    assert_eq!(error, SnapshotError::QueueFull);
    let refusal = error.refusal();
    assert_eq!(refusal.outcome, Outcome::Overloaded);
    assert_eq!(refusal.reason, "snapshot_queue_full");
    let seconds = Duration::from_secs(2)..Duration::from_secs(6);
    assert!(seconds.contains(&refusal.retry_after.unwrap()));
    assert_eq!(fixture.outcome("snapshot_queue_full"), Some(1.0));
    assert_eq!(fixture.noted(), 1);
}

#[tokio::test]
async fn the_queue_has_an_end() {
    let (api, _gate) = gated().await;
    let fixture = Fixture::new(&api, |snapshot| {
        snapshot.max_in_flight = 2;
        snapshot.queue = Duration::from_secs(3600);
    });
    let mut waiting: Vec<_> = (0..2 + 32).map(|_| Box::pin(fixture.fetch())).collect();
    for fetch in &mut waiting {
        begin!(*fetch);
    }
    let refused = fixture.fetch().await;
    assert_eq!(refused.unwrap_err(), SnapshotError::QueueFull);
    waiting.pop();
    let mut next = pin!(fixture.fetch());
    begin!(next);
}

#[tokio::test]
async fn who_leaves_gives_the_place_back() {
    let (api, gate) = gated().await;
    let fixture = Fixture::new(&api, |snapshot| snapshot.max_in_flight = 1);
    {
        let mut first = pin!(fixture.fetch());
        let mut queued = pin!(fixture.fetch());
        begin!(first);
        begin!(queued);
        // Polled until its request is with the API.
        tokio::select! {
            _ = &mut first => panic!("the gate is shut"),
            () = api.has_been_asked(1) => (),
        }
    }
    api.has_been_left(1).await;
    gate.add_permits(1);
    assert_eq!(fixture.fetch().await.unwrap().positions, position(2));
    assert_eq!(fixture.in_flight(), Some(0.0));
    assert_eq!(fixture.outcome("abandoned"), Some(1.0));
    assert_eq!(fixture.outcome("ok"), Some(1.0));
}
