//! Waiting, always with a deadline.

use std::time::Duration;

use tokio::time::Instant;

/// How long anything that should happen soon may take, on a machine that is busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

const PROBE_EVERY: Duration = Duration::from_millis(10);

/// Waits for a future that has to be done by the deadline.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing within {limit:?}"),
    }
}

/// Asks until there is an answer, for as long as anything may take.
pub(crate) async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(DEADLINE, what, probe).await
}

/// Asks until there is an answer.
pub(crate) async fn eventually_within<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(PROBE_EVERY).await;
    }
}
