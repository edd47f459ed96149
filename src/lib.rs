//! Relay streams Redis Streams to WebSocket clients, beside an API that already exists.

pub mod auth;
pub mod config;
pub mod hub;
pub mod metrics;
pub mod protocol;
pub mod router;
pub mod secret;
pub mod session;
pub mod snapshot;
pub mod store;
pub mod stream;
pub mod tasks;
pub mod wake;
