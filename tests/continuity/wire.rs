//! Frames of a server, read back.

use bytes::Bytes;

/// The texts of whole, unmasked text messages (RFC 6455 section 5.2), end to end in these parts.
pub(crate) fn texts(parts: &[Bytes]) -> Vec<String> {
    let bytes = parts.concat();
    let mut rest = &bytes[..];
    let mut texts = Vec::new();
    while let [first, length, after @ ..] = rest {
        assert_eq!(*first, 0x81, "a whole text message");
        let (length, after) = match length {
            126 => number(after, 2),
            127 => number(after, 8),
            length => (usize::from(*length), after),
        };
        let (text, after) = after.split_at(length);
        texts.push(String::from_utf8(text.to_vec()).expect("the text is UTF-8"));
        rest = after;
    }
    assert!(rest.is_empty(), "half a header");
    texts
}

fn number(bytes: &[u8], width: usize) -> (usize, &[u8]) {
    let (number, after) = bytes.split_at(width);
    let number = number
        .iter()
        .fold(0, |number, byte| number << 8 | usize::from(*byte));
    (number, after)
}
