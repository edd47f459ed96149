//! Entries older than the ring, read from Redis page by page.
//!
//! Sessions that are at the same place share one read and one page. A page stays for a moment
//! after its last use, so that those who follow find it; all pages together are bounded, and
//! who finds no room waits for its share.

mod page;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::chunk::{BATCH_BYTES, Chunk, Formats};
use super::continuity::{self, Known, Verdict};
use super::feed::{Epoch, Feed};
use crate::config::History;
use crate::metrics::{BACKLOG_BYTES, BACKLOG_READS, Counter, Gauge, Metrics};
use crate::protocol::LossReason;
use crate::store::{Answer, Read, Store, StoreError, StreamInfo};
use crate::stream::{EntryId, StreamKey};
use crate::tasks::Tasks;

pub use page::{Page, PageChunk};

/// Whether a page must prove that it follows its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// It must.
    Needed,
    /// What came before does not matter: the beginning of a history.
    NotNeeded,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    key: StreamKey,
    epoch: Epoch,
    position: EntryId,
    proof: Proof,
}

type SharedPage = Shared<BoxFuture<'static, Result<Page, StoreError>>>;

/// All pages; cloning shares them.
#[derive(Clone)]
pub struct Backlog {
    shared: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    formats: Formats,
    room: Arc<Semaphore>,
    pages: Mutex<HashMap<Question, Kept>>,
    tasks: Tasks,
    page_reads: Counter,
    history_reads: Counter,
    bytes: Gauge,
}

struct Kept {
    page: SharedPage,
    used_at: Instant,
}

impl Kept {
    /// Bytes of the page, once it is there.
    fn size(&self) -> usize {
        match self.page.peek() {
            Some(Ok(Page::Entries(page))) => page.size(),
            _ => 0,
        }
    }
}

/// The most that one page is meant to take: its entries, and about a batch when encoded.
const PAGE_BYTES: usize = 2 * BATCH_BYTES;
const MAX_PAGE_ENTRIES: usize = 4096;
/// How long a page stays after its last use, for those who follow.
const KEPT_FOR: Duration = Duration::from_secs(2);
/// What such pages may take together: one long history must not fill the bound for all.
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// An answer whose halves don't fit is asked for again this often.
const TORN_TRIES: usize = 3;

impl Backlog {
    /// Pages may take `total` bytes together.
    pub fn new(
        store: Arc<Store>,
        formats: Formats,
        total: usize,
        tasks: &Tasks,
        metrics: &Metrics,
    ) -> Self {
        Self {
            shared: Arc::new(Inner {
                store,
                formats,
                room: Arc::new(Semaphore::new(
                    total.clamp(PAGE_BYTES, Semaphore::MAX_PERMITS),
                )),
                pages: Mutex::default(),
                tasks: tasks.clone(),
                page_reads: metrics.counter(&BACKLOG_READS, &["page"]),
                history_reads: metrics.counter(&BACKLOG_READS, &["history"]),
                bytes: metrics.gauge(&BACKLOG_BYTES, &[]),
            }),
        }
    }

    /// What follows a position, as one page.
    ///
    /// # Errors
    /// Redis does not answer, or the key can't be read.
    pub async fn page(
        &self,
        feed: Arc<Feed>,
        position: EntryId,
        proof: Proof,
    ) -> Result<Page, StoreError> {
        let question = Question {
            key: feed.key.clone(),
            epoch: feed.epoch(),
            position,
            proof,
        };
        let answer = self.shared.page(&question, &feed).await;
        // A loss is for those who wait for this answer: a failover or a new stream may undo it.
        let is_worth_keeping = matches!(answer, Ok(Page::Entries(_)));
        if !is_worth_keeping || self.shared.is_cramped() {
            self.shared.lock().remove(&question);
        }
        self.shared.keep_few();
        answer
    }

