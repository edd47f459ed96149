//! Subcommands, flags and exit codes.

mod admin_client;
mod check;
mod drain;
mod explain;
mod health;
mod run;
mod tail;
mod token;

use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use relay::config::ConfigError;
use relay::telemetry::TelemetryError;

/// Streams Redis Streams to WebSocket clients, beside the API you already have.
#[derive(Parser)]
#[command(name = "relay", version)]
pub(crate) struct Cli {
    /// The configuration.
    #[arg(
        long,
        short,
        global = true,
        value_name = "FILE",
        default_value = "relay.toml"
    )]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve clients until a signal (this is what `relay` alone does).
    Run,
    /// Check the configuration; with --live also what it points to.
    Check(check::Check),
    /// Mint a token for development, signed with the HMAC key of the configuration.
    Token(token::Token),
    /// Connect as a client and print every frame; resumes by itself.
    Tail(tail::Tail),
    /// Say why a request would be accepted or refused: exit status 0 or 1.
    Explain(explain::Explain),
    /// Ask a running relay whether it is ready: exit status 0 or 1.
    Health(health::Health),
    /// Ask a running relay to drain.
    Drain(drain::Drain),
}

/// Why a command did not do what it was asked for.
enum Failure {
    /// The configuration or the command line can't be used.
    Unusable(anyhow::Error),
    /// It went wrong while it ran.
    Runtime(anyhow::Error),
    /// It went wrong, and has been told already.
    Told,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Unusable(error.into())
    }
}

impl From<TelemetryError> for Failure {
    fn from(error: TelemetryError) -> Self {
        Self::Unusable(error.into())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Runtime(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Runtime(error.into())
    }
}

/// Runs the command, and says what went wrong.
pub(crate) fn run(cli: Cli) -> ExitCode {
    install_crypto();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told) => ExitCode::from(1),
        Err(Failure::Runtime(error)) => {
            eprintln!("relay: {error:#}");
            ExitCode::from(1)
        }
        Err(Failure::Unusable(error)) => {
            eprintln!("relay: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn execute(Cli { config, command }: Cli) -> Result<(), Failure> {
    match command.unwrap_or(Command::Run) {
        Command::Run => run::run(&config),
        Command::Check(check) => check.run(&config),
        Command::Token(token) => token.run(&config),
        Command::Tail(tail) => block_on(tail.run()),
        Command::Explain(explain) => block_on(explain.run(&config)),
        Command::Health(health) => block_on(health.run(&config)),
        Command::Drain(drain) => block_on(drain.run(&config)),
    }
}

/// One library for all TLS: two would leave rustls without a default, and it would panic.
fn install_crypto() {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("nothing was installed before");
}

/// For the commands that are clients: one thread is enough.
fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(command);
    // A look-up of a name may still be waiting in a thread of its own.
    runtime.shutdown_background();
    ended
}

/// Prints a line: what a command was asked for, as opposed to what it says meanwhile.
fn say(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
