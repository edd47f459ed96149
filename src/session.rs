//! One client from upgrade to close, independent of the transport.
//!
//! A [`Session`] decides and returns what is to be sent; the transport sends it, says what
//! arrives, and asks for the next thing when the last one is with the kernel. So a client that
//! reads slowly is asked for less often, and costs its position and what is on its way.
//!
//! The session goes through three stages: it prepares where to begin, it streams, and where
//! continuity is lost it resyncs and streams again.

mod begin;
mod conflation;
pub mod ending;
mod gathering;
mod output;
mod presence;
pub mod rate;
mod renewal;
mod resync;
mod route;
mod streaming;
mod timers;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use hyper::body::Bytes;
use smallvec::SmallVec;
use tokio::time::Instant;
use tracing::debug;

use crate::hub::backlog::Page;
use crate::hub::feed::{Epoch, Position, Watch};
use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::{ClientMessage, ControlFrame, State};
use crate::snapshot::{Callback, Snapshot};
use crate::store::StoreError;
use crate::stream::{Cursor, EntryId, StreamKeys};
use ending::Ending;
use rate::MessageRate;
use resync::Resyncs;
use streaming::Tracked;
use timers::{Due, Timers};

pub use output::{Batch, Close, How, Output};
pub use presence::Presence;
pub use renewal::{Renew, Renewed};
pub use route::ServedRoute;

/// What a session begins with.
pub struct Opening {
    /// Its route.
    pub route: Arc<ServedRoute>,
    /// The resolved keys.
    pub keys: StreamKeys,
    /// Its places at the feeds of these keys, in their order.
    pub watches: Vec<Watch>,
    /// Where it begins.
    pub start: Start,
    /// Its snapshot callback, if the route has one; asked again at each resync.
    pub callback: Option<Arc<Callback>>,
    /// When its token expires.
    pub expires_at: Option<Instant>,
    /// Verifies a fresh token; `None` where there is none to renew.
    pub renew: Option<Box<Renew>>,
    /// Counts it as present until it ends.
    pub presence: Presence,
}

/// Where a session begins.
pub enum Start {
    /// After a cursor that the client brought.
    Resume(Cursor),
    /// At the state that the API has returned.
    Snapshot(Snapshot),
    /// At these positions: the route has no snapshot.
    Now(Vec<EntryId>),
    /// At these positions: there is no snapshot, though the route has one.
    SnapshotFailed(Vec<EntryId>),
}

/// One client.
pub struct Session {
    route: Arc<ServedRoute>,
    keys: StreamKeys,
    streams: SmallVec<[Tracked; 1]>,
    callback: Option<Arc<Callback>>,
    stage: Stage,
    /// What the session waits for beside its feeds; one thing at a time.
    work: Option<Pin<Box<dyn Future<Output = Done> + Send>>>,
    /// Decided, but not yet taken by the transport.
    outbox: SmallVec<[Output; 1]>,
    timers: Timers,
    renew: Option<Box<Renew>>,
    /// A fresh token is being verified.
    renewing: Option<BoxFuture<'static, Result<Renewed, Refusal>>>,
    ending: Ending,
    /// The stream whose turn it is: a busy one must not starve a quiet one.
    turn: usize,
    live: bool,
    /// The transport was stuck since the session was last caught up.
    was_stuck: bool,
    told_degraded: bool,
    owes_pong: bool,
    messages: MessageRate,
    resyncs: Resyncs,
    closed: bool,
    presence: Presence,
}

enum Stage {
    /// It is being found out where to begin; then this is the first frame.
    Preparing(First),
    Streaming,
    Resyncing,
}

