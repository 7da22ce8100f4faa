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

/// How often it is looked at, how many CPUs may be in use then, and how many times in turn, for it to count as at rest.
const LOOK: Duration = Duration::from_millis(200);
const AT_REST: f64 = 0.1;
const LOOKS: u32 = 2;

/// Waits until the machine does nothing else, which is for seconds what the bed before this one left behind: the kernel takes
/// namespaces apart long after they are gone from sight. When it does not come to rest, the error is how many CPUs are in use.
pub fn comes_to_rest(deadline: Duration) -> Result<(), f64> {
    let until = Instant::now() + deadline;
    let (mut before, mut looks) = (Times::now(), 0);
    loop {
        sleep(LOOK);
        let now = Times::now();
        let used = now.used_since(&before);
        looks = if used <= AT_REST { looks + 1 } else { 0 };
        if looks == LOOKS {
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
    cpus: usize,
}

impl Times {
    /// Where the kernel does not tell, the machine rests.
    fn now() -> Self {
        Self::read(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn read(stat: &str) -> Self {
        let line = stat.lines().next().unwrap_or_default();
        let cpus = stat.lines().skip(1).take_while(|line| line.starts_with("cpu")).count();
        let times: Vec<u64> = line.split_whitespace().skip(1).filter_map(|time| time.parse().ok()).collect();
        // Those of guests are counted in those of users already; what another machine has stolen, nobody here could use.
        let all: u64 = times.iter().take(7).sum();
        let idle: u64 = times.iter().skip(3).take(2).sum();
        Self { used: all - idle, all, cpus }
    }

    fn used_since(&self, before: &Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        self.used.saturating_sub(before.used) as f64 / all as f64 * self.cpus as f64
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
        let cpus = "cpu0 1 1 1 1 1 1 1 1 1 1\ncpu1 1 1 1 1 1 1 1 1 1 1\nintr 5 cpu 1\n";
        let before = Times::read(&format!("cpu  100 0 50 1000 10 0 0 5 20 0\n{cpus}"));
        let now = Times::read(&format!("cpu  110 0 55 1070 20 0 5 50 99 0\n{cpus}"));
        assert!((now.used_since(&before) - 0.4).abs() < 1e-9);
        assert!(Times::read("").used_since(&before) < 1e-9, "not told");
    }
}
