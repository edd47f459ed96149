//! `relay drain`: asks a running relay to drain.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use hyper::{Method, StatusCode};
use serde::Deserialize;

use super::admin_client::{Address, Where, ask};
use super::{Failure, say};

const PATIENCE: Duration = Duration::from_secs(5);
/// Over the length of the drain, before waiting is given up.
const MARGIN: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(super) struct Drain {
    /// Return when the last session is gone.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    place: Where,
}

/// The relay's answer to the request to drain.
#[derive(Deserialize)]
struct Draining {
    longest_ms: u64,
}

impl Drain {
    pub(super) async fn run(self, file: &Path) -> Result<(), Failure> {
        let address = self.place.address(file)?;
        let longest = start(&address).await?;
        if self.wait {
            wait(&address, longest + MARGIN).await?;
            return Ok(say("drained")?);
        }
        Ok(say("draining")?)
    }
}

/// Starts the drain or joins it, and says how long it takes at most.
async fn start(address: &Address) -> anyhow::Result<Duration> {
    let (status, body) = ask(address, Method::POST, "/drain", PATIENCE).await?;
    if status == StatusCode::FORBIDDEN {
        bail!("{address} takes this from loopback only: server.admin_listen must include it");
    }
    if status != StatusCode::ACCEPTED {
        bail!("the relay at {address} did not drain: {status}");
    }
    let draining: Draining = serde_json::from_slice(&body)
        .with_context(|| format!("what answers at {address} is no relay"))?;
    Ok(Duration::from_millis(draining.longest_ms))
}

async fn wait(address: &Address, longest: Duration) -> anyhow::Result<()> {
    match ask(address, Method::POST, "/drain?wait", longest).await {
        Ok((StatusCode::OK, _)) => Ok(()),
        Ok((status, _)) => bail!("the drain did not end well: {status}"),
        // A signal joined the drain, and its end was the process' end: nobody is left.
        Err(_) if is_gone(address).await => Ok(()),
        Err(error) => Err(error),
    }
}

async fn is_gone(address: &Address) -> bool {
    ask(address, Method::GET, "/livez", PATIENCE).await.is_err()
}
