//! Clients: they come, stop reading, go, and come back elsewhere with their cursor.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::chance::Chance;
use super::routes::Route;
use super::stage::RELAYS;
use super::view::{Taken, Trouble, View};
use super::world::{Phase, World};
use crate::support::client::{Client, Received};
use crate::support::token::token;
use crate::support::upgrade::{Answer, Upgrade};

/// A relay that is alive answers within this time, whatever Redis and the API do: a callback is
/// tried three times, each for two seconds, and may wait ten for its turn.
const ANSWERED: Duration = Duration::from_secs(30);
/// Redis is never away for longer, and then the log knows every id.
const SETTLED: Duration = Duration::from_secs(60);
/// Of those that stop reading the relay is left with what this does not hold.
const SMALL_BUFFER: usize = 8 * 1024;

pub(crate) struct Torn {
    world: Arc<World>,
    index: usize,
    route: &'static Route,
    streams: Vec<usize>,
    view: View,
    chance: Chance,
    phase: watch::Receiver<Phase>,
    /// Tells that the end of every stream was seen.
    reached: watch::Sender<bool>,
    token: String,
}

/// What a client is going to do on a connection.
struct Intent {
    leaves_at: Instant,
    /// Stops reading after so many frames, for this long.
    stalls: Option<(u64, Duration)>,
}

/// How a connection has ended.
enum End {
    Left,
    Ended(u16, String),
    Over,
}

/// `Err` is a violation.
type Done<T = ()> = Result<T, String>;

impl Torn {
    pub(crate) fn new(world: Arc<World>, index: usize) -> (Self, watch::Receiver<bool>) {
        let mut chance = Chance::of(world.seed, "client", index);
        let route = Route::of_client(index);
        let mut all: Vec<usize> = (0..world.log.streams()).collect();
        let streams: Vec<usize> = (0..route.streams)
            .map(|_| all.swap_remove(chance.index(all.len())))
            .collect();
        let (reached, is_reached) = watch::channel(false);
        let client = Self {
            view: View::new(world.log.clone(), route, &streams),
            phase: world.phase.subscribe(),
            token: token(&format!("client-{index}")),
            world,
            index,
            route,
            streams,
            chance,
            reached,
        };
        (client, is_reached)
    }

    /// Until the run is over, or until the first violation.
    pub(crate) async fn run(mut self) -> Done {
        let lived = self.live().await;
        lived.map_err(|what| {
            let facts = self.view.describe();
            format!(
                "client {} of {:?}: {what}\n{facts}",
                self.index, self.streams
            )
        })
    }

    async fn live(&mut self) -> Done {
        loop {
            if *self.phase.borrow() == Phase::Over {
                return Ok(());
            }
            if let Some(mut client) = self.connect().await? {
                self.world.totals.connects.add(1);
                self.view.connected();
                let intent = self.intent();
                match self.follow(&mut client, intent).await? {
                    End::Over => return Ok(()),
                    End::Left => self.leave(client).await,
                    End::Ended(code, reason) => self.ended(code, &reason)?,
                }
            }
            self.rest().await;
        }
    }

    async fn connect(&mut self) -> Done<Option<Client>> {
        let Some(address) = self.world.relay(self.chance.index(RELAYS)) else {
            return Ok(None);
        };
        if self.world.is_running() && self.chance.once_in(12) {
            self.view.forget();
        }
        let mut upgrade =
            Upgrade::new(address, &self.route.path(&self.streams)).token(self.token.as_str());
        if let Some(cursor) = self.view.cursor() {
            upgrade = upgrade.cursor(cursor);
        }
        if self.chance.once_in(2) {
            upgrade = upgrade.receive_buffer(SMALL_BUFFER);
        }
        match timeout(ANSWERED, upgrade.attempt()).await {
            Ok(Answer::Upgraded(client)) => Ok(Some(*client)),
            Ok(Answer::Dropped) => Ok(None),
            Ok(Answer::Status(response)) if response.status == 503 => {
                self.world.totals.refusals.add(1);
                Ok(None)
            }
            Ok(Answer::Status(response)) => Err(format!(
                "refused with {}: {}",
                response.status,
                response.text()
            )),
            Err(_) => Err(format!("{address} has not answered within {ANSWERED:?}")),
        }
    }

