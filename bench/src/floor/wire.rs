//! The two wires of the floor: the WebSocket handshake and its frames.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use super::redis::Value;

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const TEXT: u8 = 0x81;

/// What a handshake asks for.
pub(crate) struct Upgrade {
    /// `N` of the path `/N`.
    pub(crate) group: String,
    /// The query is `history`.
    pub(crate) wants_history: bool,
    /// The whole response.
    pub(crate) answer: String,
}

impl Upgrade {
    pub(crate) fn read(head: &[u8]) -> Option<Self> {
        let head = std::str::from_utf8(head).ok()?;
        let target = head.split(' ').nth(1)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let key = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_key = name.eq_ignore_ascii_case("sec-websocket-key");
            is_key.then(|| value.trim())
        })?;
        let accept = Sha1::new().chain_update(key).chain_update(GUID).finalize();
        Some(Self {
            group: path.trim_start_matches('/').to_owned(),
            wants_history: query == "history",
            answer: format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                STANDARD.encode(accept)
            ),
        })
    }
}

/// Frames the entries of an XREAD or XRANGE reply; the last id comes back.
pub(crate) fn push_entries(out: &mut Vec<u8>, entries: &[Value]) -> Option<String> {
    let mut last = None;
    for entry in entries {
        let Value::Array(pair) = entry else { continue };
        let [Value::Bulk(id), Value::Array(fields)] = &pair[..] else {
            continue;
        };
        push_entry(out, id, data(fields));
        last = Some(id);
    }
    last.map(|id| String::from_utf8_lossy(id).into_owned())
}

fn data(fields: &[Value]) -> &[u8] {
    let mut pairs = fields.chunks(2);
    let data = pairs.find_map(|pair| match pair {
        [Value::Bulk(name), Value::Bulk(value)] if name == b"data" => Some(&value[..]),
        _ => None,
    });
    data.unwrap_or(b"null")
}

/// One text frame: `{"id":"…","data":…}`.
fn push_entry(out: &mut Vec<u8>, id: &[u8], data: &[u8]) {
    const PIECES: [&[u8]; 3] = [b"{\"id\":\"", b"\",\"data\":", b"}"];
    let length = PIECES.concat().len() + id.len() + data.len();
    out.push(TEXT);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend(medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    for piece in [PIECES[0], id, PIECES[1], data, PIECES[2]] {
        out.extend_from_slice(piece);
    }
}
