//! Streaming: each stream in turn is asked what follows the session's position.

use tracing::debug;

use super::{Batch, Done, Output, Session, Stage, begin};
use crate::config::WhenLagging;
use crate::hub::STREAM_UNREADABLE;
use crate::hub::backlog::{Page, Proof};
use crate::hub::chunk::Slice;
use crate::hub::feed::{After, Basis, Epoch, Position, Watch, now_ms};
use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::{ControlFrame, LossReason};
use crate::store::StoreError;
use crate::stream::EntryId;

/// What a session knows of one of its streams.
pub(super) struct Tracked {
    pub(super) watch: Watch,
    pub(super) position: Position,
    /// The position noted at this attach: the session is live once it has passed it.
    pub(super) target: EntryId,
    /// Entries that the feed had published when it was last asked.
    pub(super) published: u64,
    /// How many of these are behind the session; the others it has before it.
    pub(super) dealt_with: u64,
    /// The backlog said that nothing follows, and the feed has not changed since the question.
    pub(super) nothing_follows: bool,
    /// The feed has changed since the backlog was asked.
    pub(super) changed: bool,
    /// The feed has nothing more, and has not changed since: it need not be asked, which takes its
    /// lock.
    pub(super) is_settled: bool,
}

/// What a session's lag means for it.
enum Lag {
    /// Nothing.
    Bearable,
    /// It is sent the newest entry of each key only.
    Conflated,
    /// It does not go on like this: it was closed, or resyncs.
    Ended,
}

impl Session {
    /// Asks the streams in turn what follows, until one has a batch. Whether anything came of it.
    pub(super) fn advance(&mut self) -> bool {
        if !matches!(self.stage, Stage::Streaming) {
            return false;
        }
        for step in 0..self.streams.len() {
            let index = (self.turn + step) % self.streams.len();
            if self.advance_stream(index) {
                self.turn = (index + 1) % self.streams.len();
                return true;
            }
        }
        if self.work.is_none() {
            self.was_stuck = false;
        }
        // Asking may have proven the last position that was missing.
        self.tell_status() || self.tell_live()
    }

    fn advance_stream(&mut self, index: usize) -> bool {
        let stream = &mut self.streams[index];
        if stream.is_settled && self.live {
            return false;
        }
        match stream.watch.feed.after(stream.position) {
            After::Unreadable(_) => {
                self.close(STREAM_UNREADABLE);
                true
            }
            After::CaughtUp { epoch, published } => {
                stream.position.basis = Basis::Proven(epoch);
                // Noted of a stream that is no more, it might never be reached.
                stream.target = stream.target.min(stream.position.id);
                (stream.published, stream.dealt_with) = (published, published);
                stream.is_settled = true;
                false
            }
            After::Entries {
                slices,
                is_all,
                epoch,
                published,
            } => {
                stream.published = published;
                match self.look_at_lag(index) {
                    Lag::Bearable => {
                        self.send(index, &slices, epoch);
                        let stream = &mut self.streams[index];
                        stream.is_settled = is_all;
                        if is_all {
                            stream.dealt_with = published;
                        }
                    }
                    Lag::Conflated => self.send_newest_of_ring(index),
                    Lag::Ended => {}
                }
                true
            }
            After::Behind { epoch, published } => {
                stream.published = published;
                if self.work.is_some() || stream.nothing_follows {
                    return false;
                }
                match self.look_at_lag(index) {
                    Lag::Bearable | Lag::Conflated => self.ask_backlog(index, epoch),
                    Lag::Ended => {}
                }
                true
            }
        }
    }

    /// Puts a batch into the outbox and moves the position behind it.
    fn send(&mut self, index: usize, slices: &[Slice], epoch: Epoch) {
        let Some(last) = slices.last().map(Slice::last) else {
            return;
        };
        if self.live {
            self.note_latency(slices);
        }
        let batch = self.batch(index, slices);
        let entries = slices.iter().map(|slice| slice.entries().len()).sum();
        self.streams[index].pass(last, epoch, entries);
        if batch.count > 0 {
            self.outbox.push(Output::Messages(batch));
        }
    }

    fn batch(&self, index: usize, slices: &[Slice]) -> Batch {
        let format = self.route.format();
        if !self.route.encoder().needs_cursor() {
            let count = slices.iter().map(|slice| slice.message_count(format)).sum();
            return Batch::new(
                slices.iter().map(|slice| slice.messages(format)).collect(),
                count,
            );
        }
        let mut gathering = self.gather(index);
        for (id, piece) in slices.iter().flat_map(|slice| slice.pieces(format)) {
            gathering.push(id, piece);
        }
        gathering.into_batch()
    }

    /// Of the batch's oldest entry, the one that has waited longest.
    pub(super) fn note_latency(&self, slices: &[Slice]) {
        const PLAUSIBLE_MS: u64 = 3_600_000;
        let Some(oldest) = slices.first().and_then(|slice| slice.entries().first()) else {
            return;
        };
        let now = now_ms();
        if now.abs_diff(oldest.id.ms) <= PLAUSIBLE_MS {
            self.route
                .meters()
                .note_latency(now.saturating_sub(oldest.id.ms));
        }
    }

