//! What must hold, played from the outside: the real binary, a real redis-server, real sockets.

#[cfg(test)]
#[path = "../support/support.rs"]
mod support;

#[cfg(test)]
mod backpressure;
#[cfg(test)]
mod callback;
#[cfg(test)]
mod continuity;
#[cfg(test)]
mod drain;
#[cfg(test)]
mod expiry;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod joining;
#[cfg(test)]
mod keepalive;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod outages;
#[cfg(test)]
mod resuming;
#[cfg(test)]
mod tokens;

/// The path of one client, and the stream that it reads by the base config.
#[cfg(test)]
const JOB: &str = "/ws/jobs/42";
#[cfg(test)]
const KEY: &str = "job:42:updates";
