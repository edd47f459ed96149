//! `relay health`: the exit status for a container's health check.

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use clap::ValueEnum;
use hyper::{Method, StatusCode};

use super::admin_client::{Where, ask};
use super::{Failure, say};

const PATIENCE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(super) struct Health {
    /// Ask only whether it lives, not whether it is ready.
    #[arg(long, conflicts_with = "scope")]
    live: bool,
    /// What readiness depends on; "self" leaves Redis out.
    #[arg(long, value_enum)]
    scope: Option<Scope>,
    #[command(flatten)]
    place: Where,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scope {
    #[value(name = "self")]
    Itself,
}

impl Health {
    pub(super) async fn run(self, file: &Path) -> Result<(), Failure> {
        let path = match (self.live, self.scope) {
            (true, _) => "/livez",
            (false, None) => "/readyz",
            (false, Some(Scope::Itself)) => "/readyz?scope=self",
        };
        let address = self.place.address(file)?;
        let (status, body) = ask(&address, Method::GET, path, PATIENCE).await?;
        let body = String::from_utf8_lossy(&body);
        if status != StatusCode::OK {
            return Err(anyhow!("the relay at {address} is not ready: {}", body.trim()).into());
        }
        Ok(say(body.trim())?)
    }
}
