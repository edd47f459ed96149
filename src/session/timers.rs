//! A session's timers, on one alarm clock.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::Keepalive;
use crate::wake::Registered;

/// What a timer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// A ping.
    Ping,
    /// Nothing has gone either way for too long.
    Silent,
    /// The token ends soon.
    Expiring { expires_in_ms: u64 },
    /// The token has ended.
    Expired,
    /// The connection is as old as it may become.
    MaxAge,
}

pub(super) struct Timers {
    keepalive: Keepalive,
    ping_at: Instant,
    alive_at: Instant,
    expiring_at: Option<Instant>,
    expires_at: Option<Instant>,
    max_age_at: Option<Instant>,
    alarm: Pin<Box<Sleep>>,
    /// Whom the alarm wakes.
    sleeper: Registered,
    /// The alarm is set for the token's end alone, while nothing else could be done.
    is_set_aside: bool,
}

/// How long before its end a client hears that its token expires.
const EXPIRING_AHEAD: Duration = Duration::from_secs(60);

impl Timers {
    pub(super) fn new(keepalive: Keepalive, expires_at: Option<Instant>) -> Self {
        let now = Instant::now();
        // ±20 %, so that connections of one moment don't end in one moment.
        let max_age = keepalive
            .max_age
            .map(|age| age.mul_f64(rand::random_range(0.8..1.2)));
        let mut timers = Self {
            ping_at: now + keepalive.ping,
            alive_at: now,
            expiring_at: None,
            expires_at: None,
            max_age_at: max_age.map(|age| now + age),
            keepalive,
            alarm: Box::pin(sleep_until(now)),
            sleeper: Registered::default(),
            is_set_aside: false,
        };
        timers.expire_at(expires_at);
        timers
    }

    /// There is another token, which ends then.
    pub(super) fn expire_at(&mut self, at: Option<Instant>) {
        let now = Instant::now();
        self.expires_at = at;
        // A token that is shorter than that needs no warning at the first moment.
        self.expiring_at = at
            .and_then(|at| at.checked_sub(EXPIRING_AHEAD))
            .filter(|at| *at > now);
        self.set_alarm();
    }

    /// Any byte, taken or received, counts.
    pub(super) fn note_life(&mut self) {
        self.alive_at = Instant::now();
    }

