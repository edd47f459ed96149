//! What the scenarios are played with: a real relay, a real Redis, and everything around them
//! that can go wrong.
//!
//! Each part is started by the test that needs it, on ports of its own, and ends with it.
//! Nothing waits without a deadline, and nothing sleeps to let something happen.

pub(crate) mod api;
pub(crate) mod client;
pub(crate) mod command;
pub(crate) mod config;
pub(crate) mod http;
pub(crate) mod jwks;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod tls;
pub(crate) mod token;
pub(crate) mod upgrade;
pub(crate) mod wait;
