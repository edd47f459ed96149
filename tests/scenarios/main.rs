//! What must hold, played from the outside: the real binary, a real redis-server, real sockets.
//!
//! Most of it came from what systems of this kind got wrong. Each such scenario has a number, by
//! which the names of its tests begin: `s10d_…`. `tests/tidy.rs` sees to it that each has a test.
//!
//! | number | scenario |
//! |---|---|
//! | 01 | a late joiner: snapshot, history, live, what comes next |
//! | 02 | a stream that does not exist yet |
//! | 03 | entries that come during the snapshot |
//! | 04 | entries that are published before their state is committed |
//! | 05 | the API declares the cursor of its state |
//! | 06 | a history is the newest entries |
//! | 07 | the publisher deletes the stream at its end |
//! | 08 | the cursor of any frame resumes right after it |
//! | 09 | malformed cursors are none |
//! | 10 | what is trimmed, deleted, emptied, rolled back is told, and nothing else is |
//! | 10a | a burst over MAXLEN that one pull sees |
//! | 10b | added, deleted and added again at once |
//! | 10c | a stream of one entry |
//! | 10d | a failover to a replica that lacks entries |
//! | 10e | a stream's first entries come while a client is away |
//! | 10f | the entry at the cursor is deleted |
//! | 10g | the socket drops between a resync and its snapshot |
//! | 10h | a declared cursor that can't be used |
//! | 11 | from one relay to another |
//! | 12 | reconnect storms, and a shared callback |
//! | 13 | clients that stop reading, and a thousand at full speed |
//! | 14 | the write timeout |
//! | 15 | a client that lags |
//! | 16 | a long history |
//! | 17 | few connections to Redis for many sockets and keys |
//! | 18 | a new key among many, with tracking and without |
//! | 19 | a key that can't be read |
//! | 20 | Redis is killed, paused, cut, restarted, demoted |
//! | 21 | Redis stalls, forgets what it tracks, is away when a client comes |
//! | 22 | tokens, good and bad |
//! | 23 | tokens that end while a socket is open |
//! | 24 | the callback decides |
//! | 25 | hostile paths |
//! | 26 | origins |
//! | 27 | floods and slow handshakes |
//! | 28 | drains |
//! | 29 | idle sockets |
//! | 30 | bad entries |
//! | 31 | bad configs |
#![cfg(test)]

#[path = "../support/support.rs"]
mod support;

mod abuse;
mod acl;
mod backpressure;
mod bad_configs;
mod callback;
mod continuity;
mod crowds;
mod drain;
mod entries;
mod exactly_once;
mod expiry;
mod failover;
mod flooding;
mod handshake;
mod harness;
mod heads;
mod hostile;
mod joining;
mod jwks;
mod keepalive;
mod key_files;
mod keys;
mod leaks;
mod limits;
mod observing;
mod outages;
mod renewal;
mod resuming;
mod sharing;
mod streams;
mod tls;
mod token_matrix;
mod tokens;

/// The path of one client, and the stream that it reads by the base config.
const JOB: &str = "/ws/jobs/42";
const KEY: &str = "job:42:updates";
