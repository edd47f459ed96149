//! The figures of docs/RELIABILITY.md, measured: a release build of the relay, a real
//! redis-server, real sockets. Prints each with its goal; the exit status is 1 if one is missed.
//!
//! `RELIABILITY_ONLY` names one measurement, `RELAY_BIN` a relay of another build.

#[path = "../support/support.rs"]
#[expect(dead_code, reason = "the scenarios use the rest of it")]
mod support;

mod flow;
mod history;
mod hostile;
mod machine;
mod outage;
mod report;
mod sampler;
mod stalled;
mod storm;

use std::process::ExitCode;

use machine::Machine;
use report::Report;

/// The path of one client, and the stream that it reads by the base config.
const JOB: &str = "/ws/jobs/42";
const KEY: &str = "job:42:updates";
const KIB: usize = 1024;
const MIB: u64 = 1024 * 1024;

/// How often each measurement is taken; its table says what of these figures counts.
const ROUNDS: usize = 3;

/// So that a client's end of each connection has a file descriptor too.
const OPEN_FILES: u64 = 20_000;

const MEASUREMENTS: [&str; 6] = ["stalled", "storm", "hung", "gone", "history", "hostile"];

fn main() -> ExitCode {
    let chosen = match chosen() {
        Ok(chosen) => chosen,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    rlimit::increase_nofile_limit(OPEN_FILES).expect("enough open files");
    // Before any thread is there: they all inherit the processor that is set here.
    let machine = Machine::inspect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime for the clients");
    let reports: Vec<Report> = chosen
        .iter()
        .map(|name| runtime.block_on(measure(name, &machine)))
        .collect();
    report::print(&machine, &reports);
    match reports.iter().all(Report::is_met) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Those to take: all of them, or the one that the environment names.
fn chosen() -> Result<Vec<&'static str>, String> {
    let Some(wanted) = std::env::var_os("RELIABILITY_ONLY").filter(|name| !name.is_empty()) else {
        return Ok(MEASUREMENTS.to_vec());
    };
    let found = MEASUREMENTS.iter().filter(|name| **name == wanted);
    let found: Vec<_> = found.copied().collect();
    match found.is_empty() {
        false => Ok(found),
        true => Err(format!(
            "RELIABILITY_ONLY: there is no {}; expected one of {}",
            wanted.display(),
            MEASUREMENTS.join(", ")
        )),
    }
}

async fn measure(name: &str, machine: &Machine) -> Report {
    eprintln!("{name} …");
    match name {
        "stalled" => stalled::measure(machine).await,
        "storm" => storm::measure(machine).await,
        "hung" => outage::measure(machine, outage::Kind::Hung).await,
        "gone" => outage::measure(machine, outage::Kind::Gone).await,
        "history" => history::measure(machine).await,
        "hostile" => hostile::measure(machine).await,
        _ => unreachable!("{name} is not one of {MEASUREMENTS:?}"),
    }
}
