//! Waits for the head of a request. Until it is there a connection holds what has come of it and
//! no more: ten thousand heads that never end would each have the buffers of an HTTP connection.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use httparse::{EMPTY_HEADER, Request, Status};
use tokio::io::{AsyncRead, ReadBuf};

use crate::rewound::Rewound;

/// What is read at once.
const PORTION: usize = 2048;
/// As many fields as hyper takes.
const MAX_FIELDS: usize = 100;

/// Ready when the server has something to answer: a whole head, one that can't become valid, one
/// of more than `max_head` bytes, or a peer that says no more. Which of these is for the server to
/// tell.
pub(super) async fn read_head<S>(mut stream: S, max_head: usize) -> io::Result<Rewound<S>>
where
    S: AsyncRead + Unpin,
{
    let mut read = Vec::new();
    loop {
        let before = read.len();
        let count = poll_fn(|cx| poll_append(&mut stream, cx, &mut read)).await?;
        // Within a line nothing is decided: parsing a head anew for each of its bytes would take
        // the square of its length.
        let is_telling = before == 0 || read[before..].contains(&b'\n');
        if count == 0 || read.len() > max_head || (is_telling && !is_partial(&read)) {
            return Ok(Rewound::new(read, stream));
        }
    }
}

/// The buffer is on the stack: a connection that waits has none.
fn poll_append<S>(
    stream: &mut S,
    cx: &mut Context<'_>,
    read: &mut Vec<u8>,
) -> Poll<io::Result<usize>>
where
    S: AsyncRead + Unpin,
{
    let mut portion = [0; PORTION];
    let mut portion = ReadBuf::new(&mut portion);
    ready!(Pin::new(stream).poll_read(cx, &mut portion))?;
    read.extend_from_slice(portion.filled());
    Poll::Ready(Ok(portion.filled().len()))
}

fn is_partial(head: &[u8]) -> bool {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let parsed = Request::new(&mut fields).parse(head);
    matches!(parsed, Ok(Status::Partial))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const HEAD: &[u8] = b"\r\nGET /a HTTP/1.1\r\nhost: relay\r\n\r\n";
    const BEHIND: &[u8] = b"what follows";

    /// What the server reads of a client that sends these, one after the other.
    async fn read_again(portions: &[&[u8]]) -> Vec<u8> {
        let (mut client, server) = duplex(1);
        let send = async {
            for portion in portions {
                client.write_all(portion).await.unwrap();
            }
            drop(client);
        };
        let read = async {
            let mut rewound = read_head(server, 100).await.unwrap();
            let mut all = Vec::new();
            rewound.read_to_end(&mut all).await.unwrap();
            all
        };
        tokio::join!(send, read).1
    }

    #[tokio::test]
    async fn nothing_of_the_connection_is_lost() {
        let all = [HEAD, BEHIND].concat();
        for split in 0..all.len() {
            let (first, second) = all.split_at(split);
            assert_eq!(read_again(&[first, second]).await, all);
        }
    }

    #[tokio::test]
    async fn what_is_no_head_is_for_the_server_to_tell() {
        for other in [
            b"".as_slice(),
            b"GET",
            b"\x16\x03\x01",
            b"GET /a HTTP/1.1\r\nx: ",
        ] {
            assert_eq!(read_again(&[other]).await, other);
        }
    }

    #[tokio::test]
    async fn a_head_is_waited_for_until_it_is_whole_or_too_large() {
        let too_large = [&HEAD[..HEAD.len() - 2], &[b'x'; 100]].concat();
        for (sent, needed) in [(HEAD, HEAD.len()), (&too_large, 101)] {
            let (mut client, server) = duplex(sent.len());
            let mut reading = Box::pin(read_head(server, 100));
            for (index, byte) in sent[..needed].iter().enumerate() {
                let waiting = futures_util::poll!(&mut reading);
                assert!(waiting.is_pending(), "after {index} bytes");
                client.write_all(&[*byte]).await.unwrap();
            }
            assert!(futures_util::poll!(&mut reading).is_ready());
        }
    }
}
