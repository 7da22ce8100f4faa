//! A bound on the sockets made per second over all pods. An answer that would exceed it is late, never missing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const PER_SECOND: f64 = 16_384.0;

/// Each take moves the time at which the next may begin.
#[derive(Clone)]
pub(super) struct Rate(Arc<Mutex<Instant>>);

impl Default for Rate {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Rate {
    pub(super) async fn take(&self, count: usize) {
        let start = {
            let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let start = (*next).max(Instant::now());
            *next = start + Duration::from_secs_f64(count as f64 / PER_SECOND);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}