    /// Where a history begins: the id of the entry before its first, `0-0` if there is none.
    ///
    /// # Errors
    /// Redis does not answer, or the key can't be read.
    pub async fn history_start(
        &self,
        feed: &Feed,
        history: History,
        until: EntryId,
    ) -> Result<EntryId, StoreError> {
        match history {
            History::None => Ok(until),
            History::All => Ok(EntryId::ZERO),
            History::Last(count) => match feed.position_before_newest(until, count.get()) {
                Some(id) => Ok(id),
                None => self.nth_newest(feed, until, count.get()).await,
            },
            History::Since(age) => {
                let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                let first = EntryId::new(until.ms.saturating_sub(age_ms), 0);
                self.nth_newest(feed, first.predecessor(), 0).await
            }
        }
    }

    /// The id of the entry that has `newer` entries between it and `until`, which counts too.
    /// Goes back page by page: a long history must not be in memory to be counted.
    async fn nth_newest(
        &self,
        feed: &Feed,
        until: EntryId,
        newer: u64,
    ) -> Result<EntryId, StoreError> {
        let page = page_entries(feed.mean_size()) as u64;
        let (mut until, mut newer) = (until, newer);
        loop {
            self.shared.history_reads.inc();
            let wanted = page.min(newer.saturating_add(1));
            let entries = self.shared.store.newest(&feed.key, until, wanted).await?;
            let nth = usize::try_from(newer)
                .ok()
                .and_then(|newer| entries.get(newer));
            match (nth, entries.last()) {
                (Some(entry), _) => return Ok(entry.id),
                (None, Some(oldest)) if entries.len() as u64 == wanted => {
                    newer -= wanted;
                    until = oldest.id.predecessor();
                }
                _ => return Ok(EntryId::ZERO),
            }
        }
    }

