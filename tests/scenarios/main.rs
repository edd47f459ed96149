//! What must hold, played from the outside: the real binary, a real redis-server, real sockets.

#[cfg(test)]
#[path = "../support/support.rs"]
mod support;

#[cfg(test)]
mod harness;
