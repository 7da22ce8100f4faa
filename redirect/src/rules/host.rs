//! Our table in the node's own namespace: probes of the kubelet, and the quarantine.
//!
//! ```text
//! guard    (prerouting, raw)  from a probe's address: dropped, nobody else may use it; from a quarantined pod: dropped
//! forward  (after DNAT)       to a quarantined pod: dropped; to a probe's address: an answer that nobody waits for, dropped
//! output                      to a quarantined pod: dropped, the kubelet's probes too
//! probes   (postrouting nat)  first packet of what the kubelet's user on this node opens to a captured pod: gets the
//!                             probe's address, which the rules in the pod let through
//! ```
//!
//! Only packets that a socket of this node sends have a user, so what is forwarded (other pods, NodePorts) never gets the
//! probe's address. A process of that user that is no kubelet does: in the host network one trusts root.
//!
//! A quarantined pod sends and receives no TCP at all: its probes fail, which is how its workload's owner sees it. Who is in:
//! - A strict pod for whom capture could not be installed, repaired or proven for 2 s. Out as soon as it is.
//! - *Reboot*: there is no table and no rule. Pods of the last boot are captured one by one; who fails for 2 s goes in.
//! - *Agent starts again, or was away*: the table and the rules in the pods stayed. Until the source has told every pod,
//!   members are added and none is let go, so that nobody comes out whom this agent has not judged yet.
//! - A pod that cannot be captured because an older proxy still has its ports goes not in while its rules are whole: they
//!   lead to that proxy or nowhere, and what is closed needs no second lock.
//! - *Two agents, an old and a new one*: each replaces all members by the ones that it wants, from the same source, so they
//!   agree once both have judged; before, the newer one only adds.
//! - Addresses of the node itself never go in, nor does one that a well captured pod has (an address that was used again).
//! - Rules that can only be seen here do not exist: a CNI that carries packets past the node's netfilter has no quarantine.
//!
//! A second guard that lets only the mesh's own traffic out of strict pods was considered and not made: what the proxy
//! passes through in plaintext, by the mesh's decision, looks from outside as what the app would send past it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::exchange::{Error, Exchange};
use super::expression::Comparison::Equal;
use super::expression::{End, Expressions};
use super::form::Form;
use super::message::{Attributes, CREATE, DUMP, Message, attributes};
use super::nftables::{
    self, FAMILY_INET, HOOK_OUTPUT, HOOK_PREROUTING, PROBE_V4, PROBE_V6, operation, request,
};

pub const TABLE: &str = "ztunnel-host";

const HOOK_FORWARD: u32 = 2;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_RAW: i32 = -300;
/// Before what masquerades, which would take the connection first.
const PRIORITY_BEFORE_SRCNAT: i32 = 99;

/// Elements of one message; its attributes are at most 64 KiB long.
const MOST_ELEMENTS: usize = 1000;

/// Addresses by what is done about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Captured: the kubelet may probe them.
    pub pods: BTreeSet<IpAddr>,
    pub quarantined: BTreeSet<IpAddr>,
}

#[derive(Clone, Copy)]
struct Set {
    name: &'static str,
    v6: bool,
    members: fn(&Members) -> &BTreeSet<IpAddr>,
    members_mut: fn(&mut Members) -> &mut BTreeSet<IpAddr>,
}

const SETS: [Set; 4] = [
    Set { name: "pods_v4", v6: false, members: |all| &all.pods, members_mut: |all| &mut all.pods },
    Set { name: "pods_v6", v6: true, members: |all| &all.pods, members_mut: |all| &mut all.pods },
    Set {
        name: "quarantined_v4",
        v6: false,
        members: |all| &all.quarantined,
        members_mut: |all| &mut all.quarantined,
    },
    Set {
        name: "quarantined_v6",
        v6: true,
        members: |all| &all.quarantined,
        members_mut: |all| &mut all.quarantined,
    },
];

/// Puts the table with these members into the namespace of the calling thread, in place of what it held before, in one step.
pub fn install(probe_uid: u32, members: &Members) -> Result<(), Error> {
    let mut batch =
        vec![nftables::add_table(TABLE), nftables::delete_table(TABLE), nftables::add_table(TABLE)];
    for (set, id) in SETS.into_iter().zip(1..) {
        batch.push(add_set(set, id));
        batch.extend(add_elements(set, members));
    }
    for (name, kind, hook, priority, rules) in chains(probe_uid) {
        batch.push(nftables::add_chain(TABLE, name, kind, hook, priority));
        batch
            .extend(rules.into_iter().map(|(subject, rule)| nftables::add_rule(TABLE, name, subject, &rule)));
    }
    nftables::commit(batch)
}

/// Replaces all members in one step.
pub fn replace(members: &Members) -> Result<(), Error> {
    let mut batch = Vec::new();
    for set in SETS {
        let all = Attributes::new().text(1, TABLE).text(2, set.name);
        batch.push(request(format!("members of {}", set.name), libc::NFT_MSG_DELSETELEM, 0).with(&all));
        batch.extend(add_elements(set, members));
    }
    nftables::commit(batch)
}

