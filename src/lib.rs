//! Relay streams Redis Streams to WebSocket clients, beside an API that already exists.

pub mod admin;
pub mod auth;
pub mod config;
pub mod debounce;
pub mod drain;
pub mod hub;
pub mod listener;
pub mod metrics;
pub mod outbound;
pub mod protocol;
pub mod relay;
pub mod rewound;
pub mod router;
pub mod secret;
pub mod session;
pub mod snapshot;
pub mod store;
pub mod stream;
pub mod tasks;
pub mod telemetry;
pub mod throttle;
pub mod tls;
pub mod wake;
pub mod websocket;