    fn intent(&mut self) -> Intent {
        // One in four is there to stay.
        let most = if self.chance.once_in(3) {
            12_000
        } else {
            2_000
        };
        let lasts = match self.index % 4 {
            0 => Duration::from_secs(3_600),
            _ => self.chance.ms(20, most),
        };
        let stalls = self
            .chance
            .once_in(3)
            .then(|| (self.chance.below(400), self.chance.ms(100, 6_000)));
        Intent {
            leaves_at: Instant::now() + lasts,
            stalls,
        }
    }

    /// Reads until the connection ends, it is time to leave, or the run is over.
    async fn follow(&mut self, client: &mut Client, intent: Intent) -> Done<End> {
        let mut frames = 0;
        loop {
            let phase = self.phase.borrow_and_update().clone();
            self.note_reached(&phase);
            let is_running = phase == Phase::Running;
            if phase == Phase::Over {
                return Ok(End::Over);
            }
            if let Some((after, lasts)) = intent.stalls
                && is_running
                && frames == after
            {
                self.world.totals.stalls.add(1);
                self.wait(lasts).await;
                frames += 1;
            }
            let received = tokio::select! {
                received = client.receive() => received,
                () = sleep_until(intent.leaves_at), if is_running => return Ok(End::Left),
                _ = self.phase.changed() => continue,
            };
            match received {
                Received::Text(text) => self.take(&text).await?,
                Received::Closed(code, reason) => return Ok(End::Ended(code, reason)),
                Received::Cut => return Ok(End::Ended(1006, String::new())),
            }
            frames += 1;
        }
    }

    async fn take(&mut self, text: &str) -> Done {
        let totals = &self.world.totals;
        let deadline = Instant::now() + SETTLED;
        let taken =
            loop {
                match self.view.take(text) {
                    Ok(taken) => break taken,
                    Err(Trouble::Violation(what)) => return Err(format!("{what}\n  in {text}")),
                    Err(Trouble::NotYet(stream, id)) => {
                        let settled = self.world.log.settled(stream, id);
                        tokio::time::timeout_at(deadline, settled).await.map_err(|_| {
                        format!("stream {stream}: nobody knows {id} after {SETTLED:?}, in {text}")
                    })?;
                    }
                }
            };
        match taken {
            Taken::Entry => totals.deliveries.add(1),
            Taken::Resync(reason) => totals.resyncs.add(&reason),
            Taken::Snapshot { is_exact } => {
                totals.snapshots.add(1);
                totals.exact_cuts.add(u64::from(is_exact));
            }
            Taken::Other => {}
        }
        Ok(())
    }

    fn note_reached(&mut self, phase: &Phase) {
        if let Phase::Quiet(last) = phase
            && self.view.has_reached(last)
        {
            self.reached.send_replace(true);
        }
    }

    /// With a close frame, or as one whose network is gone.
    async fn leave(&mut self, mut client: Client) {
        if self.chance.once_in(2) {
            client.close(1000).await;
        }
        client.vanish();
    }

    /// Which ends are allowed while everything breaks.
    fn ended(&mut self, code: u16, reason: &str) -> Done {
        self.world.totals.endings.add(&format!(
            "{code}{}{reason}",
            if reason.is_empty() { "" } else { ":" }
        ));
        match (code, reason) {
            (1006 | 1012 | 1013 | 4408, _)
            | (1011, "snapshot_timeout" | "snapshot_interrupted") => Ok(()),
            (4409, "continuity_lost") => {
                self.view.forget();
                Ok(())
            }
            _ => Err(format!("closed with {code} {reason:?}")),
        }
    }

    async fn rest(&mut self) {
        let pause = self.chance.ms(5, 400);
        self.wait(pause).await;
    }

    /// Sleeps, unless the phase changes.
    async fn wait(&mut self, duration: Duration) {
        tokio::select! {
            () = sleep(duration) => {}
            _ = self.phase.changed() => {}
        }
    }
}
