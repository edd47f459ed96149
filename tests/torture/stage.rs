//! Redis, three relays, a proxy before each, the API: and how faults happen to them.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep};

use super::plan::{Fault, Lane, faults};
use super::routes::{COMMON, ROUTES, WAKES};
use super::world::World;
use crate::support::api::FakeApi;
use crate::support::config::Config;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::relay::Relay;

pub(crate) const RELAYS: usize = WAKES.len();
/// After a flush ids are greater than before, also of streams made anew.
const LATER: Duration = Duration::from_millis(5);
/// A drain of the torture's config takes a third of this.
const DRAINED: Duration = Duration::from_secs(10);

pub(crate) struct Stage {
    world: Arc<World>,
    pub(crate) redis: AsyncMutex<Redis>,
    links: Vec<Proxy>,
    relays: Vec<AsyncMutex<Option<Relay>>>,
    configs: Vec<Config>,
    /// What relays that have ended have printed.
    logs: Mutex<Vec<(String, Vec<String>)>>,
}

type Done<T = ()> = Result<T, String>;

/// Redis keeps what it has answered over SIGKILL: each write is in the kernel before its answer.
pub(crate) async fn redis() -> Redis {
    let keep = ["--appendonly", "yes", "--appendfsync", "no"];
    let no_rewrite = ["--auto-aof-rewrite-percentage", "0"];
    Redis::start_with(&[keep, [no_rewrite[0], no_rewrite[1], "--loglevel", "notice"]].concat())
        .await
}

impl Stage {
    pub(crate) async fn new(world: Arc<World>, redis: Redis, api: &FakeApi) -> Self {
        let mut links = Vec::new();
        let mut configs = Vec::new();
        for wake in WAKES {
            let link = Proxy::start(redis.address()).await;
            let config = Config::through(&link).with(COMMON).with(wake);
            let add = |config: Config, route: &super::routes::Route| {
                config.another_route(&route.config(&api.url("")))
            };
            configs.push(ROUTES.iter().fold(config, add));
            links.push(link);
        }
        let stage = Self {
            world,
            redis: AsyncMutex::new(redis),
            links,
            relays: (0..RELAYS).map(|_| AsyncMutex::new(None)).collect(),
            configs,
            logs: Mutex::default(),
        };
        for index in 0..RELAYS {
            stage.start_relay(index).await;
        }
        stage
    }

    /// Carries out the faults of a lane until then; what was broken is whole again at the end.
    pub(crate) async fn play(&self, lane: Lane, until: Instant) -> Done {
        for (pause, fault) in faults(self.world.seed, lane) {
            if Instant::now() + pause >= until {
                return Ok(());
            }
            sleep(pause).await;
            self.world.totals.note(&format!("{lane}: {fault:?}"));
            self.world.totals.faults.add(fault.name());
            match lane {
                Lane::Relay(index) => self.to_relay(index, fault).await?,
                Lane::Link(index) => self.to_link(index, fault).await,
                Lane::Redis => self.to_redis(fault).await,
            }
            self.world.totals.note(&format!("{lane}: over"));
        }
        Ok(())
    }

    async fn to_relay(&self, index: usize, fault: Fault) -> Done {
        let pause = match fault {
            Fault::RelayDrains(pause) => {
                self.drain_relay(index).await?;
                pause
            }
            Fault::RelayIsKilled(pause) => {
                self.world.relay_is_at(index, None);
                let relay = self.relays[index].lock().await.take();
                let mut relay = relay.expect("its lane alone ends it");
                relay.kill();
                self.keep_log(index, &relay)?;
                pause
            }
            other => unreachable!("{other:?} is not for a relay"),
        };
        sleep(pause).await;
        self.start_relay(index).await;
        Ok(())
    }

    async fn to_link(&self, index: usize, fault: Fault) {
        let link = &self.links[index];
        match fault {
            Fault::LinkBreaks => link.cut(),
            Fault::LinkIsCut(lasts) => {
                link.cut();
                sleep(lasts).await;
            }
            Fault::LinkStalls(lasts) => {
                link.stall();
                sleep(lasts).await;
            }
            Fault::LinkIsSlow { each, lasts } => {
                link.delay(each);
                sleep(lasts).await;
            }
            Fault::LinkSplits { bytes, lasts } => {
                link.split(bytes);
                sleep(lasts).await;
            }
            other => unreachable!("{other:?} is not for a link"),
        }
        link.smooth();
        link.restore();
    }

    async fn to_redis(&self, fault: Fault) {
        let world = &self.world;
        match fault {
            Fault::RedisRestarts(pause) => {
                let answered = world.answered.write().await;
                let mut redis = self.redis.lock().await;
                redis.kill();
                drop(answered);
                sleep(pause).await;
                redis.start_again().await;
            }
            Fault::RedisRestartsEmpty(pause) => {
                let _alone = world.adding.write().await;
                self.all_is_lost();
                let mut redis = self.redis.lock().await;
                redis.kill();
                redis.wipe();
                sleep(pause + LATER).await;
                redis.start_again().await;
            }
            Fault::RedisIsFlushed => {
                let _alone = world.adding.write().await;
                self.all_is_lost();
                self.redis.lock().await.run("FLUSHALL").await;
                sleep(LATER).await;
            }
            Fault::RedisStops(lasts) => {
                let redis = self.redis.lock().await;
                redis.pause();
                sleep(lasts).await;
                redis.resume();
            }
            other => unreachable!("{other:?} is not for Redis"),
        }
    }

    fn all_is_lost(&self) {
        let log = &self.world.log;
        (0..log.streams()).for_each(|stream| log.deleting(stream));
    }

    async fn start_relay(&self, index: usize) {
        let relay = Relay::start(&self.configs[index]).await;
        self.world.relay_is_at(index, Some(relay.address()));
        *self.relays[index].lock().await = Some(relay);
    }

    /// Asks it to end, and sees it end well.
    async fn drain_relay(&self, index: usize) -> Done {
        let relay = self.relays[index].lock().await.take();
        let mut relay = relay.expect("its lane alone ends it");
        relay.sigterm();
        // Clients may still come: they are told.
        let status = relay.wait_exit(DRAINED).await;
        self.world.relay_is_at(index, None);
        self.keep_log(index, &relay)?;
        match status.code() {
            Some(0) => Ok(()),
            _ => Err(format!(
                "relay {index} has ended with {status} after SIGTERM"
            )),
        }
    }

    pub(crate) async fn drain_all(&self) -> Done {
        for index in 0..RELAYS {
            self.drain_relay(index).await?;
        }
        Ok(())
    }

    fn keep_log(&self, index: usize, relay: &Relay) -> Done {
        let lines = relay.log_lines();
        let panic = lines
            .iter()
            .find(|line| line.contains("panicked at"))
            .cloned();
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("relay-{index}-{:04}.log", logs.len());
        logs.push((name, lines));
        match panic {
            Some(line) => Err(format!("relay {index} has panicked: {line}")),
            None => Ok(()),
        }
    }

    /// What is left of a run that has failed.
    pub(crate) async fn save_logs(&self, folder: &Path) -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        for (index, relay) in self.relays.iter().enumerate() {
            if let Some(relay) = &*relay.lock().await {
                self.keep_log(index, relay).ok();
            }
        }
        let logs = self
            .logs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (name, lines) in logs {
            fs::write(folder.join(name), lines.join("\n"))?;
        }
        // A lane that waits for Redis holds it; then there is nothing more to be had.
        if let Ok(redis) = self.redis.try_lock() {
            fs::copy(redis.log_file(), folder.join("redis.log"))?;
        }
        Ok(())
    }
}
