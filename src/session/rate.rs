//! How much a client may say.

use std::time::Duration;

use tokio::time::Instant;

/// How many messages a client may send: so many in each second.
pub struct MessageRate {
    most: u32,
    second: Instant,
    count: u32,
}

impl MessageRate {
    /// At most `most` in a second.
    pub fn new(most: u32) -> Self {
        Self {
            most,
            second: Instant::now(),
            count: 0,
        }
    }

    /// Counts one more, and says whether it may be.
    pub fn allows(&mut self) -> bool {
        let now = Instant::now();
        if now - self.second >= Duration::from_secs(1) {
            (self.second, self.count) = (now, 0);
        }
        self.count += 1;
        self.count <= self.most
    }
}
