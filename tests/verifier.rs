//! The verifier of the torture test can fail: views with something wrong in them are refused, and
//! those that only look so are not.
#![cfg(test)]

#[expect(dead_code, reason = "the plan uses the rest")]
#[path = "torture/chance.rs"]
mod chance;
#[path = "torture/frame.rs"]
mod frame;
#[expect(dead_code, reason = "publishers and clients use the rest")]
#[path = "torture/log.rs"]
mod log;
#[path = "torture/payload.rs"]
mod payload;
#[expect(dead_code, reason = "relays and clients use the rest")]
#[path = "torture/routes.rs"]
mod routes;
#[expect(dead_code, reason = "clients use the rest")]
#[path = "torture/view.rs"]
mod view;

use std::sync::Arc;

use relay::stream::EntryId;

use log::Log;
use routes::ROUTES;
use view::{Taken, Trouble, View};

const SEED: u64 = 7;

fn id(n: u64) -> EntryId {
    EntryId::new(1_000 + n, 0)
}

/// A log of three streams with ten entries each.
fn log() -> Arc<Log> {
    let log = Log::new(SEED, 3);
    for stream in 0..3 {
        log.sending(stream, 10);
        let ids: Vec<EntryId> = (1..=10).map(id).collect();
        log.written(stream, &ids).unwrap();
    }
    Arc::new(log)
}

/// A client of this route that has come without a cursor, and stands after entry 3.
fn client(log: &Arc<Log>, route: &str) -> View {
    let route = ROUTES.iter().find(|known| known.name == route).unwrap();
    let mut view = View::new(log.clone(), route, &[0, 1][..route.streams]);
    view.connected();
    if route.has_snapshot {
        let frame = snapshot("connect", &cursor(&vec![3; route.streams]), 3);
        view.take(&frame).unwrap();
    } else {
        view.take(&live(&cursor(&vec![3; route.streams]))).unwrap();
    }
    view
}

fn cursor(ns: &[u64]) -> String {
    let text = |n: &u64| if *n == 0 { EntryId::ZERO } else { id(*n) }.to_string();
    let ids: Vec<String> = ns.iter().map(text).collect();
    let mark = if ns.len() > 1 { "abcdef~" } else { "" };
    format!("{mark}{}", ids.join(","))
}

fn event_of(stream: usize, n: u64, cursor: &str, payload: &str) -> String {
    let (id, key) = (id(n), routes::key(stream));
    format!(
        r#"{{"type":"event","cursor":"{cursor}","stream":"{key}","id":"{id}","data":{payload}}}"#
    )
}

/// The entry `n` of stream 0, to a client of that stream alone.
fn event(n: u64) -> String {
    event_of(0, n, &cursor(&[n]), &payload::text(SEED, 0, n))
}

