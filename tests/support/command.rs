//! The relay's other subcommands, run to their end.

use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::process::Process;

/// What a finished command has left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    /// Standard output, then standard error.
    pub(crate) output: String,
}

/// A subcommand that runs beside the test.
pub(crate) struct Running {
    process: Process,
    output: [std::fs::File; 2],
}

impl Running {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let output = [(); 2].map(|()| tempfile::tempfile().expect("a file for the output"));
        let [stdout, stderr] = output
            .each_ref()
            .map(|file| file.try_clone().expect("the same file twice"));
        let process = Process::spawn(
            Command::new(env!("CARGO_BIN_EXE_relay"))
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(stdout)
                .stderr(stderr),
        );
        Self { process, output }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.exited().is_none()
    }

    pub(crate) async fn finish(mut self, limit: Duration) -> Finished {
        let status = self.process.wait_exit(limit).await;
        let mut output = String::new();
        for file in &mut self.output {
            file.rewind().expect("a file can be read again");
            file.read_to_string(&mut output).expect("output is text");
        }
        Finished {
            code: status.code(),
            output,
        }
    }
}