    /// Applies the route's bound on lag.
    fn look_at_lag(&mut self, index: usize) -> Lag {
        if !self.live {
            return Lag::Bearable;
        }
        self.route.meters().note_lag(self.streams[index].lag());
        if !self.is_past_max_lag(index) {
            return Lag::Bearable;
        }
        let route = self.route.clone();
        match route.slow().then {
            // A burst is before everybody for a moment: only who does not take it lags.
            WhenLagging::Close | WhenLagging::Resync if !self.was_stuck => return Lag::Bearable,
            WhenLagging::Close => self.close(Refusal::new(Outcome::TooSlow, "too_slow")),
            WhenLagging::Resync => self.lose(index, LossReason::Lagged),
            WhenLagging::Conflate(_) => return Lag::Conflated,
        }
        Lag::Ended
    }

    /// Whether the session has more entries of this stream before it than its route allows.
    /// Replaying is not lagging.
    pub(super) fn is_past_max_lag(&self, index: usize) -> bool {
        let lag = self.streams[index].lag();
        self.live && self.route.slow().max_lag.is_some_and(|most| lag > most)
    }

    fn ask_backlog(&mut self, index: usize, epoch: Epoch) {
        let stream = &mut self.streams[index];
        stream.changed = false;
        let proof = match stream.position.basis {
            Basis::Start => Proof::NotNeeded,
            Basis::Proven(_) | Basis::Unproven => Proof::Needed,
        };
        let backlog = self.route.hub().backlog().clone();
        let (feed, asked) = (stream.watch.feed.clone(), stream.position);
        self.work = Some(Box::pin(async move {
            Done::Page {
                stream: index,
                asked,
                epoch,
                answer: backlog.page(feed, asked.id, proof).await,
            }
        }));
    }

    pub(super) fn take_page(
        &mut self,
        index: usize,
        asked: Position,
        epoch: Epoch,
        answer: Result<Page, StoreError>,
    ) {
        let stream = &mut self.streams[index];
        if stream.position.id != asked.id {
            // The feed was faster: what the answer says is about a place that is behind.
            return;
        }
        match answer {
            Ok(Page::Entries(page)) => {
                let slices: Vec<Slice> = page.slice(stream.position.id).into_iter().collect();
                match self.is_conflating(index) {
                    true => self.send_newest(index, &slices, epoch),
                    false => self.send(index, &slices, epoch),
                }
                let Tracked {
                    watch, position, ..
                } = &self.streams[index];
                if watch.feed.note_proven(position.id) {
                    self.route.hub().refresh(&watch.feed);
                }
            }
            Ok(Page::Nothing { at }) => {
                stream.move_to(Position {
                    id: at,
                    basis: Basis::Proven(epoch),
                });
                // The newest entry may have been deleted by hand: then there is less to reach.
                stream.target = stream.target.min(at);
                // The feed may know less than Redis: then it is waited for, not asked again.
                stream.nothing_follows = !stream.changed;
                stream.watch.feed.note_proven(at);
                self.route.hub().refresh(&stream.watch.feed);
            }
            Ok(Page::Lost(reason)) => {
                self.route.hub().refresh(&stream.watch.feed);
                self.lose(index, reason);
            }
            Err(StoreError::Unreadable(_)) => self.close(STREAM_UNREADABLE),
            Err(StoreError::Unavailable(reason)) => {
                debug!(route = self.route.name(), %reason, "backlog can't be read, trying again");
                self.work = Some(Box::pin(begin::rest()));
            }
        }
    }

    /// Says that the session is live, once every stream has reached its position of the attach.
    pub(super) fn tell_live(&mut self) -> bool {
        let is_streaming = matches!(self.stage, Stage::Streaming);
        if self.live || !is_streaming || !self.streams.iter().all(Tracked::has_reached_target) {
            return false;
        }
        self.live = true;
        self.resyncs.in_a_row = 0;
        for stream in &mut self.streams {
            // Replaying is not lagging: lag counts from here on.
            stream.dealt_with = stream.published;
        }
        let cursor = self.cursor();
        self.tell(&ControlFrame::Live { cursor: &cursor });
        true
    }
}

impl Tracked {
    pub(super) fn new(watch: Watch) -> Self {
        let target = watch.feed.tail();
        Self {
            watch,
            position: Position {
                id: target,
                basis: Basis::Unproven,
            },
            target,
            published: 0,
            dealt_with: 0,
            nothing_follows: false,
            changed: false,
            is_settled: false,
        }
    }

    /// What the feed has after another position it has to be asked.
    pub(super) fn move_to(&mut self, position: Position) {
        self.position = position;
        self.is_settled = false;
    }

    /// Moves the position behind so many entries, of which this is the last.
    pub(super) fn pass(&mut self, last: EntryId, epoch: Epoch, entries: usize) {
        self.move_to(Position {
            id: last,
            basis: Basis::Proven(epoch),
        });
        // A page may be ahead of the feed.
        self.dealt_with = (self.dealt_with + entries as u64).min(self.published);
    }

    /// Entries that the session has before it, as far as the feed knows.
    pub(super) fn lag(&self) -> u64 {
        self.published.saturating_sub(self.dealt_with)
    }

    /// Continuity is proven up to the position, in the feed's epoch of now.
    pub(super) fn is_proven(&self) -> bool {
        self.position.basis == Basis::Proven(self.watch.feed.epoch())
    }

    fn has_reached_target(&self) -> bool {
        self.position.id >= self.target && matches!(self.position.basis, Basis::Proven(_))
    }
}
