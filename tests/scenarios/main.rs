//! What must hold, played from the outside: the real binary, a real redis-server, real sockets.
#![cfg(test)]

#[path = "../support/support.rs"]
mod support;

mod backpressure;
mod bad_configs;
mod callback;
mod continuity;
mod drain;
mod entries;
mod exactly_once;
mod expiry;
mod flooding;
mod handshake;
mod harness;
mod heads;
mod hostile;
mod joining;
mod keepalive;
mod keys;
mod limits;
mod observing;
mod outages;
mod resuming;
mod sharing;
mod streams;
mod tokens;

/// The path of one client, and the stream that it reads by the base config.
const JOB: &str = "/ws/jobs/42";
const KEY: &str = "job:42:updates";
