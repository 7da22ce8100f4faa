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
    /// Soft and hard limit of open files.
    pub open_files: Option<(u64, u64)>,
    pub ipv6: bool,
    pub ipv6_loopback: bool,
    pub exists: fn(&Path) -> bool,
}

impl Host {
    pub fn discover() -> Self {
        Self {
            cpus: thread::available_parallelism().map_or(1, usize::from),
            open_files: fs::read_to_string("/proc/self/limits").ok().and_then(|text| open_files(&text)),
            ipv6: can_bind(Ipv6Addr::UNSPECIFIED),
            ipv6_loopback: can_bind(Ipv6Addr::LOCALHOST),
            exists: Path::exists,
        }
    }
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
        assert!(host.cpus >= 1 && host.open_files.is_some());
    }
}
