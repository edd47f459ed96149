//! Every task has an owner and a name: the only place that spawns.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// Spawns tasks, knows which still run, and waits for them. Cloning shares the list.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Tasks {
    /// Runs a future as a task of this name.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let running = Running::enter(self.running.clone(), name);
        // Not an async block: it would be twice as large as what it awaits.
        self.tracker.spawn(future.map(move |output| {
            drop(running);
            output
        }))
    }

    /// Waits until every task has ended. Tasks may still be spawned meanwhile.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Names of the tasks that still run, with their numbers.
    pub fn running(&self) -> BTreeMap<&'static str, usize> {
        lock(&self.running).clone()
    }
}

/// Counts a task from its spawning to its end, however it ends.
struct Running {
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    name: &'static str,
}

impl Running {
    fn enter(running: Arc<Mutex<BTreeMap<&'static str, usize>>>, name: &'static str) -> Self {
        *lock(&running).entry(name).or_default() += 1;
        Self { running, name }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = lock(&self.running);
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

type Counts = BTreeMap<&'static str, usize>;

fn lock(counts: &Mutex<Counts>) -> std::sync::MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}
