//! One client from upgrade to close, independent of the transport.

pub mod ending;
