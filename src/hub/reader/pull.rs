//! One train of pulls: asked at once, judged one by one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;
use tracing::{info, warn};

use super::super::chunk::Chunk;
use super::super::continuity::{self, Known, Verdict};
use super::super::feed::{Feed, Mark};
use super::Down;
use super::connected::Connected;
use crate::protocol::LossReason;
use crate::store::{Answer, Read, StreamInfo, Unreadable};

/// What one train is meant to bring at the most.
const TRAIN_BYTES: usize = 4 * 1024 * 1024;
/// What one key of it is meant to bring at the most.
const PULL_BYTES: usize = 1024 * 1024;
const MAX_PULL_ENTRIES: usize = 4096;
/// A torn answer is asked for again this often.
const TORN_TRIES: usize = 3;

/// One key of a train.
struct Pull {
    feed: Arc<Feed>,
    mark: Mark,
    known: Known,
    read: Read,
    /// What was last said of the stream; `None` if there was no such key.
    info: Option<StreamInfo>,
}

impl Connected<'_> {
    pub(super) async fn pull(&mut self, feeds: &[Arc<Feed>]) -> Result<(), Down> {
        let budget = (TRAIN_BYTES / feeds.len()).min(PULL_BYTES);
        let mut pulls: Vec<Pull> = feeds.iter().map(|feed| self.begin(feed, budget)).collect();
        for _ in 0..=TORN_TRIES {
            if pulls.is_empty() {
                break;
            }
            let reads: Vec<Read> = pulls.iter().map(|pull| pull.read.clone()).collect();
            let answers = self.connection.read_all(&reads).await?;
            self.reader.answered_at = Instant::now();
            let settled = pulls
                .into_iter()
                .zip(answers)
                .filter_map(|(pull, answer)| self.settle(pull, answer));
            pulls = settled.collect();
        }
        for pull in pulls {
            // Its halves would not fit together: the worst that this can mean.
            let known = pull.known.position;
            let reason = pull
                .info
                .map_or(LossReason::Deleted, |info| continuity::loss(known, &info));
            self.lose(&pull, reason);
        }
        self.shared.train_done.ring();
        Ok(())
    }

    fn begin(&self, feed: &Arc<Feed>, budget: usize) -> Pull {
        // Cleared before the read is sent: a change from here on marks the feed again.
        let mark = feed.clear_mark();
        let reading = feed.begin_read(self.number);
        let entries = (budget / reading.mean_size.max(1)).clamp(1, MAX_PULL_ENTRIES);
        Pull {
            feed: feed.clone(),
            mark,
            known: reading.known,
            info: None,
            read: Read {
                key: feed.key.clone(),
                from: reading.known.position,
                // One more: the entry at the position.
                count: entries + 1,
                with_info: reading.with_info,
            },
        }
    }

    /// Applies an answer. Gives the pull back if it must be asked again.
    fn settle(&mut self, mut pull: Pull, answer: Result<Answer, Unreadable>) -> Option<Pull> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(reason) => {
                self.fail(&pull.feed, reason);
                return None;
            }
        };
        if pull.feed.tail() != pull.known.position {
            // A feed takes only what follows its tail, and another answer has moved it.
            self.shared.dirty.mark(&pull.feed, Mark::Asked);
            return None;
        }
        let begins_there = answer
            .entries
            .first()
            .is_some_and(|first| first.id == pull.known.position);
        let info = answer.info.filter(|_| !begins_there);
        pull.info = answer.info.flatten();
        let is_full = answer.entries.len() >= pull.read.count;
        match continuity::judge(&pull.known, answer, pull.read.count) {
            Verdict::Continuous(entries) => {
                self.note_pull(pull.mark, entries.is_empty());
                let chunks = Chunk::split(&pull.feed.key, entries, &self.shared.formats);
                let grown = pull.feed.publish(chunks, info, !is_full, self.number);
                self.note_growth(grown);
                if is_full {
                    self.shared.dirty.mark(&pull.feed, Mark::Asked);
                }
                None
            }
            Verdict::Lost(reason) => {
                self.lose(&pull, reason);
                None
            }
            Verdict::InfoNeeded | Verdict::Torn => {
                pull.read.with_info = true;
                Some(pull)
            }
        }
    }

    /// The feed goes on in a new epoch; each session asks with its own position.
    fn lose(&self, pull: &Pull, reason: LossReason) {
        let after = pull.known.position;
        info!(stream.key = %pull.feed.key.shown(), %after, reason = reason.as_str(), "continuity lost");
        let grown = pull.feed.restart(pull.info.as_ref(), self.number);
        self.note_growth(grown);
        self.shared.dirty.mark(&pull.feed, Mark::Asked);
    }

    /// One key that can't be read fails alone.
    fn fail(&self, feed: &Arc<Feed>, reason: Unreadable) {
        warn!(stream.key = %feed.key.shown(), %reason, "stream can't be read, its clients are closed");
        {
            let mut feeds = self.shared.feeds();
            feeds.remove(feed);
            feeds.refuse(&feed.key, reason.clone());
        }
        let grown = feed.retire();
        self.shared.ring_bytes.fetch_add(grown, Ordering::AcqRel);
        feed.read_failed(reason);
    }

    fn note_pull(&mut self, mark: Mark, found_nothing: bool) {
        if mark == Mark::Changed {
            self.pulls.all += 1;
            self.pulls.found_nothing += u32::from(found_nothing);
        }
    }

    /// Keeps all rings together within their bound: those that were read least recently give way.
    fn note_growth(&self, grown: isize) {
        self.shared.ring_bytes.fetch_add(grown, Ordering::AcqRel);
        let bound = self.shared.config.redis.ring_total;
        if self.shared.ring_bytes() <= bound {
            return;
        }
        let mut feeds = self.shared.all_feeds();
        feeds.sort_by_cached_key(|feed| feed.asked_at());
        for feed in feeds {
            if self.shared.ring_bytes() <= bound - bound / 10 {
                return;
            }
            self.shared
                .ring_bytes
                .fetch_add(feed.shrink(), Ordering::AcqRel);
        }
    }
}
