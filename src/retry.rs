//! Retries with pauses between the tries.
//!
//! Our own calls have no jitter: the replicas of a network fail at different moments anyway, and
//! watches of Kubernetes use the back-off of their client.

use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The pauses between tries. Each is twice as long as the one before, up to the longest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
}

// === impl Backoff ===

impl Backoff {
    /// A first pause that doubles up to the longest.
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, tries: 0 }
    }

    /// The same pause each time.
    pub(crate) const fn fixed(pause: Duration) -> Self {
        Self::new(pause, pause)
    }

    /// The pause before the next try.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.tries).unwrap_or(u32::MAX);
        self.tries = self.tries.saturating_add(1);
        self.longest.min(self.first.saturating_mul(factor))
    }

    /// Starts again with the first pause.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }

    /// Sleeps until the next try.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next_pause()).await;
    }

    /// Sleeps until the next try. False if `stop` came first.
    pub(crate) async fn wait_unless(&mut self, stop: &CancellationToken) -> bool {
        stop.run_until_cancelled(self.wait()).await.is_some()
    }
}

/// Calls until it succeeds, or until `may_retry` refuses an error, which is then returned.
pub(crate) async fn retry<T, E, F>(
    mut backoff: Backoff,
    mut call: impl FnMut() -> F,
    mut may_retry: impl FnMut(&E) -> bool,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    loop {
        match call().await {
            Err(error) if may_retry(&error) => backoff.wait().await,
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(10);

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again_after_a_reset() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        let pauses: Vec<_> = (0..10).map(|_| backoff.next_pause().as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert!((0..100).all(|_| backoff.next_pause() == LONGEST), "no overflow");

        backoff.reset();
        assert_eq!(backoff.next_pause(), FIRST);
        let mut fixed = Backoff::fixed(FIRST);
        assert_eq!([fixed.next_pause(), fixed.next_pause()], [FIRST, FIRST]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_retried_until_it_succeeds() {
        let (start, mut calls) = (Instant::now(), 0);
        let call = || {
            calls += 1;
            std::future::ready(if calls < 4 { Err("not yet") } else { Ok(calls) })
        };

        assert_eq!(retry(Backoff::new(FIRST, LONGEST), call, |_| true).await, Ok(4));
        assert_eq!(start.elapsed(), 7 * FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_may_not_be_retried_is_returned_at_once() {
        let (start, mut errors) = (Instant::now(), ["transient", "final"].into_iter());
        let call = || std::future::ready(Err::<(), _>(errors.next().expect("two calls")));

        let done = retry(Backoff::fixed(FIRST), call, |error| *error == "transient").await;

        assert_eq!((done, start.elapsed()), (Err("final"), FIRST));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_early_on_a_stop() {
        let (start, stop) = (Instant::now(), CancellationToken::new());
        let mut backoff = Backoff::fixed(LONGEST);
        let stopping = async {
            tokio::time::sleep(FIRST).await;
            stop.cancel();
        };

        let (waited, ()) = tokio::join!(backoff.wait_unless(&stop), stopping);

        assert_eq!((waited, start.elapsed()), (false, FIRST));
    }
}
