//! One WebSocket client: from the bytes it receives to what they mean.

use memchr::memmem;

use super::marker::Marker;
use super::sequence::{Arrival, Sequence};
use super::transport::Transport;

/// Of the key `dGhlIHNhbXBsZSBub25jZQ==`, both from RFC 6455.
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Less than what is read at a time, so that a partial frame leaves room for more.
const LARGEST_FRAME: u64 = 512 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Waiting,
    Connecting,
    Upgrading,
    Open,
    Ended,
}

pub(crate) struct Client {
    pub(crate) transport: Option<Transport>,
    pub(crate) stage: Stage,
    /// When it began to connect.
    pub(crate) started_ns: u64,
    /// What came of a frame that is not whole yet.
    pub(crate) partial: Vec<u8>,
    pub(crate) sequences: Box<[Sequence]>,
    pub(crate) group: usize,
    /// Entries it has.
    pub(crate) delivered: u64,
}

/// What a client was told.
pub(crate) enum Heard {
    Upgraded,
    Entry {
        at_ns: u64,
        arrival: Arrival,
    },
    /// An entry of a stream that is not its own.
    Misrouted,
    /// To be answered with these bytes.
    Ping(Vec<u8>),
    /// A message without an entry, as `live`.
    Other,
    /// The end, and why.
    End(String),
}

impl Client {
    pub(crate) fn new(group: usize, streams: usize) -> Self {
        Self {
            transport: None,
            stage: Stage::Waiting,
            started_ns: 0,
            partial: Vec::new(),
            sequences: (0..streams).map(|_| Sequence::default()).collect(),
            group,
            delivered: 0,
        }
    }

    /// Takes the first thing off `bytes`; `None` if it is not whole yet.
    pub(crate) fn next(&mut self, bytes: &mut &[u8]) -> Option<Heard> {
        if self.stage == Stage::Upgrading {
            return self.upgraded(bytes);
        }
        let (first, payload) = match frame(bytes) {
            Ok(frame) => frame?,
            Err(what) => return Some(Heard::End(what.to_owned())),
        };
        Some(match first {
            0x81 => self.message(payload),
            0x88 => Heard::End(close(payload)),
            0x89 => Heard::Ping(masked(10, payload)),
            0x8a => Heard::Other,
            _ => Heard::End(format!("a frame that begins with {first:#x}")),
        })
    }

    fn upgraded(&mut self, bytes: &mut &[u8]) -> Option<Heard> {
        let end = memmem::find(bytes, b"\r\n\r\n")?;
        let (head, rest) = bytes.split_at(end + 4);
        *bytes = rest;
        if !head.starts_with(b"HTTP/1.1 101 ") || memmem::find(head, ACCEPT).is_none() {
            let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
            return Some(Heard::End(String::from_utf8_lossy(line).into_owned()));
        }
        self.stage = Stage::Open;
        Some(Heard::Upgraded)
    }

    fn message(&mut self, message: &[u8]) -> Heard {
        let Some(marker) = Marker::find(message) else {
            return Heard::Other;
        };
        let first = self.group * self.sequences.len();
        let own = marker.stream.checked_sub(first);
        let Some(sequence) = own.and_then(|own| self.sequences.get_mut(own)) else {
            return Heard::Misrouted;
        };
        Heard::Entry {
            at_ns: marker.at_ns,
            arrival: sequence.hear(marker.number),
        }
    }
}

/// A whole frame from a client, masked with zeros, so that its payload is as it is.
pub(crate) fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    // Control frames alone are sent, and have at most 125 bytes.
    let length = u8::try_from(payload.len().min(125)).unwrap_or(125);
    let mut out = vec![0x80 | opcode, 0x80 | length, 0, 0, 0, 0];
    out.extend_from_slice(&payload[..usize::from(length)]);
    out
}

/// The first byte and the payload of the frame at the front, which is taken off.
fn frame<'a>(bytes: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, &'static str> {
    let (first, short, after) = match *bytes {
        [first, short, after @ ..] => (*first, *short, after),
        _ => return Ok(None),
    };
    let (length, after) = match (short, after) {
        (0..126, _) => (u64::from(short), after),
        (126, [a, b, after @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), after),
        (127, [a, b, c, d, e, f, g, h, after @ ..]) => {
            let length = [*a, *b, *c, *d, *e, *f, *g, *h];
            (u64::from_be_bytes(length), after)
        }
        (126 | 127, _) => return Ok(None),
        (128.., _) => return Err("a masked frame"),
    };
    if length > LARGEST_FRAME {
        return Err("a frame of more than 512 KiB");
    }
    let Some((payload, rest)) = after.split_at_checked(length as usize) else {
        return Ok(None);
    };
    *bytes = rest;
    Ok(Some((first, payload)))
}

fn close(payload: &[u8]) -> String {
    match payload {
        [a, b, reason @ ..] => {
            let code = u16::from_be_bytes([*a, *b]);
            format!("close {code} {}", String::from_utf8_lossy(reason))
        }
        _ => "close without a code".to_owned(),
    }
}
