//! Which addresses nodes and pods have, and which a lab file may give to a pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ztunnel_model::codec::located::{Mistake, Place};

/// First host number of a pod's address; those below are the node's.
pub(super) const FIRST_POD: usize = 10;
const LAST_POD: usize = 250;
const NETWORK: usize = 0;
const GATEWAY: usize = 1;
const BROADCAST: usize = 255;

/// Addresses of a node on the underlay.
pub fn node_addresses(number: usize) -> (Ipv4Addr, Ipv6Addr) {
    let host = 10 + number as u16;
    (Ipv4Addr::new(172, 30, 0, host as u8), Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, host))
}

/// A host in the pod network of a node.
pub fn pod_addresses(node: usize, host: usize) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(10, 244, node as u8, host as u8),
        Ipv6Addr::new(0xfd00, 0x244, node as u16, 0, 0, 0, 0, host as u16),
    )
}

/// The file's own, or the next of the node's network.
pub(super) fn of_pod(
    texts: &[String],
    node: usize,
    host: usize,
    place: &Place<'_>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<IpAddr> {
    if texts.is_empty() {
        if host > LAST_POD {
            mistakes.push(place.mistake("the node has no address left; a node has room for 240 pods"));
        }
        let (four, six) = pod_addresses(node, host);
        return vec![four.into(), six.into()];
    }
    let mut addresses = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let usable = match text.parse() {
            Ok(ip) => usable(ip, node),
            Err(_) => Err(format!("\"{text}\" is not an IP address")),
        };
        match usable {
            Ok(ip) => addresses.push(ip),
            Err(reason) => mistakes.push(place.key("addresses").index(index).mistake(reason)),
        }
    }
    addresses
}

/// The address, or why no pod of this node can have it.
fn usable(ip: IpAddr, node: usize) -> Result<IpAddr, String> {
    let is_host = |host| {
        let (four, six) = pod_addresses(node, host);
        ip == IpAddr::V4(four) || ip == IpAddr::V6(six)
    };
    if !in_network(ip, node) {
        Err(format!("{ip} is not in the node's networks 10.244.{node}.0/24 and fd00:244:{node:x}::/64"))
    } else if is_host(NETWORK) {
        Err(format!("{ip} stands for the network itself, no pod can have it"))
    } else if is_host(GATEWAY) {
        Err(format!("{ip} is the node's own, the gateway of its pods"))
    } else if ip.is_ipv4() && is_host(BROADCAST) {
        Err(format!("{ip} is the network's broadcast address, no pod can have it"))
    } else {
        Ok(ip)
    }
}

fn in_network(ip: IpAddr, node: usize) -> bool {
    let (four, six) = pod_addresses(node, NETWORK);
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == four.octets()[..3],
        IpAddr::V6(ip) => ip.segments()[..4] == six.segments()[..4],
    }
}
