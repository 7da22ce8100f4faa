//! Which addresses nodes, pods and services of a lab have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Host numbers of pods in their node's network; those below are the node's.
pub(crate) const FIRST_POD: usize = 10;
pub(crate) const LAST_POD: usize = 250;
/// Numbers of services in the services' network; those below are for addresses that a manifest chooses itself.
pub(crate) const FIRST_SERVICE: u16 = 257;
pub(crate) const LAST_SERVICE: u16 = 0xfffe;

/// Addresses of a node, counted from 1, on the underlay: 172.30.0.0/24 and fd00:30::/64.
pub fn node_addresses(number: usize) -> (Ipv4Addr, Ipv6Addr) {
    let host = 10 + number as u16;
    (Ipv4Addr::new(172, 30, 0, host as u8), Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, host))
}

/// A host in the pod network of a node: 10.244.NODE.0/24 and fd00:244:NODE::/64.
pub fn pod_addresses(node: usize, host: usize) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(10, 244, node as u8, host as u8),
        Ipv6Addr::new(0xfd00, 0x244, node as u16, 0, 0, 0, 0, host as u16),
    )
}

/// A service's cluster addresses in 10.96.0.0/16 and fd00:96::/112.
pub(crate) fn service_addresses(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    [Ipv4Addr::new(10, 96, high, low).into(), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number).into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_addresses_of_the_documented_networks() {
        assert_eq!(
            node_addresses(2),
            (Ipv4Addr::new(172, 30, 0, 12), "fd00:30::c".parse().expect("a literal"))
        );
        assert_eq!(
            pod_addresses(17, 10),
            (Ipv4Addr::new(10, 244, 17, 10), "fd00:244:11::a".parse().expect("a literal"))
        );
        assert_eq!(service_addresses(FIRST_SERVICE).map(|ip| ip.to_string()), ["10.96.1.1", "fd00:96::101"]);
    }
}
