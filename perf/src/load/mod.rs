//! The load tools. Each runs its clients on one thread in a network namespace, beside servers on threads of their own, as small
//! programs in two pods would; no client waits longer than [`DEADLINE`] for anything. Knows not what the namespaces are.

mod echo;
mod http;
mod idle;

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::timeout;

pub use echo::ping_pong;
pub use http::{Arrival, connect_each, requests, serve, serve_echo, serve_endless, stall};
pub use idle::hold;

/// For a connection, a request or an answer.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What clients saw.
#[derive(Debug, Clone)]
pub struct Seen {
    pub done: u64,
    pub failed: u64,
    /// Why the first that failed did.
    pub reason: Option<String>,
    pub elapsed: Duration,
    /// In nanoseconds.
    pub times: Histogram<u64>,
}

impl Default for Seen {
    fn default() -> Self {
        let times = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        let times = times.expect("invariant: these bounds are in order");
        Self { done: 0, failed: 0, reason: None, elapsed: Duration::ZERO, times }
    }
}

impl Seen {
    fn note(&mut self, outcome: io::Result<Duration>) {
        match outcome {
            Ok(time) => {
                self.done += 1;
                self.times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1));
            }
            Err(error) => {
                self.failed += 1;
                self.reason.get_or_insert_with(|| error.to_string());
            }
        }
    }

    pub fn per_second(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64()
    }

    /// In microseconds; of nothing it is no number.
    pub fn percentile(&self, percentile: f64) -> f64 {
        if self.times.is_empty() {
            return f64::NAN;
        }
        self.times.value_at_percentile(percentile) as f64 / 1000.0
    }
}

/// One thread, as each client and server has.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn bounded<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(DEADLINE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
