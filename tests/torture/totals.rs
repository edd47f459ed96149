//! What has happened, counted; and the plan as far as it was carried out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

pub(crate) struct Totals {
    start: Instant,
    pub(crate) entries: Count,
    pub(crate) deliveries: Count,
    pub(crate) connects: Count,
    pub(crate) refusals: Count,
    pub(crate) stalls: Count,
    pub(crate) snapshots: Count,
    pub(crate) exact_cuts: Count,
    pub(crate) faults: Kinds,
    /// What publishers took away, by kind.
    pub(crate) removals: Kinds,
    pub(crate) resyncs: Kinds,
    /// How connections ended that the client did not end.
    pub(crate) endings: Kinds,
    journal: Mutex<Vec<String>>,
}

#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(crate) struct Kinds(Mutex<BTreeMap<String, u64>>);

impl Kinds {
    pub(crate) fn add(&self, kind: &str) {
        let mut kinds = self.kinds();
        match kinds.get_mut(kind) {
            Some(count) => *count += 1,
            None => {
                kinds.insert(kind.to_owned(), 1);
            }
        }
    }

    /// The sum, and in brackets what it is made of.
    fn text(&self) -> String {
        let kinds = self.kinds();
        let sum: u64 = kinds.values().sum();
        let kinds: Vec<String> = kinds
            .iter()
            .map(|(kind, count)| format!("{kind}={count}"))
            .collect();
        format!("{sum} ({})", kinds.join(" "))
    }

    fn sum(&self) -> u64 {
        self.kinds().values().sum()
    }

    fn kinds(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Totals {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            entries: Count::default(),
            deliveries: Count::default(),
            connects: Count::default(),
            refusals: Count::default(),
            stalls: Count::default(),
            snapshots: Count::default(),
            exact_cuts: Count::default(),
            faults: Kinds::default(),
            removals: Kinds::default(),
            resyncs: Kinds::default(),
            endings: Kinds::default(),
            journal: Mutex::default(),
        }
    }

    /// Notes a step of the plan, with its time.
    pub(crate) fn note(&self, step: &str) {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.push(format!(
            "{:8.3} s  {step}",
            self.start.elapsed().as_secs_f64()
        ));
    }

    /// The last steps, oldest first.
    pub(crate) fn journal(&self, most: usize) -> String {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal[journal.len().saturating_sub(most)..].join("\n")
    }

    pub(crate) fn progress(&self) -> String {
        format!(
            "torture: {:.0} s, {} entries, {} deliveries, {} connects, {} faults, {} resyncs",
            self.start.elapsed().as_secs_f64(),
            self.entries.value(),
            self.deliveries.value(),
            self.connects.value(),
            self.faults.sum(),
            self.resyncs.sum(),
        )
    }

    /// One line with everything.
    pub(crate) fn line(&self, seed: u64, violations: usize) -> String {
        let mut line = format!(
            "torture: seed {seed}, {:.0} s: {} entries, {} deliveries, {} connects, {} refusals, {} stalls, \
             {} snapshots ({} exact)",
            self.start.elapsed().as_secs_f64(),
            self.entries.value(),
            self.deliveries.value(),
            self.connects.value(),
            self.refusals.value(),
            self.stalls.value(),
            self.snapshots.value(),
            self.exact_cuts.value(),
        );
        let kinds = [
            ("faults", &self.faults),
            ("removals", &self.removals),
            ("resyncs", &self.resyncs),
            ("endings", &self.endings),
        ];
        for (what, kinds) in kinds {
            write!(line, ", {what} {}", kinds.text()).expect("a string takes everything");
        }
        format!("{line}, violations {violations}")
    }
}
