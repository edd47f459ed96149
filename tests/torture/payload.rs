//! What is in an entry: whose it is, its number, and a checksum over all of it.

use serde::Deserialize;

use super::chance::Chance;

/// Most are small, one in this many is not.
const LARGE_ONCE_IN: u64 = 200;

/// As it comes back from a relay.
#[derive(Debug, Deserialize)]
pub(crate) struct Payload<'a> {
    /// The index of its stream.
    pub(crate) of: usize,
    /// Counts the entries of the stream from 1.
    pub(crate) n: u64,
    sum: u64,
    fill: &'a str,
}

impl Payload<'_> {
    pub(crate) fn is_whole(&self, seed: u64) -> bool {
        self.sum == sum(seed, self.of, self.n, self.fill)
    }
}

/// The payload of this entry; the same whenever it is asked for.
pub(crate) fn text(seed: u64, of: usize, n: u64) -> String {
    let mut chance = Chance::of(seed ^ n, "payload", of);
    let most = if chance.once_in(LARGE_ONCE_IN) {
        4_000
    } else {
        120
    };
    let letter = |chance: &mut Chance| char::from(b'a' + (chance.number() % 26) as u8);
    let fill: String = (0..chance.below(most))
        .map(|_| letter(&mut chance))
        .collect();
    let sum = sum(seed, of, n, &fill);
    format!(r#"{{"of":{of},"n":{n},"sum":{sum},"fill":"{fill}"}}"#)
}

/// FNV-1a.
fn sum(seed: u64, of: usize, n: u64, fill: &str) -> u64 {
    let head = [seed, of as u64, n].map(u64::to_be_bytes);
    let bytes = head.iter().flatten().chain(fill.as_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
