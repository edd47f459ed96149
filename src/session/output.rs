//! What a session decides, for the transport to do.

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use crate::protocol::outcome::Refusal;

/// The next thing to do for a client.
pub enum Output {
    /// Send these messages.
    Messages(Batch),
    /// See whether the peer is alive.
    Ping,
    /// End the connection.
    Close(Close),
}

/// Whole messages, framed, to be written one after the other.
pub struct Batch {
    /// Bytes, mostly shared with other sessions; one part, mostly.
    pub parts: SmallVec<[Bytes; 1]>,
    /// How many messages they are.
    pub count: usize,
}

impl Batch {
    /// Messages in these parts.
    pub fn new(parts: SmallVec<[Bytes; 1]>, count: usize) -> Self {
        Self { parts, count }
    }

    /// One message.
    pub fn one(message: Bytes) -> Self {
        Self::new(smallvec![message], 1)
    }
}

/// How and why a connection ends.
#[derive(Debug, Clone, Copy)]
pub struct Close {
    /// What the client is told, and what metrics count.
    pub refusal: Refusal,
    /// How.
    pub how: How,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// A close frame, and a moment for the client's own.
    Handshake,
    /// What is written is flushed, then the connection ends without a close frame.
    Flush,
    /// At once: nothing could pass what is stuck.
    Reset,
}

impl Close {
    /// With a close frame.
    pub fn handshake(refusal: Refusal) -> Self {
        Self {
            refusal,
            how: How::Handshake,
        }
    }

    /// Without a close frame.
    pub fn flush(refusal: Refusal) -> Self {
        Self {
            refusal,
            how: How::Flush,
        }
    }

    /// At once.
    pub fn reset(refusal: Refusal) -> Self {
        Self {
            refusal,
            how: How::Reset,
        }
    }
}
