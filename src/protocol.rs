//! The wire: what a client sees of entries, snapshots and everything else.
//!
//! Messages leave this module framed, so that one encoding serves every client that needs it
//! and a transport has nothing left to do but to hand bytes to the kernel.

pub mod conflation;
pub mod encoder;
mod members;
pub mod outcome;

use std::fmt::Display;

use bytes::Bytes;
use hyper_tungstenite::tungstenite::protocol::frame::FrameHeader;
use hyper_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use serde::{Deserialize, Serialize};

use crate::config::{FormatKind, Message};
use crate::secret::Secret;

/// The subprotocol that clients offer.
pub const SUBPROTOCOL: &str = "relay.v1";

/// Why continuity was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossReason {
    /// Entries after the position have left the stream.
    Trimmed,
    /// The stream itself is gone.
    Deleted,
    /// The stream is not the one that the position came from: a failover or a restore.
    RolledBack,
    /// The client was further behind than its route allows.
    Lagged,
}

impl LossReason {
    /// As on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trimmed => "trimmed",
            Self::Deleted => "deleted",
            Self::RolledBack => "rolled_back",
            Self::Lagged => "lagged",
        }
    }
}

/// Frames that carry no entry and no snapshot.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ControlFrame<'a> {
    /// Every stream has reached the position noted at this attach.
    Live {
        /// Resumes here.
        cursor: &'a str,
    },
    /// Continuity is lost; a snapshot or the oldest entry kept follows.
    Resync {
        /// Why.
        reason: LossReason,
        /// The cursor that can't be continued.
        lost: &'a str,
    },
    /// The client lags: some entries were left out, as a newer one of the same key follows.
    Conflated {
        /// The stream that they are of.
        stream: &'a str,
        /// How many, since the last such frame.
        folded: usize,
    },
    /// What the client shows may be old, or is current again.
    Status {
        /// Which of the two.
        state: State,
        /// Milliseconds since the Unix epoch: when the relay last knew the stream's end.
        as_of: u64,
    },
    /// The relay is about to close the connection.
    Goaway {
        /// Why.
        reason: &'a str,
        /// When to come back, in milliseconds.
        retry_after_ms: u64,
    },
    /// The token ends soon.
    Expiring {
        /// How soon, in milliseconds.
        expires_in_ms: u64,
    },
    /// The answer to a client's ping.
    Pong,
}

/// What a status frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Redis does not answer.
    Degraded,
    /// Redis is back, and nothing was missed.
    Ok,
    /// The callback failed, and the route goes on without a snapshot.
    NoSnapshot,
}

impl ControlFrame<'_> {
    /// The frame as one framed message.
    pub fn framed(&self) -> Bytes {
        let text =
            serde_json::to_vec(self).expect("control frames have string keys and plain values");
        framed(&text)
    }
}

/// A snapshot as one framed message, in the format of its route.
pub fn snapshot_framed(message: &Message, reason: &str, cursor: &dyn Display, body: &str) -> Bytes {
    let text = match message.format.kind {
        // The body was checked to be JSON, reason and cursor need no escaping.
        FormatKind::Envelope { .. } => {
            format!(
                r#"{{"type":"snapshot","reason":"{reason}","cursor":"{cursor}","data":{body}}}"#
            )
        }
        FormatKind::Verbatim { .. } | FormatKind::Merge { .. } => fill(
            &message.snapshot_template,
            reason,
            &cursor.to_string(),
            body,
        ),
    };
    framed(text.as_bytes())
}

/// Replaces exactly `{body}`, `{cursor}` and `{reason}`; what is put in is not looked at again.
fn fill(template: &str, reason: &str, cursor: &str, body: &str) -> String {
    if template.is_empty() {
        return body.to_owned();
    }
    let mut filled = String::with_capacity(template.len() + body.len() + cursor.len());
    let mut rest = template;
    while let Some(brace) = rest.find('{') {
        filled.push_str(&rest[..brace]);
        rest = &rest[brace..];
        let known = [("{body}", body), ("{cursor}", cursor), ("{reason}", reason)];
        match known.iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, value)) => {
                filled.push_str(value);
                rest = &rest[name.len()..];
            }
            None => {
                filled.push('{');
                rest = &rest[1..];
            }
        }
    }
    filled.push_str(rest);
    filled
}

