//! What this host has.

use std::fs;
use std::net::{Ipv6Addr, UdpSocket};
use std::path::Path;
use std::thread;

/// Found out once at start; tests write it by hand.
#[derive(Clone, Debug)]
pub struct Host {
    /// Logical CPUs that this process may use.
    pub cpus: usize,
    /// Those that the host may come to have, whoever may use them.
    pub all_cpus: usize,
    /// Soft and hard limit of open files.
    pub open_files: Option<(u64, u64)>,
    pub ipv6: bool,
    pub ipv6_loopback: bool,
    pub exists: fn(&Path) -> bool,
}

impl Host {
    pub fn discover() -> Self {
        Self {
            cpus: Self::cpus(),
            all_cpus: fs::read_to_string("/sys/devices/system/cpu/possible")
                .ok()
                .and_then(|text| listed(&text))
                .unwrap_or_else(Self::cpus),
            open_files: fs::read_to_string("/proc/self/limits").ok().and_then(|text| open_files(&text)),
            ipv6: can_bind(Ipv6Addr::UNSPECIFIED),
            ipv6_loopback: can_bind(Ipv6Addr::LOCALHOST),
            exists: Path::exists,
        }
    }

    /// Logical CPUs that this process may use now: affinity and quota of its cgroup.
    pub fn cpus() -> usize {
        thread::available_parallelism().map_or(1, usize::from)
    }

    /// Bytes of memory that this process may use now: the least of what its cgroup and those above it grant (version 2).
    pub fn memory_limit() -> Option<u64> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = Path::new("/sys/fs/cgroup").join(cgroup(&own)?);
        let limit = |folder: &Path| fs::read_to_string(folder.join("memory.max")).ok()?.trim().parse().ok();
        own.ancestors().take_while(|folder| folder.starts_with("/sys/fs/cgroup")).filter_map(limit).min()
    }
}

/// The path in the one hierarchy of version 2, relative to its root (cgroups(7)).
fn cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// How many CPUs a list such as `0-3,6` names.
fn listed(text: &str) -> Option<usize> {
    let one = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first).map(|more| more + 1)
    };
    text.trim().split(',').map(one).sum()
}

/// Asking the kernel is surer than reading its switches: it covers a kernel without IPv6, a disabled interface and a
/// filtered system call alike.
fn can_bind(ip: Ipv6Addr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

fn open_files(limits: &str) -> Option<(u64, u64)> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut columns = line.split_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((columns.next()??, columns.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_limit_of_open_files() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 unlimited            files     \n";
        assert_eq!(open_files(text), Some((1024, u64::MAX)));
        assert_eq!(open_files("nothing"), None);
        let host = Host::discover();
        assert!(host.cpus >= 1 && host.all_cpus >= 1 && host.open_files.is_some());
    }

    #[test]
    fn reads_cgroups_and_lists_of_cpus() {
        assert_eq!(cgroup("0::/kubepods.slice/pod1\n"), Some("kubepods.slice/pod1"));
        assert_eq!(cgroup("3:memory:/x\n0::/\n"), Some(""));
        assert_eq!(cgroup("3:memory:/x\n"), None);
        assert_eq!(["0\n", "0-3,6", "0-63", "", "3-1"].map(listed), [Some(1), Some(5), Some(64), None, None]);
    }
}
