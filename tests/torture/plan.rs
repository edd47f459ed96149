//! What goes wrong, and when: it follows from the seed alone. Each part of the stage has a lane
//! of its own, so that faults of different parts meet.

use std::fmt;
use std::time::Duration;

use super::chance::Chance;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGTERM; started again after a pause.
    RelayDrains(Duration),
    /// SIGKILL; started again after a pause.
    RelayIsKilled(Duration),
    /// Open connections to Redis end, new ones are welcome.
    LinkBreaks,
    /// Open connections to Redis end, and so do new ones.
    LinkIsCut(Duration),
    LinkStalls(Duration),
    /// Each piece is held back.
    LinkIsSlow {
        each: Duration,
        lasts: Duration,
    },
    /// No write is larger than this.
    LinkSplits {
        bytes: usize,
        lasts: Duration,
    },
    /// SIGKILL; with its data it is started again after a pause.
    RedisRestarts(Duration),
    RedisRestartsEmpty(Duration),
    RedisIsFlushed,
    /// SIGSTOP, and SIGCONT after a pause.
    RedisStops(Duration),
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RelayDrains(_) => "relay_drains",
            Self::RelayIsKilled(_) => "relay_is_killed",
            Self::LinkBreaks => "link_breaks",
            Self::LinkIsCut(_) => "link_is_cut",
            Self::LinkStalls(_) => "link_stalls",
            Self::LinkIsSlow { .. } => "link_is_slow",
            Self::LinkSplits { .. } => "link_splits",
            Self::RedisRestarts(_) => "redis_restarts",
            Self::RedisRestartsEmpty(_) => "redis_restarts_empty",
            Self::RedisIsFlushed => "redis_is_flushed",
            Self::RedisStops(_) => "redis_stops",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Relay(usize),
    Link(usize),
    Redis,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relay(index) => write!(f, "relay {index}"),
            Self::Link(index) => write!(f, "link {index}"),
            Self::Redis => write!(f, "redis"),
        }
    }
}

/// The faults of one lane, each with the quiet time before it; without end.
pub(crate) fn faults(seed: u64, lane: Lane) -> impl Iterator<Item = (Duration, Fault)> {
    let (part, index) = match lane {
        Lane::Relay(index) => ("relay", index),
        Lane::Link(index) => ("link", index),
        Lane::Redis => ("redis", 0),
    };
    let mut chance = Chance::of(seed, part, index);
    std::iter::repeat_with(move || match lane {
        Lane::Relay(_) => (chance.ms(4_000, 16_000), relay(&mut chance)),
        Lane::Link(_) => (chance.ms(1_000, 8_000), link(&mut chance)),
        Lane::Redis => (chance.ms(5_000, 15_000), redis(&mut chance)),
    })
}

fn relay(chance: &mut Chance) -> Fault {
    match chance.below(5) {
        0..3 => Fault::RelayDrains(chance.ms(0, 500)),
        _ => Fault::RelayIsKilled(chance.ms(0, 1_500)),
    }
}

fn link(chance: &mut Chance) -> Fault {
    match chance.below(8) {
        0 | 1 => Fault::LinkBreaks,
        2 => Fault::LinkIsCut(chance.ms(50, 2_500)),
        3 | 4 => Fault::LinkStalls(chance.ms(50, 3_000)),
        5 | 6 => Fault::LinkIsSlow {
            each: chance.ms(1, 40),
            lasts: chance.ms(500, 3_000),
        },
        _ => {
            let most = if chance.once_in(2) { 7 } else { 1_400 };
            Fault::LinkSplits {
                bytes: 1 + chance.index(most),
                lasts: chance.ms(500, 3_000),
            }
        }
    }
}

fn redis(chance: &mut Chance) -> Fault {
    match chance.below(10) {
        0..4 => Fault::RedisRestarts(chance.ms(0, 2_000)),
        4..8 => Fault::RedisStops(chance.ms(200, 4_000)),
        8 => Fault::RedisIsFlushed,
        _ => Fault::RedisRestartsEmpty(chance.ms(0, 1_000)),
    }
}
