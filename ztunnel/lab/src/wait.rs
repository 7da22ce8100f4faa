//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_millis(10);

/// Looks until `condition` gives something; `None` when the deadline passed first.
pub fn poll<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = condition() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(PERIOD);
    }
}

/// Whether the condition came true before the deadline.
pub fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    poll(deadline, || condition().then_some(())).is_some()
}
