//! `relay run`: serves clients until a signal.

use std::io;
use std::path::Path;

use relay::config::Config;
use relay::relay::Relay;
use relay::tasks::Tasks;
use relay::telemetry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::error;

use super::Failure;

pub(super) fn run(file: &Path) -> Result<(), Failure> {
    let config = Config::load(file)?;
    telemetry::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(serve(config));
    // What runs for ever ends with the process: dropped before, the reader would be taken for
    // one that has failed, and say so.
    std::mem::forget(runtime);
    ended.map_err(|failure| {
        error!("{failure:#}");
        Failure::Told
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let relay = Relay::bind(config)?;
    relay.run(signals()?).await
}

/// One message for each SIGTERM and SIGINT. More than two say nothing new.
fn signals() -> io::Result<mpsc::Receiver<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (asked, stop) = mpsc::channel(2);
    Tasks::default().spawn("signals", async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if asked.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(stop)
}
