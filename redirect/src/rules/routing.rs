//! Policy routing in a pod's namespace (interop.md section 7.2): packets with the connection's mark are delivered
//! locally whatever their destination, which is how the app's replies reach a socket that has its client's address.
//!
//! Both carry our own protocol number, so that a withdrawal cannot take another program's equal rule or route with it:
//! one that is there already serves us as well, and is left to its owner.

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::libc;

use super::exchange::{Error, Exchange};
use super::expression::LOOPBACK_INDEX;
use super::message::{ACK, Attributes, CREATE, DUMP, EXCLUSIVE, Message};
use super::{CONNECTION_MARK, MARK_MASK, PROOF_V4, PROOF_V6};

const ROUTE_TABLE: u8 = 100;
const RULE_PREFERENCE: u32 = 32764;

/// Who made a rule or a route; not one of those in `/etc/iproute2/rt_protos`.
const PROTOCOL: u8 = 0x9a;

const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FR_ACT_TO_TBL: u8 = 1;

/// Adds rule and route of each family that the namespace of the calling thread has.
pub fn install() -> Result<(), Error> {
    let mut exchange = Exchange::open(NETLINK_ROUTE)?;
    for family in families() {
        let (rule, route) =
            both(family, [libc::RTM_NEWRULE, libc::RTM_NEWROUTE], CREATE | EXCLUSIVE, PROTOCOL);
        tolerate(Errno::EEXIST, exchange.send(&[rule]))?;
        tolerate(Errno::EEXIST, exchange.send(&[route]))?;
    }
    Ok(())
}

/// Removes from both families what [`install`] adds, whether or not it is there.
pub fn remove() -> Result<(), Error> {
    let mut exchange = Exchange::open(NETLINK_ROUTE)?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let (rule, route) = both(family, [libc::RTM_DELRULE, libc::RTM_DELROUTE], 0, PROTOCOL);
        for message in [rule, route] {
            match exchange.send(&[message]) {
                Err(error) if error.errno().is_some_and(is_absent) => {}
                outcome => outcome?,
            }
        }
    }
    Ok(())
}

/// All rules and routes of the calling thread's namespace, as the kernel tells them.
pub fn dump() -> Result<Vec<Vec<u8>>, Error> {
    let mut exchange = Exchange::open(NETLINK_ROUTE)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::RTM_GETRULE, libc::RTM_GETROUTE] {
            let mut header = [0; 12];
            header[0] = family as u8;
            match exchange.dump(&Message::new("rules and routes", kind, DUMP, &header)) {
                Err(error) if error.errno().is_some_and(is_absent) => {}
                bodies => found.extend(bodies?),
            }
        }
    }
    Ok(found)
}