    /// The next thing whose time has come.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<Due> {
        if self.is_set_aside {
            self.set_alarm();
        }
        loop {
            ready!(self.poll_alarm(cx));
            let due = self.take_due(Instant::now());
            self.set_alarm();
            if let Some(due) = due {
                return Poll::Ready(due);
            }
        }
    }

    /// Ready when the token has ended; for a session that can't send anything any more.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.expires_at else {
            return Poll::Pending;
        };
        while Instant::now() < at {
            if self.alarm.deadline() != at {
                self.is_set_aside = true;
                self.reset_alarm(at);
            }
            ready!(self.poll_alarm(cx));
        }
        Poll::Ready(())
    }

    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sleeper.is(cx) && !self.alarm.is_elapsed() {
            return Poll::Pending;
        }
        let alarm = self.alarm.as_mut();
        self.sleeper.poll(cx, |cx| alarm.poll(cx))
    }

    fn take_due(&mut self, now: Instant) -> Option<Due> {
        if self.expires_at.take_if(|at| *at <= now).is_some() {
            return Some(Due::Expired);
        }
        if self.silent_at() <= now {
            self.alive_at = now;
            return Some(Due::Silent);
        }
        if self.max_age_at.take_if(|at| *at <= now).is_some() {
            return Some(Due::MaxAge);
        }
        if self.expiring_at.take_if(|at| *at <= now).is_some() {
            let left = self.expires_at.map_or(Duration::ZERO, |at| at - now);
            let expires_in_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            return Some(Due::Expiring { expires_in_ms });
        }
        if self.ping_at <= now {
            self.ping_at = now + self.keepalive.ping;
            return Some(Due::Ping);
        }
        None
    }

    fn silent_at(&self) -> Instant {
        self.alive_at + self.keepalive.timeout
    }

    fn set_alarm(&mut self) {
        self.is_set_aside = false;
        let optional = [self.expires_at, self.expiring_at, self.max_age_at];
        let first = optional
            .into_iter()
            .flatten()
            .fold(self.ping_at.min(self.silent_at()), Instant::min);
        self.reset_alarm(first);
    }

    /// An alarm that has rung has given its waker away, and is not to be told from one that has not
    /// once it is set anew.
    fn reset_alarm(&mut self, at: Instant) {
        self.alarm.as_mut().reset(at);
        self.sleeper.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    fn keepalive(max_age: Option<Duration>) -> Keepalive {
        Keepalive {
            ping: Duration::from_secs(25),
            timeout: Duration::from_secs(60),
            max_age,
        }
    }

    async fn next(timers: &mut Timers) -> (u64, Due) {
        let start = Instant::now();
        let due = poll_fn(|cx| timers.poll_due(cx)).await;
        (start.elapsed().as_secs(), due)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_pinged_twice_and_given_up() {
        let mut timers = Timers::new(keepalive(None), None);
        assert_eq!(next(&mut timers).await, (25, Due::Ping));
        assert_eq!(next(&mut timers).await, (25, Due::Ping));
        assert_eq!(next(&mut timers).await, (10, Due::Silent));
    }

    #[tokio::test(start_paused = true)]
    async fn life_puts_the_end_off() {
        let mut timers = Timers::new(keepalive(None), None);
        for _ in 0..10 {
            assert_eq!(next(&mut timers).await, (25, Due::Ping));
            timers.note_life();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_warns_and_ends() {
        let expires_at = Instant::now() + Duration::from_secs(70);
        let mut timers = Timers::new(keepalive(None), Some(expires_at));
        assert_eq!(
            next(&mut timers).await,
            (
                10,
                Due::Expiring {
                    expires_in_ms: 60_000
                }
            )
        );
        assert_eq!(next(&mut timers).await, (15, Due::Ping));
        timers.note_life();
        assert_eq!(next(&mut timers).await, (25, Due::Ping));
        assert_eq!(next(&mut timers).await, (20, Due::Expired));
    }

    #[tokio::test(start_paused = true)]
    async fn timers_go_on_after_a_time_of_being_stuck() {
        let expires_at = Instant::now() + Duration::from_secs(3_600);
        let mut timers = Timers::new(keepalive(None), Some(expires_at));
        let stuck = poll_fn(|cx| timers.poll_expired(cx));
        let end = tokio::time::timeout(Duration::from_secs(30), stuck).await;
        assert!(end.is_err(), "the token has not ended");
        assert_eq!(next(&mut timers).await, (0, Due::Ping));
        timers.note_life();
        assert_eq!(next(&mut timers).await, (25, Due::Ping));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fresh_token_in_the_moment_of_a_warning_keeps_the_timers_going() {
        let warned_in = Duration::from_secs(20);
        let expires_at = Instant::now() + warned_in + EXPIRING_AHEAD;
        let mut timers = Timers::new(keepalive(None), Some(expires_at));
        let waiting = poll_fn(|cx| Poll::Ready(timers.poll_due(cx).is_pending()));
        assert!(waiting.await);
        tokio::time::advance(warned_in + Duration::from_millis(1)).await;
        timers.expire_at(Some(expires_at + Duration::from_secs(3_600)));
        let next = tokio::time::timeout(Duration::from_secs(100), next(&mut timers));
        assert_eq!(next.await, Ok((4, Due::Ping)));
    }

    #[tokio::test(start_paused = true)]
    async fn ages_are_spread_by_a_fifth() {
        let mut timers = Timers::new(keepalive(Some(Duration::from_secs(10))), None);
        let (seconds, due) = next(&mut timers).await;
        assert_eq!(due, Due::MaxAge);
        assert!((8..=12).contains(&seconds), "{seconds}");
    }
}
