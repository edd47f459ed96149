//! What can happen, and in which proportion.

use proptest::prelude::*;

/// One thing that happens. Each can happen at any time; where it makes no sense it does nothing.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// Entries are added, one after the other.
    Add {
        count: usize,
        /// Milliseconds between their ids.
        step: u64,
        keep: Keep,
        /// Bytes beside the number in each payload.
        filling: usize,
    },
    /// XTRIM.
    Trim(Keep),
    /// XDEL of one of the newest.
    Delete { from_newest: usize },
    /// DEL, or EXPIRE and a moment.
    End { by_expiry: bool, begin_low: bool },
    /// A client comes without a cursor.
    Attach { relay: Index },
    /// A client comes with a cursor that one had: any entry ever added, or `0-0`.
    Resume { relay: Index, cursor: Index },
    /// A client comes back to a relay with its own cursor.
    Return { relay: Index, client: Index },
    /// A client reads no more.
    Stall { client: Index },
    /// A client that reads no more takes this many messages.
    Take { client: Index, messages: usize },
    /// A client reads again.
    Wake { client: Index },
    /// A client goes.
    Leave { client: Index },
    /// The relay gets a few turns of the processor, and what is in flight stays there.
    Turn { turns: usize },
    /// All comes to rest, and every client that reads must have what is there.
    Rest,
    /// The replica lags from now on.
    Part,
    /// The replica takes over.
    Promote,
}

/// One of as many as there are by then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Index(pub(crate) usize);

impl Index {
    pub(crate) fn of(self, count: usize) -> usize {
        self.0 % count
    }
}

/// How many entries an XADD or an XTRIM leaves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Keep {
    All,
    Newest(usize),
    /// With `~`: whole nodes stay.
    AboutNewest(usize),
}

/// How the relay is configured.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) ring_entries: usize,
    pub(crate) hold_ms: u64,
    pub(crate) is_polling: bool,
}

pub(crate) fn setup() -> impl Strategy<Value = Setup> {
    let ring_entries = prop_oneof![Just(1_usize), 2_usize..10, Just(256)];
    (
        ring_entries,
        prop_oneof![Just(0_u64), Just(2)],
        prop::bool::weighted(0.2),
    )
        .prop_map(|(ring_entries, hold_ms, is_polling)| Setup {
            ring_entries,
            hold_ms,
            is_polling,
        })
}

fn keep() -> impl Strategy<Value = Keep> {
    prop_oneof![
        4 => Just(Keep::All),
        4 => (0_usize..6).prop_map(Keep::Newest),
        1 => (6_usize..100).prop_map(Keep::Newest),
        1 => (0_usize..150).prop_map(Keep::AboutNewest),
    ]
}

fn add() -> impl Strategy<Value = Op> {
    let count = prop_oneof![8 => 1_usize..4, 3 => 4_usize..20, 1 => 20_usize..180];
    let filling = prop_oneof![12 => Just(0_usize), 1 => Just(30_000)];
    (count, 0_u64..3, keep(), filling).prop_map(|(count, step, keep, filling)| Op::Add {
        // As much as a page has, and no more: it is copied often.
        count: if filling > 0 { count.min(20) } else { count },
        step,
        keep,
        filling,
    })
}

pub(crate) fn op(with_failover: bool) -> BoxedStrategy<Op> {
    match with_failover {
        true => prop_oneof![20 => any_time(), 1 => Just(Op::Part), 1 => Just(Op::Promote)].boxed(),
        false => any_time().boxed(),
    }
}

fn any_time() -> impl Strategy<Value = Op> {
    let index = || (0_usize..1_000).prop_map(Index);
    prop_oneof![
        16 => add(),
        3 => keep().prop_map(Op::Trim),
        2 => (0_usize..6).prop_map(|from_newest| Op::Delete { from_newest }),
        2 => any::<(bool, bool)>().prop_map(|(by_expiry, begin_low)| Op::End { by_expiry, begin_low }),
        3 => index().prop_map(|relay| Op::Attach { relay }),
        3 => (index(), index()).prop_map(|(relay, cursor)| Op::Resume { relay, cursor }),
        2 => (index(), index()).prop_map(|(relay, client)| Op::Return { relay, client }),
        3 => index().prop_map(|client| Op::Stall { client }),
        2 => (index(), 1_usize..4).prop_map(|(client, messages)| Op::Take { client, messages }),
        2 => index().prop_map(|client| Op::Wake { client }),
        1 => index().prop_map(|client| Op::Leave { client }),
        5 => (1_usize..12).prop_map(|turns| Op::Turn { turns }),
        10 => Just(Op::Rest),
    ]
}