/// Whether a packet with the connection's mark is delivered locally by our table, whatever its destination: asked of the
/// kernel's own lookup, so that a rule of somebody else that comes first is seen as well.
pub fn delivers(exchange: &mut Exchange, family: i32) -> Result<bool, Error> {
    let mut header = [0; 12];
    header[0] = family as u8;
    let destination: Vec<u8> = match family {
        libc::AF_INET => PROOF_V4.octets().to_vec(),
        _ => PROOF_V6.octets().to_vec(),
    };
    header[1] = (destination.len() * 8) as u8;
    header[8..].copy_from_slice(&libc::RTM_F_LOOKUP_TABLE.to_ne_bytes());
    let attributes =
        Attributes::new().bytes(libc::RTA_DST, &destination).native(libc::RTA_MARK, CONNECTION_MARK);
    let lookup = Message::new("look-up of a marked packet's route", libc::RTM_GETROUTE, 0, &header);
    match exchange.ask(&lookup.with(&attributes)) {
        Ok(route) => Ok((route.get(4), route.get(7)) == (Some(&ROUTE_TABLE), Some(&libc::RTN_LOCAL))),
        Err(error) if error.errno().is_some() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Those that the namespace of the calling thread has.
pub fn families() -> impl Iterator<Item = i32> {
    // Absent when the kernel has no IPv6; read in the namespace of the calling thread.
    let v6 = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        .is_ok_and(|disabled| disabled.trim() != "1");
    [libc::AF_INET].into_iter().chain(v6.then_some(libc::AF_INET6))
}

fn both(family: i32, [rule_kind, route_kind]: [u16; 2], flags: u16, protocol: u8) -> (Message, Message) {
    (rule(family, rule_kind, flags, protocol), route(family, route_kind, flags, protocol))
}

/// The rule and the routes that another program would make for the same purpose.
#[cfg(test)]
pub fn add_foreign() -> Result<(), Error> {
    let mut exchange = Exchange::open(NETLINK_ROUTE)?;
    for family in families() {
        let kinds = [libc::RTM_NEWRULE, libc::RTM_NEWROUTE];
        let (rule, route) = both(family, kinds, CREATE | EXCLUSIVE, libc::RTPROT_BOOT);
        exchange.send(&[rule])?;
        exchange.send(&[route])?;
    }
    Ok(())
}

#[cfg(test)]
pub fn remove_rule_v4() {
    let (rule, _) = both(libc::AF_INET, [libc::RTM_DELRULE, libc::RTM_DELROUTE], 0, PROTOCOL);
    Exchange::open(NETLINK_ROUTE).expect("netlink").send(&[rule]).expect("removed");
}

/// A rule of somebody else that comes before ours.
#[cfg(test)]
pub fn override_v6() {
    let mut header = [0; 12];
    (header[0], header[4], header[7]) = (libc::AF_INET6 as u8, libc::RT_TABLE_MAIN, FR_ACT_UNREACHABLE);
    let attributes = Attributes::new().native(FRA_PRIORITY, 100).native(FRA_FWMARK, CONNECTION_MARK);
    let rule = Message::new("their rule", libc::RTM_NEWRULE, ACK | CREATE, &header).with(&attributes);
    Exchange::open(NETLINK_ROUTE).expect("netlink").send(&[rule]).expect("added");
}

#[cfg(test)]
const FR_ACT_UNREACHABLE: u8 = 7;

/// struct fib_rule_hdr and its attributes.
fn rule(family: i32, kind: u16, flags: u16, protocol: u8) -> Message {
    let mut header = [0; 12];
    (header[0], header[4], header[7]) = (family as u8, ROUTE_TABLE, FR_ACT_TO_TBL);
    let attributes = Attributes::new()
        .native(FRA_PRIORITY, RULE_PREFERENCE)
        .native(FRA_FWMARK, CONNECTION_MARK)
        .native(FRA_FWMASK, MARK_MASK)
        .bytes(FRA_PROTOCOL, &[protocol]);
    let subject = format!("policy routing rule {RULE_PREFERENCE} ({})", family_name(family));
    Message::new(subject, kind, flags | ACK, &header).with(&attributes)
}

/// struct rtmsg and its attributes.
fn route(family: i32, kind: u16, flags: u16, protocol: u8) -> Message {
    let mut header = [0; 12];
    (header[0], header[4]) = (family as u8, ROUTE_TABLE);
    (header[5], header[6], header[7]) = (protocol, libc::RT_SCOPE_HOST, libc::RTN_LOCAL);
    let attributes = Attributes::new().native(libc::RTA_OIF, LOOPBACK_INDEX);
    let subject = format!("local route of table {ROUTE_TABLE} ({}; is lo up?)", family_name(family));
    Message::new(subject, kind, flags | ACK, &header).with(&attributes)
}

pub fn family_name(family: i32) -> &'static str {
    if family == libc::AF_INET { "IPv4" } else { "IPv6" }
}

fn is_absent(errno: i32) -> bool {
    // ESRCH: no such route; ENOENT: no such rule; EAFNOSUPPORT, EOPNOTSUPP: no such family;
    // ENODEV: IPv6 is disabled on lo, or lo is gone with the namespace.
    [Errno::ENOENT, Errno::ESRCH, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::ENODEV]
        .iter()
        .any(|absent| *absent as i32 == errno)
}

fn tolerate(expected: Errno, outcome: Result<(), Error>) -> Result<(), Error> {
    match outcome {
        Err(error) if error.errno() == Some(expected as i32) => Ok(()),
        outcome => outcome,
    }
}