    /// Forgets pages that nobody has used for a moment.
    pub fn prune(&self) {
        let now = Instant::now();
        self.shared
            .lock()
            .retain(|_, kept| now - kept.used_at < KEPT_FOR);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<Question, Kept>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page that answers a question: a kept one, or one on its way.
    fn page(self: &Arc<Self>, question: &Question, feed: &Arc<Feed>) -> SharedPage {
        let mut pages = self.lock();
        let kept = pages.entry(question.clone()).or_insert_with(|| Kept {
            page: self.read(question.clone(), feed.clone()),
            used_at: Instant::now(),
        });
        kept.used_at = Instant::now();
        kept.page.clone()
    }

    /// Reads in a task of its own: whoever asked may leave, and others wait for the same page.
    fn read(self: &Arc<Self>, question: Question, feed: Arc<Feed>) -> SharedPage {
        let reading = read_page(self.clone(), question, feed);
        let reading = self.tasks.spawn("backlog page", reading);
        let page = reading.map(|ended| {
            ended.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
        });
        page.boxed().shared()
    }

    /// Forgets pages, the one that was used least recently first, until few are kept.
    fn keep_few(&self) {
        let mut pages = self.lock();
        let mut kept: usize = pages.values().map(Kept::size).sum();
        while kept > KEPT_BYTES {
            let done = pages.iter().filter(|(_, page)| page.size() > 0);
            let Some((oldest, page)) = done.min_by_key(|(_, page)| page.used_at) else {
                return;
            };
            kept -= page.size();
            let oldest = oldest.clone();
            pages.remove(&oldest);
        }
    }

    /// Somebody may be waiting for room.
    fn is_cramped(&self) -> bool {
        self.room.available_permits() < PAGE_BYTES
    }

    /// Room for one page. Kept pages that nobody is reading give way.
    async fn room(self: &Arc<Self>) -> OwnedSemaphorePermit {
        if self.is_cramped() {
            self.lock().retain(|_, kept| kept.page.peek().is_none());
        }
        let permits = u32::try_from(PAGE_BYTES).expect("a page is small");
        let permit = self.room.clone().acquire_many_owned(permits).await;
        permit.expect("the semaphore is never closed")
    }
}

async fn read_page(
    backlog: Arc<Inner>,
    question: Question,
    feed: Arc<Feed>,
) -> Result<Page, StoreError> {
    let permit = backlog.room().await;
    let count = page_entries(feed.mean_size());
    let (entries, info) = match ask(&backlog, &question, count).await? {
        Asked::Continuous(entries, info) => (entries, info),
        Asked::Lost(reason) => return Ok(Page::Lost(reason)),
    };
    Ok(match Chunk::new(&question.key, entries, &backlog.formats) {
        Some(chunk) => {
            feed.learn_size(&chunk);
            Page::Entries(Arc::new(backlog.hold(chunk, permit)))
        }
        None => Page::Nothing {
            at: end(&question, info.as_ref()),
        },
    })
}

/// How many entries of this size make a page.
fn page_entries(mean_size: usize) -> usize {
    (PAGE_BYTES / mean_size.max(1)).clamp(16, MAX_PAGE_ENTRIES)
}

/// Where a position stands when nothing follows it. A history's beginning moves to the end of
/// the stream, which can be proven later; a proven position stays.
fn end(question: &Question, info: Option<&Option<StreamInfo>>) -> EntryId {
    match (question.proof, info) {
        (Proof::NotNeeded, Some(info)) => info.map_or(EntryId::ZERO, |info| info.last_generated),
        _ => question.position,
    }
}

enum Asked {
    /// With what was said of the stream, if that was asked.
    Continuous(Vec<crate::stream::Entry>, Option<Option<StreamInfo>>),
    Lost(LossReason),
}

/// Asks Redis what follows a position, until the answer is of one piece.
async fn ask(backlog: &Inner, question: &Question, count: usize) -> Result<Asked, StoreError> {
    let mut with_info = question.proof == Proof::NotNeeded;
    let mut last_loss = LossReason::RolledBack;
    for _ in 0..=TORN_TRIES {
        backlog.page_reads.inc();
        let read = Read {
            key: question.key.clone(),
            from: question.position,
            count: count + 1,
            with_info,
        };
        let answer = backlog.store.read(&read).await?;
        let info = answer.info;
        let verdict = match question.proof {
            Proof::Needed => continuity::judge(&Known::at(question.position), answer, count + 1),
            Proof::NotNeeded => without_proof(question.position, answer),
        };
        match verdict {
            Verdict::Continuous(entries) => return Ok(Asked::Continuous(entries, info)),
            Verdict::Lost(reason) => return Ok(Asked::Lost(reason)),
            Verdict::InfoNeeded => with_info = true,
            Verdict::Torn => {
                last_loss = info.flatten().map_or(LossReason::Deleted, |info| {
                    continuity::loss(question.position, &info)
                })
            }
        }
    }
    Ok(match question.proof {
        Proof::Needed => Asked::Lost(last_loss),
        // The newest entries were deleted by hand: there is nothing to send, and nothing to prove.
        Proof::NotNeeded => Asked::Continuous(Vec::new(), None),
    })
}

/// Everything after a position, whatever was before it. But a stream that has begun anew, with
/// lower ids, would be waited for in silence.
fn without_proof(position: EntryId, mut answer: Answer) -> Verdict {
    answer.entries.retain(|entry| entry.id > position);
    let info = answer.info.flatten();
    if info.is_some_and(|info| info.last_generated < position) {
        return Verdict::Lost(LossReason::RolledBack);
    }
    let ended_meanwhile = answer.entries.is_empty()
        && info.is_some_and(|info| info.length > 0 && info.last_generated > position);
    if ended_meanwhile {
        Verdict::Torn
    } else {
        Verdict::Continuous(answer.entries)
    }
}

impl Inner {
    /// Counts a page against its permit. The permit was for a whole page: what is too much of it
    /// goes back at once, and what is missing is taken if it is there.
    fn hold(&self, chunk: Chunk, mut permit: OwnedSemaphorePermit) -> PageChunk {
        let size = chunk.size();
        match PAGE_BYTES.checked_sub(size) {
            Some(spare) => drop(permit.split(spare)),
            None => {
                let missing = u32::try_from(size - PAGE_BYTES).unwrap_or(u32::MAX);
                if let Ok(more) = self.room.clone().try_acquire_many_owned(missing) {
                    permit.merge(more);
                }
            }
        }
        PageChunk::new(chunk, self.bytes.clone(), permit)
    }
}
