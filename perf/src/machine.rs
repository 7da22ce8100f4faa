//! The machine that a program runs on, as it says itself.

use std::fmt;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
}

impl Machine {
    /// Of this process.
    pub fn own() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: (kib + (1 << 19)) >> 20,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// How long it is looked at, and how much of its time may be in use then, for it to count as at rest.
const LOOK: Duration = Duration::from_millis(200);
const AT_REST: f64 = 0.05;

/// Waits until the machine does nothing else, which is for seconds what the bed before this one left behind: the kernel takes
/// namespaces apart long after they are gone from sight. When it does not come to rest, the error is the share of its time in use.
pub fn comes_to_rest(deadline: Duration) -> Result<(), f64> {
    let until = Instant::now() + deadline;
    let mut before = Times::now();
    loop {
        sleep(LOOK);
        let now = Times::now();
        let used = now.used_since(&before);
        if used <= AT_REST {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(used);
        }
        before = now;
    }
}

/// Of all CPUs since the machine came up, in the kernel's units (proc_stat(5)).
struct Times {
    used: u64,
    all: u64,
}

impl Times {
    /// Where the kernel does not tell, the machine rests.
    fn now() -> Self {
        Self::read(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn read(stat: &str) -> Self {
        let line = stat.lines().next().unwrap_or_default();
        let times: Vec<u64> = line.split_whitespace().skip(1).filter_map(|time| time.parse().ok()).collect();
        // Those of guests are counted in those of users already. What another machine has stolen, nobody here used.
        let all: u64 = times.iter().take(8).sum();
        let not_used: u64 = [3, 4, 7].iter().filter_map(|at| times.get(*at)).sum();
        Self { used: all - not_used, all }
    }

    fn used_since(&self, before: &Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        self.used.saturating_sub(before.used) as f64 / all as f64
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, memory_gib, kernel } = self;
        write!(f, "{processor}, {cores} cores, {memory_gib} GiB, Linux {kernel}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_is_not_used() {
        let before = Times::read("cpu  100 0 50 1000 10 0 0 5 20 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n");
        let now = Times::read("cpu  110 0 55 1070 20 0 5 5 99 0\n");
        assert!((now.used_since(&before) - 0.2).abs() < 1e-9);
        assert!(Times::read("").used_since(&before) < 1e-9, "not told");
    }

    #[test]
    fn work_keeps_a_machine_from_rest() {
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..Machine::own().cores {
                scope.spawn(|| while !done.load(std::sync::atomic::Ordering::Relaxed) {});
            }
            let found = comes_to_rest(Duration::ZERO);
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(found.expect_err("it works") > 0.5);
        });
    }
}