/// A whole text message of a server, as RFC 6455 section 5.2 frames it.
pub fn framed(text: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(text.len() + 10);
    push_header(&mut out, OpCode::Data(Data::Text), text.len());
    out.extend_from_slice(text);
    out.into()
}

/// A ping without payload.
pub fn ping_framed() -> Bytes {
    let mut out = Vec::with_capacity(2);
    push_header(&mut out, OpCode::Control(Control::Ping), 0);
    out.into()
}

/// The head of an unfragmented, unmasked frame.
fn push_header(out: &mut Vec<u8>, opcode: OpCode, payload_len: usize) {
    let header = FrameHeader {
        is_final: true,
        rsv1: false,
        rsv2: false,
        rsv3: false,
        opcode,
        mask: None,
    };
    header
        .format(payload_len as u64, out)
        .expect("writing to a Vec does not fail");
}

/// What a client may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// `{"type":"ping"}` or the bare word.
    Ping,
    /// `{"type":"auth","token":"…"}`: a token, in place of the one that ends.
    Auth(Secret),
    /// Anything else: counted, and otherwise ignored.
    Unknown,
}

impl ClientMessage {
    /// Reads the text of a message.
    pub fn parse(text: &str) -> Self {
        #[derive(Deserialize)]
        #[serde(tag = "type", rename_all = "snake_case")]
        enum Typed {
            Ping,
            Auth { token: String },
        }
        match serde_json::from_str(text) {
            Ok(Typed::Ping) => Self::Ping,
            Ok(Typed::Auth { token }) => Self::Auth(Secret::new(token)),
            Err(_) if text == "ping" => Self::Ping,
            Err(_) => Self::Unknown,
        }
    }

    /// As in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Auth(_) => "auth",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_three_placeholders_are_replaced_and_only_once() {
        let filled = fill(
            r#"{"a":{body},"c":"{cursor}","r":"{reason}","x":{y}}"#,
            "connect",
            "1-0",
            "{cursor}",
        );
        assert_eq!(filled, r#"{"a":{cursor},"c":"1-0","r":"connect","x":{y}}"#);
        assert_eq!(fill("", "connect", "1-0", "[1]"), "[1]");
    }

    #[test]
    fn lengths_are_framed_as_the_specification_says() {
        for (len, header) in [(125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            assert_eq!(framed(&vec![b'x'; len]).len(), len + header);
        }
        assert_eq!(ping_framed()[..], [0x89, 0]);
    }

    #[test]
    fn clients_can_bring_a_token() {
        let auth = |text| ClientMessage::parse(text);
        let token = ClientMessage::Auth(Secret::new("a.b.c"));
        assert_eq!(auth(r#"{"type":"auth","token":"a.b.c"}"#), token);
        assert_eq!(auth(r#"{"token":"a.b.c","x":1,"type":"auth"}"#), token);
        assert_eq!(auth(r#"{"type":"auth"}"#), ClientMessage::Unknown);
        assert_eq!(auth(r#"{"type":"auth","token":7}"#), ClientMessage::Unknown);
        assert!(!format!("{token:?}").contains("a.b.c"));
    }

    #[test]
    fn clients_can_say_ping_in_two_ways() {
        assert_eq!(ClientMessage::parse("ping"), ClientMessage::Ping);
        assert_eq!(
            ClientMessage::parse(r#"{"type":"ping"}"#),
            ClientMessage::Ping
        );
        assert_eq!(
            ClientMessage::parse(r#"{"type":"pong"}"#),
            ClientMessage::Unknown
        );
        assert_eq!(ClientMessage::parse("{"), ClientMessage::Unknown);
    }
}