/// Who is in the table of the calling thread's namespace; nobody where there is none.
pub fn members() -> Result<Members, Error> {
    let mut exchange = Exchange::open(NETLINK_NETFILTER)?;
    let mut found = Members::default();
    for set in SETS {
        let which = Attributes::new().text(1, TABLE).text(2, set.name);
        let header = nftables::family_header(FAMILY_INET, 0);
        let kind = operation(libc::NFT_MSG_GETSETELEM);
        let request = Message::new(format!("members of {}", set.name), kind, DUMP, &header).with(&which);
        match exchange.dump(&request) {
            Ok(bodies) => (set.members_mut)(&mut found).extend(bodies.iter().flat_map(|body| elements(body))),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// What the table is like on this kernel, without members.
pub fn form(probe_uid: u32) -> Result<Form, Error> {
    Form::in_private(move || install(probe_uid, &Members::default()), TABLE)
}

/// Removes the table from the namespace of the calling thread, if it is there.
pub fn withdraw() -> Result<(), Error> {
    nftables::remove(TABLE)
}

type Chain = (&'static str, &'static str, u32, i32, Vec<(&'static str, Expressions)>);

fn chains(probe_uid: u32) -> [Chain; 4] {
    let rule = Expressions::new;
    let quarantined_v4 = |end| rule().tcp().in_set_v4(end, "quarantined_v4").drop();
    let quarantined_v6 = |end| rule().tcp().in_set_v6(end, "quarantined_v6").drop();
    let guard = vec![
        ("forged probes, IPv4", rule().address_v4(End::Source, Equal, PROBE_V4).drop()),
        ("forged probes, IPv6", rule().address_v6(End::Source, Equal, PROBE_V6).drop()),
        ("from the quarantined, IPv4", quarantined_v4(End::Source)),
        ("from the quarantined, IPv6", quarantined_v6(End::Source)),
    ];
    let forward = vec![
        ("stray answers, IPv4", rule().address_v4(End::Destination, Equal, PROBE_V4).drop()),
        ("stray answers, IPv6", rule().address_v6(End::Destination, Equal, PROBE_V6).drop()),
        ("to the quarantined, IPv4", quarantined_v4(End::Destination)),
        ("to the quarantined, IPv6", quarantined_v6(End::Destination)),
    ];
    let output = vec![
        ("to the quarantined, IPv4", quarantined_v4(End::Destination)),
        ("to the quarantined, IPv6", quarantined_v6(End::Destination)),
    ];
    let probe = || rule().tcp().sent_by(probe_uid);
    let probes = vec![
        ("probes, IPv4", probe().in_set_v4(End::Destination, "pods_v4").snat_v4(PROBE_V4)),
        ("probes, IPv6", probe().in_set_v6(End::Destination, "pods_v6").snat_v6(PROBE_V6)),
    ];
    [
        ("guard", "filter", HOOK_PREROUTING, PRIORITY_RAW, guard),
        ("forward", "filter", HOOK_FORWARD, -1, forward),
        ("output", "filter", HOOK_OUTPUT, 0, output),
        ("probes", "nat", HOOK_POSTROUTING, PRIORITY_BEFORE_SRCNAT, probes),
    ]
}

fn add_set(set: Set, id: u32) -> Message {
    /// As the nft program numbers its types, so that it can show them.
    const IPV4_ADDR: u32 = 7;
    const IPV6_ADDR: u32 = 8;
    let (kind, length) = if set.v6 { (IPV6_ADDR, 16) } else { (IPV4_ADDR, 4) };
    let attributes = Attributes::new()
        .text(1, TABLE)
        .text(2, set.name)
        .big_endian(3, 0)
        .big_endian(4, kind)
        .big_endian(5, length)
        .big_endian(10, id);
    request(format!("nftables set {}", set.name), libc::NFT_MSG_NEWSET, CREATE).with(&attributes)
}

fn add_elements(set: Set, members: &Members) -> Vec<Message> {
    let addresses: Vec<&IpAddr> = (set.members)(members).iter().filter(|ip| ip.is_ipv6() == set.v6).collect();
    let message = |some: &[&IpAddr]| {
        let elements = some.iter().fold(Attributes::new(), |elements, ip| {
            let value = match ip {
                IpAddr::V4(ip) => Attributes::new().bytes(1, &ip.octets()),
                IpAddr::V6(ip) => Attributes::new().bytes(1, &ip.octets()),
            };
            elements.nested(1, &Attributes::new().nested(1, &value))
        });
        let attributes = Attributes::new().text(1, TABLE).text(2, set.name).nested(3, &elements);
        let subject = format!("members of nftables set {}", set.name);
        request(subject, libc::NFT_MSG_NEWSETELEM, CREATE).with(&attributes)
    };
    addresses.chunks(MOST_ELEMENTS).map(message).collect()
}

fn elements(body: &[u8]) -> Vec<IpAddr> {
    let inner = |bytes, wanted: u16| {
        attributes(bytes).filter(move |(kind, _)| *kind == wanted).map(|(_, value)| value)
    };
    let lists = inner(body.get(4..).unwrap_or_default(), 3);
    let keys = lists.flat_map(|list| inner(list, 1)).flat_map(|element| inner(element, 1));
    keys.flat_map(|key| inner(key, 1)).filter_map(address).collect()
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(value).ok().map(|octets| Ipv4Addr::from(octets).into());
    v4().or_else(|| <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into()))
}

#[cfg(test)]
mod tests;