fn live(cursor: &str) -> String {
    format!(r#"{{"type":"live","cursor":"{cursor}"}}"#)
}

fn resync(reason: &str, lost: u64) -> String {
    format!(
        r#"{{"type":"resync","reason":"{reason}","lost":"{}"}}"#,
        cursor(&[lost])
    )
}

fn snapshot(reason: &str, cursor: &str, through: u64) -> String {
    format!(
        r#"{{"type":"snapshot","reason":"{reason}","cursor":"{cursor}","data":{{"through":[{through},{through}],"declared":[null,null]}}}}"#
    )
}

fn refused(view: &mut View, frame: &str) -> String {
    match view.take(frame) {
        Err(Trouble::Violation(what)) => what,
        other => panic!("{frame} was not refused: {other:?}"),
    }
}

#[track_caller]
fn accepted(view: &mut View, frames: &[String]) {
    for frame in frames {
        if let Err(trouble) = view.take(frame) {
            panic!("{frame} was refused: {trouble:?}");
        }
    }
}

#[test]
fn entries_in_order_are_accepted_also_across_connections() {
    let mut view = client(&log(), "plain");
    accepted(&mut view, &[event(4), event(5)]);
    assert_eq!(view.cursor(), Some(&*cursor(&[5])));
    view.connected();
    accepted(&mut view, &[event(6), live(&cursor(&[6])), event(7)]);
    assert!(!view.has_reached(&[10, 10]));
    accepted(&mut view, &[event(8), event(9), event(10)]);
    assert!(view.has_reached(&[10, 10]));
}

#[test]
fn holes_duplicates_and_reorders_are_refused() {
    for (first, then, what) in [
        (4, 6, "hole that was not told"),
        (4, 4, "twice or out of order"),
        (4, 3, "twice or out of order"),
        (5, 4, "hole that was not told"),
    ] {
        let mut view = client(&log(), "plain");
        let told = match view.take(&event(first)) {
            Ok(_) => refused(&mut view, &event(then)),
            Err(Trouble::Violation(told)) => told,
            Err(other) => panic!("{other:?}"),
        };
        assert!(told.contains(what), "{first}, {then}: {told}");
    }
}

#[test]
fn the_same_holds_after_a_reconnect() {
    for then in [6, 4, 3] {
        let mut view = client(&log(), "plain");
        accepted(&mut view, &[event(4)]);
        view.connected();
        refused(&mut view, &event(then));
    }
}

#[test]
fn entries_that_are_not_what_was_added_are_refused() {
    let right = payload::text(SEED, 0, 4);
    let wrong_sum = right.replace("\"fill\":\"", "\"fill\":\"x");
    let cases = [
        (event_of(0, 4, &cursor(&[4]), &wrong_sum), "checksum"),
        (
            event_of(0, 4, &cursor(&[4]), &payload::text(SEED, 1, 4)),
            "another stream",
        ),
        (event_of(1, 4, &cursor(&[4]), &right), "under the name"),
        (event_of(0, 5, &cursor(&[5]), &right), "came as"),
        (event_of(0, 4, &cursor(&[5]), &right), "a cursor at"),
        (event_of(0, 4, &cursor(&[4]), "null"), "can't be read"),
    ];
    for (frame, what) in cases {
        let told = refused(&mut client(&log(), "plain"), &frame);
        assert!(told.contains(what), "{frame}: {told}");
    }
    let mut view = client(&log(), "plain");
    (4..=10).for_each(|n| accepted(&mut view, &[event(n)]));
    assert!(refused(&mut view, &event(11)).contains("never sent"));
}

#[test]
fn what_was_sent_may_come_before_its_answer_and_must_agree_with_it() {
    let log = log();
    let mut view = client(&log, "plain");
    (4..=10).for_each(|n| accepted(&mut view, &[event(n)]));
    log.sending(0, 12);
    accepted(&mut view, &[event(11)]);
    assert!(log.written(0, &[EntryId::new(5_000, 1)]).is_err());
}

#[test]
fn an_entry_that_was_never_added_is_noticed() {
    let log = log();
    let mut view = client(&log, "plain");
    (4..=10).for_each(|n| accepted(&mut view, &[event(n)]));
    log.sending(0, 11);
    accepted(&mut view, &[event(11)]);
    assert!(log.not_written(0).is_err());
}

#[test]
fn a_cut_at_an_entry_without_an_answer_waits_for_it() {
    let log = log();
    log.sending(0, 11);
    let route = ROUTES.iter().find(|route| route.name == "state").unwrap();
    let mut view = View::new(log.clone(), route, &[0]);
    view.connected();
    let frame = snapshot("connect", &cursor(&[11]), 11);
    assert!(matches!(view.take(&frame), Err(Trouble::NotYet(0, _))));
    log.written(0, &[id(11)]).unwrap();
    accepted(&mut view, &[frame]);
}

#[test]
fn a_hole_needs_a_resync_and_must_be_gone() {
    let log = log();
    log.removing(0, 6);
    let mut view = client(&log, "plain");
    assert!(refused(&mut view, &event(7)).contains("not told"));

    let mut view = client(&log, "plain");
    accepted(&mut view, &[resync("trimmed", 3), event(7), event(8)]);

    let mut view = client(&log, "plain");
    accepted(&mut view, &[resync("trimmed", 3)]);
    assert!(refused(&mut view, &event(8)).contains("was still there"));

    // Told once is not told for ever.
    let mut view = client(&log, "plain");
    accepted(&mut view, &[resync("trimmed", 3), event(4)]);
    assert!(refused(&mut view, &event(7)).contains("not told"));

    // Whoever has left before a cursor came is told again.
    let mut view = client(&log, "plain");
    accepted(&mut view, &[resync("trimmed", 3)]);
    view.connected();
    assert!(refused(&mut view, &event(7)).contains("not told"));
}

#[test]
fn a_resync_needs_a_reason_that_is_true() {
    let log = log();
    let told = refused(&mut client(&log, "plain"), &resync("trimmed", 3));
    assert!(told.contains("nothing is gone"), "{told}");
    log.removing(0, 6);
    let told = refused(&mut client(&log, "plain"), &resync("deleted", 3));
    assert!(told.contains("nothing is gone"), "{told}");
    refused(&mut client(&log, "plain"), &resync("lagged", 3));
    let told = refused(&mut client(&log, "plain"), &resync("trimmed", 5));
    assert!(told.contains("a cursor at"), "{told}");
    log.deleting(0);
    accepted(&mut client(&log, "plain"), &[resync("deleted", 3)]);
}

#[test]
fn with_a_snapshot_a_resync_brings_one_that_accounts_for_the_hole() {
    let log = log();
    log.removing(0, 6);
    let lost = || {
        let mut view = client(&log, "state");
        assert_eq!(
            view.take(&resync("trimmed", 3)).unwrap(),
            Taken::Resync("trimmed".to_owned())
        );
        view
    };
    accepted(
        &mut lost(),
        &[snapshot("trimmed", &cursor(&[8]), 9), event(9), event(10)],
    );
    let told = refused(&mut lost(), &event(7));
    assert!(told.contains("before the snapshot"), "{told}");
    let told = refused(&mut lost(), &snapshot("trimmed", &cursor(&[8]), 7));
    assert!(told.contains("the state ends at 7"), "{told}");
    refused(&mut lost(), &snapshot("deleted", &cursor(&[8]), 8));
    let mut view = lost();
    accepted(&mut view, &[snapshot("trimmed", &cursor(&[8]), 8)]);
    assert!(refused(&mut view, &event(10)).contains("not told"));
    refused(
        &mut client(&log, "state"),
        &snapshot("trimmed", &cursor(&[8]), 8),
    );
}

#[test]
fn of_several_streams_each_has_its_own_place() {
    let log = log();
    let of =
        |stream, n, at: &[u64]| event_of(stream, n, &cursor(at), &payload::text(SEED, stream, n));
    let route = ROUTES.iter().find(|route| route.name == "shared").unwrap();
    let fresh = || {
        let mut view = View::new(log.clone(), route, &[0, 1]);
        view.connected();
        view.take(&snapshot("connect", &cursor(&[3, 5]), 5))
            .unwrap();
        view
    };
    accepted(&mut fresh(), &[of(0, 4, &[4, 5]), of(1, 6, &[4, 6])]);
    refused(&mut fresh(), &of(1, 4, &[3, 4]));
    let told = refused(&mut fresh(), &of(0, 4, &[4, 6]));
    assert!(told.contains("stream 1: a cursor at"), "{told}");
}

#[test]
fn a_cursor_of_after_a_loss_keeps_that_it_was_told() {
    let log = log();
    let at = |first: &str, n: u64| format!("abcdef~{first},{},{}", id(n), id(3));
    let of = |n: u64, cursor: &str| event_of(1, n, cursor, &payload::text(SEED, 1, n));
    let lost = |n: u64| {
        let cursor = at(&id(3).to_string(), n);
        format!(r#"{{"type":"resync","reason":"trimmed","lost":"{cursor}"}}"#)
    };
    let next = event_of(0, 8, &at(&id(8).to_string(), 4), &payload::text(SEED, 0, 8));
    let route = ROUTES.iter().find(|route| route.name == "several").unwrap();
    log.removing(0, 7);
    let told = || {
        let mut view = View::new(log.clone(), route, &[0, 1, 2]);
        view.connected();
        accepted(&mut view, &[live(&at(&id(3).to_string(), 3)), lost(3)]);
        view
    };
    // The next frame of another stream brings a cursor, then comes another resync.
    let mut view = told();
    accepted(&mut view, &[of(4, &at(&id(3).to_string(), 4)), lost(4)]);
    view.connected();
    accepted(&mut view, std::slice::from_ref(&next));
    // No cursor came: it has to be told again.
    let mut view = told();
    view.connected();
    let early = event_of(0, 8, &at(&id(8).to_string(), 3), &payload::text(SEED, 0, 8));
    refused(&mut view, &early);
}

#[test]
fn live_and_status_come_once() {
    let mut view = client(&log(), "plain");
    refused(&mut view, &live(&cursor(&[3])));
    let status = |state: &str| format!(r#"{{"type":"status","state":"{state}","as_of":1}}"#);
    let mut view = client(&log(), "plain");
    accepted(
        &mut view,
        &[status("degraded"), status("ok"), status("degraded")],
    );
    refused(&mut view, &status("degraded"));
    refused(&mut client(&log(), "plain"), &status("ok"));
    refused(&mut client(&log(), "plain"), &status("no_snapshot"));
}