/// What comes before the first event.
enum First {
    Nothing,
    Snapshot { reason: &'static str, body: Bytes },
    SnapshotFailed,
}

/// What a session can have waited for.
enum Done {
    Prepared(Result<Vec<Position>, Refusal>),
    Page {
        stream: usize,
        /// The position asked for.
        asked: Position,
        epoch: Epoch,
        answer: Result<Page, StoreError>,
    },
    /// A new snapshot, or none where the route goes on without; then the positions it is for.
    Resynced(Result<resync::Fresh, Refusal>),
    /// Redis did not answer a moment ago; it can be asked again.
    Rested,
}

impl Session {
    /// A session that begins as its opening says.
    pub fn new(opening: Opening) -> Self {
        let route = opening.route;
        let timers = Timers::new(route.keepalive(), opening.expires_at);
        let mut session = Self {
            ending: Ending::new(route.drain()),
            keys: opening.keys,
            streams: opening.watches.into_iter().map(Tracked::new).collect(),
            callback: opening.callback,
            stage: Stage::Streaming,
            work: None,
            outbox: SmallVec::new(),
            timers,
            renew: opening.renew,
            renewing: None,
            turn: 0,
            live: false,
            was_stuck: false,
            told_degraded: false,
            owes_pong: false,
            messages: MessageRate::new(route.client().max_messages_per_second),
            resyncs: Resyncs::default(),
            closed: false,
            route,
            presence: opening.presence,
        };
        session.begin(opening.start);
        session
    }

    /// Ends the session, whose client may still be there for a moment: it is counted until this
    /// is dropped.
    pub fn leave(self) -> Presence {
        self.presence
    }

    /// The route that this session is on.
    pub fn route(&self) -> &Arc<ServedRoute> {
        &self.route
    }

    /// What to send next. Called again once that is with the kernel. After an
    /// [`Output::Close`] there is nothing more.
    ///
    /// In this order: timers and the drain (an expired token must not wait for a batch), what
    /// is decided already, the answer that is waited for, the streams.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Output> {
        loop {
            if self.closed {
                return Poll::Pending;
            }
            self.poll_renewing(cx);
            self.poll_timers(cx);
            self.poll_ending(cx);
            if !self.outbox.is_empty() {
                let output = self.outbox.remove(0);
                // Pongs come last: with the outbox empty there is none any more.
                self.owes_pong &= !self.outbox.is_empty();
                self.closed = matches!(output, Output::Close(_));
                return Poll::Ready(output);
            }
            // Before the feeds are asked: what changes after the question rings again.
            self.hear_feeds(cx);
            if let Poll::Ready(done) = self.poll_work(cx) {
                self.finish(done);
                continue;
            }
            if !self.tell_status() && !self.tell_live() && !self.advance() {
                return Poll::Pending;
            }
        }
    }

    /// What must be sent though the last output is stuck: only what ends the session at once.
    pub fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<Close> {
        if self.ending.poll_cut(cx).is_ready() {
            return Poll::Ready(Close::reset(CUT));
        }
        self.poll_renewing(cx);
        ready!(self.timers.poll_expired(cx));
        Poll::Ready(Close::reset(TOKEN_EXPIRED))
    }

    /// The transport is stuck: a page that was asked for would only take up room meanwhile. The
    /// position is where it was, so it is asked for again. Anything else goes on: a callback has a
    /// turn that others wait for.
    pub fn note_stuck(&mut self, cx: &mut Context<'_>) {
        self.was_stuck = true;
        if matches!(self.stage, Stage::Streaming) {
            self.work = None;
        } else if let Poll::Ready(done) = self.poll_work(cx) {
            self.finish(done);
        }
    }

    /// Notes that bytes went one way or the other: the peer is alive.
    pub fn note_life(&mut self) {
        self.timers.note_life();
    }

    /// Takes a text message of the client. If it is one too many, the session ends: at once, for
    /// what is decided waits for a client that may read nothing.
    #[must_use]
    pub fn receive(&mut self, text: &str) -> Option<Close> {
        let message = ClientMessage::parse(text);
        self.route.meters().note_client_message(&message);
        if !self.messages.allows() {
            return Some(Close::handshake(TOO_MANY_MESSAGES));
        }
        match message {
            // One answer for all pings that came while it could not be sent.
            ClientMessage::Ping if !self.owes_pong => {
                self.owes_pong = true;
                self.tell(&ControlFrame::Pong);
            }
            ClientMessage::Auth(token) => self.renew(token),
            ClientMessage::Ping | ClientMessage::Unknown => {}
        }
        None
    }

    fn tell(&mut self, frame: &ControlFrame<'_>) {
        if self.route.message().control {
            self.outbox
                .push(Output::Messages(Batch::one(frame.framed())));
        }
    }

