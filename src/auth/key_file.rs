//! Keys in files, read again when the file changes.
//!
//! The content is looked at, not the time of its last change: a mounted secret is replaced by
//! a link that leads elsewhere, and clocks of file systems are coarse.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info};

use super::key::Key;
use crate::config::FixedKey;
use crate::debounce::Debounce;
use crate::metrics::{Gauge, KEY_FILE_RELOADS, KEY_FILE_UNUSABLE, Metrics};
use crate::tasks::Tasks;

/// How often files are looked at; up to a quarter less or more, so that many relays don't ask a
/// network file system at once.
const EVERY: Duration = Duration::from_secs(2);

struct Watched {
    key: FixedKey,
    algorithms: Vec<Algorithm>,
    place: String,
    current: watch::Sender<Arc<Key>>,
    unusable: Gauge,
    metrics: Metrics,
}

/// Watches the file of a key, if it has one, in a task of `tasks`.
pub(super) fn watch(
    key: &FixedKey,
    algorithms: &[Algorithm],
    index: usize,
    current: watch::Sender<Arc<Key>>,
    tasks: &Tasks,
    metrics: &Metrics,
) {
    if key.file.is_none() {
        return;
    }
    for outcome in ["ok", "failed"] {
        metrics.counter(&KEY_FILE_RELOADS, &[outcome]).inc_by(0);
    }
    let place = (index + 1).to_string();
    let unusable = metrics.gauge(&KEY_FILE_UNUSABLE, &[&place]);
    unusable.set(0);
    let watched = Watched {
        key: key.clone(),
        algorithms: algorithms.to_owned(),
        place,
        current,
        unusable,
        metrics: metrics.clone(),
    };
    tasks.spawn("key file", watched.keep());
}

impl Watched {
    async fn keep(mut self) {
        let mut debounce = Debounce::new(Some(Ok(self.key.clone())));
        loop {
            sleep(EVERY.mul_f64(rand::random_range(0.75..1.25))).await;
            let read = self.key.read_again(&self.algorithms).await;
            if !debounce.settles(&read) {
                continue;
            }
            self.unusable.set(read.is_err().into());
            match read {
                // It was unusable for a while.
                Ok(key) if key == self.key => {}
                Ok(key) => self.replace(key),
                Err(error) => {
                    self.count("failed");
                    error!(key = self.place, %error, "the new key can't be used: the old one stays");
                }
            }
        }
    }

    fn replace(&mut self, key: FixedKey) {
        let usable = Key::new(key.decoding.clone(), &self.algorithms);
        self.current.send_replace(Arc::new(usable));
        self.key = key;
        self.count("ok");
        info!(
            key = self.place,
            "the key was read again: its file has changed"
        );
    }

    fn count(&self, outcome: &str) {
        let counter = self.metrics.counter(&KEY_FILE_RELOADS, &[outcome]);
        counter.inc();
    }
}
