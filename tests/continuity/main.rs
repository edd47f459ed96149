//! Continuity itself, against a model: whatever happens to a stream, nobody misses an entry in
//! silence, gets one twice, or is told of a loss where there was none.
//!
//! Random sequences of commands and of clients are played against a real redis-server and
//! relays in this process. A [`witness`] for each client knows all that ever happened to the
//! stream ([`history`]), and nothing of how the relay works. What fails is made smaller until
//! the shortest sequence is left; `PROPTEST_RNG_SEED` plays the same run again, and
//! `PROPTEST_CASES` plays more.
#![cfg(test)]

mod history;
mod operation;
mod servers;
#[expect(dead_code, reason = "the scenarios need more of it")]
#[path = "../support"]
mod support {
    pub(crate) mod process;
    pub(crate) mod proxy;
    pub(crate) mod redis;
    pub(crate) mod wait;
}
mod wire;
mod witness;
mod world;

use std::future::Future;

use proptest::collection::vec;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::runtime::Builder;

use operation::{Index, Keep, Op, Setup, op, setup};
use servers::Servers;
use world::World;

const MOST_OPS: usize = 40;
/// However hard a case is to make smaller.
const LONGEST_SHRINKING_MS: u32 = 60_000;
/// Cases with a failover, of which each begins with a replication from scratch, are fewer.
const FAILOVER_SHARE: u32 = 10;

#[test]
fn no_entry_is_lost_or_repeated_in_silence() {
    play(&with_clock(Servers::one()), Config::default().cases, false);
}

#[test]
fn nor_when_a_replica_that_lags_is_promoted() {
    let cases = (Config::default().cases / FAILOVER_SHARE).max(1);
    play(&with_clock(Servers::pair()), cases, true);
}

fn play(servers: &Servers, cases: u32, with_failover: bool) {
    let config = Config {
        cases,
        // The ids of a case are in its operations: the seed is all there is to keep.
        failure_persistence: None,
        max_shrink_time: LONGEST_SHRINKING_MS,
        ..Config::default()
    };
    let case = (setup(), vec(op(with_failover), 1..MOST_OPS));
    let played = TestRunner::new(config).run(&case, |(setup, ops)| {
        play_one(servers, &setup, &ops).map_err(TestCaseError::fail)
    });
    if let Err(failure) = played {
        panic!("{failure}");
    }
}

/// A case, with a runtime of its own: what it leaves behind ends with it.
fn play_one(servers: &Servers, setup: &Setup, ops: &[Op]) -> Result<(), String> {
    servers.pair_up();
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async { World::new(servers, setup).await.play(ops).await })
}

/// Servers are waited for by the real clock.
fn with_clock<T>(future: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

const RING: Setup = Setup {
    ring_entries: 256,
    hold_ms: 2,
    is_polling: false,
};

fn add(count: usize, step: u64, keep: Keep) -> Op {
    Op::Add {
        count,
        step,
        keep,
        filling: 0,
    }
}

fn end(begin_low: bool) -> Op {
    Op::End {
        by_expiry: false,
        begin_low,
    }
}

const FIRST: Index = Index(0);

fn attach() -> Op {
    Op::Attach { relay: FIRST }
}

/// What chance rarely meets: the entry at the position is gone, and the count of entries decides.
fn counted() -> Vec<(&'static str, Vec<Op>)> {
    vec![
        (
            "the entry at the position is deleted, one more comes",
            vec![
                add(3, 1, Keep::All),
                attach(),
                Op::Rest,
                Op::Delete { from_newest: 0 },
                Op::Rest,
                add(1, 1, Keep::All),
            ],
        ),
        (
            "after a failover as many lower ids are new as there were phantoms",
            vec![
                add(3, 1, Keep::All),
                attach(),
                Op::Rest,
                Op::Part,
                add(2, 2, Keep::All),
                Op::Rest,
                Op::Promote,
                add(2, 1, Keep::All),
                add(1, 9, Keep::All),
            ],
        ),
        (
            "a stream of one entry, update by update",
            vec![
                add(1, 1, Keep::Newest(1)),
                attach(),
                Op::Rest,
                add(1, 1, Keep::Newest(1)),
                Op::Rest,
                add(1, 1, Keep::Newest(1)),
                Op::Rest,
            ],
        ),
    ]
}

/// What chance has met: a start that is overtaken by the end of its stream.
fn overtaken() -> Vec<(&'static str, Vec<Op>)> {
    vec![
        (
            "the stream ends while a client waits to start anew",
            vec![
                add(4, 0, Keep::All),
                Op::Trim(Keep::Newest(0)),
                Op::Resume {
                    relay: FIRST,
                    cursor: Index(1),
                },
                Op::Take {
                    client: FIRST,
                    messages: 1,
                },
                end(false),
            ],
        ),
        (
            "the same, and it begins anew with lower ids",
            vec![
                add(4, 3, Keep::All),
                Op::Trim(Keep::Newest(0)),
                Op::Resume {
                    relay: FIRST,
                    cursor: Index(1),
                },
                Op::Take {
                    client: FIRST,
                    messages: 1,
                },
                end(true),
                add(1, 1, Keep::All),
            ],
        ),
        (
            "the tail noted at the attach is never reached",
            vec![
                add(3, 3, Keep::All),
                attach(),
                Op::Resume {
                    relay: FIRST,
                    cursor: Index(0),
                },
                end(true),
                add(3, 1, Keep::All),
            ],
        ),
    ]
}

/// A client has read a page of what the relay has not seen itself, and then it is gone.
fn ahead() -> Vec<(&'static str, Vec<Op>)> {
    let before = |rest: &[Op]| {
        let mut ops = vec![
            attach(),
            Op::Turn { turns: 4 },
            add(3, 0, Keep::All),
            Op::Resume {
                relay: FIRST,
                cursor: Index(1),
            },
            // The other relay's turns are this one's as well.
            Op::Attach { relay: Index(1) },
        ];
        ops.extend_from_slice(rest);
        ops
    };
    let delete = Op::Delete { from_newest: 0 };
    vec![
        ("the stream ends", before(&[end(false)])),
        (
            "the stream ends and begins anew, with lower ids",
            before(&[end(true), add(1, 1, Keep::All)]),
        ),
        (
            "entries are deleted by hand, and then the stream ends",
            before(&[delete.clone(), delete.clone(), delete, Op::Rest, end(false)]),
        ),
    ]
}

#[test]
fn nor_in_cases_that_are_known() {
    let (pair, one) = (with_clock(Servers::pair()), with_clock(Servers::one()));
    let polling = Setup {
        is_polling: true,
        ..RING
    };
    let mut wrong = Vec::new();
    let mut play_all = |servers, setup, cases: Vec<(&str, Vec<Op>)>| {
        for (name, ops) in cases {
            if let Err(error) = play_one(servers, setup, &ops) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    };
    play_all(&pair, &RING, counted());
    play_all(&pair, &RING, overtaken());
    play_all(&one, &polling, ahead());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
