//! What processes took of the machine: CPU time and resident memory, as the kernel counts them.

use std::fs;
use std::io;

use nix::unistd::{SysconfVar, sysconf};

/// Of all given processes together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
}

impl Usage {
    /// A process that has ended is an error: its time would be missing.
    pub fn of(pids: &[i32]) -> io::Result<Self> {
        let ticks = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
        let mut sum = Self::default();
        for pid in pids {
            let gone = || io::Error::other(format!("process {pid} has ended"));
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| gone())?;
            let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| gone())?;
            sum.cpu_seconds += ticks_of(&stat).ok_or_else(gone)? as f64 / ticks;
            sum.resident_bytes += resident(&status).ok_or_else(gone)?;
        }
        Ok(sum)
    }
}

/// User and system time, fields 14 and 15 of proc_pid_stat(5).
fn ticks_of(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// proc_pid_status(5); who has ended has none.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_programs_do_not_shift_fields() {
        let stat = "7 (a) b (c) R 1 7 7 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 1 0 55 1 1";
        assert_eq!(ticks_of(stat), Some(300));
        assert_eq!(ticks_of("7 (a) R 1"), None);
        assert_eq!(resident("VmPeak: 9 kB\nVmRSS:\t 12 kB\n"), Some(12 * 1024));
        assert_eq!(resident("Name: x\n"), None);
    }

    #[test]
    fn work_is_seen_and_the_dead_are_an_error() {
        let own = [std::process::id() as i32];
        let before = Usage::of(&own).expect("this process lives");
        let mut sum = 0_u64;
        while Usage::of(&own).expect("it lives").cpu_seconds < before.cpu_seconds + 0.05 {
            sum = sum.wrapping_add((0..100_000).sum::<u64>());
        }
        assert!(before.resident_bytes > 0 && sum > 0);
        assert!(Usage::of(&[i32::MAX]).is_err());
    }
}
