//! When something that failed is tried again.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// Doubles each time, with jitter, up to ten seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retry {
    next: Instant,
    pause: Duration,
}

impl Retry {
    /// After the attempt that came after `failed`.
    pub(crate) fn after(failed: Option<Self>) -> Self {
        Self::pausing(failed.map_or(FIRST_PAUSE, |failed| (failed.pause * 2).min(LAST_PAUSE)))
    }

    fn pausing(pause: Duration) -> Self {
        let next = Instant::now() + pause.mul_f64(rand::rng().random_range(0.8..1.2));
        Self { next, pause }
    }

    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    pub(crate) fn wait(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    pub(crate) fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }

    #[cfg(test)]
    pub(crate) fn now() -> Self {
        Self { next: Instant::now(), pause: FIRST_PAUSE }
    }
}
