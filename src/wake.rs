//! Waking many tasks at once without a queue.
//!
//! A [`Bell`] counts how often it was rung. A [`Listener`] leaves its task's waker with the
//! bell once, and compares counts from then on: nothing is registered per ring, so waking a
//! thousand sessions costs a thousand wakes and nothing else. Rings coalesce: whoever looks
//! sees that something has changed, and asks what.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use slab::Slab;
use tokio::task::coop::has_budget_remaining;

/// Something that can be rung and listened to.
#[derive(Default)]
pub struct Bell {
    rung: AtomicU64,
    wakers: Mutex<Slab<Option<Waker>>>,
}

impl Bell {
    /// Wakes every listener.
    pub fn ring(&self) {
        // The count goes up before wakers are read: a listener that registers in between
        // compares the count after it has registered, and so sees this ring.
        self.rung.fetch_add(1, Ordering::SeqCst);
        for (_, waker) in lock(&self.wakers).iter() {
            if let Some(waker) = waker {
                waker.wake_by_ref();
            }
        }
    }

    /// How many listeners there are.
    pub fn listeners(&self) -> usize {
        lock(&self.wakers).len()
    }

    /// A new listener, which has heard every ring so far.
    pub fn listen(self: &Arc<Self>) -> Listener {
        let slot = lock(&self.wakers).insert(None);
        Listener {
            heard: self.rung.load(Ordering::SeqCst),
            bell: self.clone(),
            slot,
            waker: Registered::default(),
        }
    }
}

/// The task that something wakes. One that waits there already, and was woken by something else,
/// need not be registered anew: that takes a lock or two atomic counts, for each delivery.
#[derive(Default)]
pub struct Registered(Option<Waker>);

impl Registered {
    /// Whether it is this task.
    pub fn is(&self, cx: &Context<'_>) -> bool {
        let known = self.0.as_ref();
        known.is_some_and(|waker| waker.will_wake(cx.waker()))
    }

    /// Polls something of the runtime, which registers the task where it is not ready.
    pub fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        // Without a budget nobody is registered: the task is woken at once instead.
        let registers = has_budget_remaining();
        let polled = poll(cx);
        self.0 = (polled.is_pending() && registers).then(|| cx.waker().clone());
        polled
    }

    /// Whoever it is may not be woken any more.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

/// One task's ear. Dropping it forgets the task.
pub struct Listener {
    bell: Arc<Bell>,
    slot: usize,
    heard: u64,
    /// What the bell has in its slot, so that the lock is taken only when it changes.
    waker: Registered,
}

impl Listener {
    /// Ready once the bell has been rung since the last time this was ready.
    pub fn poll_rung(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.waker.is(cx) {
            self.waker = Registered(Some(cx.waker().clone()));
            lock(&self.bell.wakers)[self.slot] = Some(cx.waker().clone());
        }
        if self.heard_all() {
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// As [`poll_rung`](Self::poll_rung), to be awaited; cancel-safe.
    pub async fn rung(&mut self) {
        std::future::poll_fn(|cx| self.poll_rung(cx)).await;
    }

    /// Notes every ring so far as heard, and says whether there were new ones.
    fn heard_all(&mut self) -> bool {
        let rung = self.bell.rung.load(Ordering::SeqCst);
        std::mem::replace(&mut self.heard, rung) == rung
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock(&self.bell.wakers).remove(self.slot);
    }
}

type Wakers = Slab<Option<Waker>>;

fn lock(wakers: &Mutex<Wakers>) -> std::sync::MutexGuard<'_, Wakers> {
    wakers.lock().unwrap_or_else(PoisonError::into_inner)
}