    fn close(&mut self, refusal: Refusal) {
        debug!(
            route = self.route.name(),
            reason = refusal.reason,
            "session closes"
        );
        self.outbox.push(Output::Close(Close::handshake(refusal)));
    }
}

/// A token that has ended, at connect or on a live socket.
pub const TOKEN_EXPIRED: Refusal = Refusal::new(Outcome::Unauthenticated, "token_expired");

/// A client that sends too often.
pub const TOO_MANY_MESSAGES: Refusal = Refusal::new(Outcome::TooMany, "too_many_messages");

/// What is left at the end of a drain.
const CUT: Refusal = Refusal::new(Outcome::Restart, "drain");

/// The arms.
impl Session {
    fn poll_timers(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(due) = self.timers.poll_due(cx) {
            match due {
                Due::Ping => self.outbox.push(Output::Ping),
                Due::Silent => {
                    let refusal = Refusal::new(Outcome::TooSlow, "keepalive_timeout");
                    self.outbox.insert(0, Output::Close(Close::reset(refusal)));
                }
                Due::Expiring { expires_in_ms } => {
                    self.tell(&ControlFrame::Expiring { expires_in_ms })
                }
                Due::Expired => self
                    .outbox
                    .insert(0, Output::Close(Close::handshake(TOKEN_EXPIRED))),
                Due::MaxAge => self.go_away("max_age"),
            }
        }
    }

    fn poll_ending(&mut self, cx: &mut Context<'_>) {
        if self.ending.poll_cut(cx).is_ready() {
            self.outbox.insert(0, Output::Close(Close::reset(CUT)));
        } else if self.ending.poll_turn(cx).is_ready() {
            self.go_away("drain");
        }
    }

    /// Tells the client to come back, and closes.
    fn go_away(&mut self, reason: &'static str) {
        let refusal = Refusal::new(Outcome::Restart, reason);
        if self.route.ends_without_close_frame(reason) {
            self.outbox.push(Output::Close(Close::flush(refusal)));
            return;
        }
        self.tell(&ControlFrame::Goaway {
            reason,
            retry_after_ms: rand::random_range(RETRY_AFTER_MS),
        });
        self.close(refusal);
    }

    fn hear_feeds(&mut self, cx: &mut Context<'_>) {
        for stream in &mut self.streams {
            if stream.watch.listener.poll_rung(cx).is_ready() {
                stream.changed = true;
                stream.nothing_follows = false;
                stream.is_settled = false;
            }
        }
    }

    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        let Some(work) = &mut self.work else {
            return Poll::Pending;
        };
        let done = ready!(work.as_mut().poll(cx));
        self.work = None;
        Poll::Ready(done)
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Prepared(Ok(positions)) => self.start_streaming(&positions),
            Done::Prepared(Err(refusal)) => self.close(refusal),
            Done::Page {
                stream,
                asked,
                epoch,
                answer,
            } => self.take_page(stream, asked, epoch, answer),
            Done::Resynced(Ok(fresh)) => self.start_anew(fresh),
            Done::Resynced(Err(refusal)) => self.close(refusal),
            Done::Rested => {}
        }
    }

    /// Says once per outage that Redis is away, and once that it is back and that nothing of this
    /// session's streams is missing. Whether it did.
    fn tell_status(&mut self) -> bool {
        let mut feeds = self.streams.iter().map(|stream| &stream.watch.feed);
        let degraded = feeds.any(|feed| feed.is_degraded());
        if degraded == self.told_degraded {
            return false;
        }
        if !degraded && !self.streams.iter().all(Tracked::is_proven) {
            return false;
        }
        self.told_degraded = degraded;
        self.tell_state(if degraded { State::Degraded } else { State::Ok });
        true
    }

    fn tell_state(&mut self, state: State) {
        let feeds = self.streams.iter().map(|stream| stream.watch.feed.as_of());
        let as_of = feeds.min().unwrap_or_default();
        self.tell(&ControlFrame::Status { state, as_of });
    }
}

/// When a client is to come back after a goaway: spread, so that they don't all come at once.
const RETRY_AFTER_MS: std::ops::Range<u64> = 500..3_000;
