//! Our table in a pod's namespace: what is captured, and what is not (interop.md section 7.3).
//!
//! Leaner than the reference form. There, every packet that enters the pod passes a mangle hook, which marks the
//! connections that the proxy opens to the app. Such a connection always begins in this namespace and leaves by
//! loopback, and a nat chain sees the first packet of every connection anyway; so `output` marks it there, once, and
//! the prerouting mangle hook is not needed. What remains per packet is one rule for packets that the pod sends, and a look
//! at the device and, where that is not loopback, at the TCP flags:
//!
//! ```text
//! prerouting (nat)    first packet of connections that arrive    → 15006
//! output     (nat)    first packet of connections that begin     → 15001, or marked 0x111 if proxy → app
//! replies    (route)  every packet sent: app → proxy gets packet mark 0x111, by which table 100 brings it to the
//!                     proxy's socket although its destination is the address of the real client
//! leaks      (filter) a first packet that leaves for the network, and is not the proxy's: dropped
//! intrusions (filter) a first packet that arrived from there, from no probe, for another port than 15006 and 15008: dropped
//! ```
//!
//! The last two, of which a permissive pod has no rule, see nothing as long as the first two do what they are for. But a nat
//! chain is asked only about what connection tracking calls new, and it does not for a SYN that it takes for part of a
//! connection of which it missed the end, for one that somebody exempts from it, for one that another's nat chain translated
//! first, nor, in the moment in which rules take the place of others, for one that is between two chains.
//!
//! Only the first packet of a connection is captured, by its SYN: to connection tracking, which begins with these rules,
//! every connection that the pod has open then is new, and redirecting it would end it. They stay as they are until closed.
//!
//! A pod that leaves keeps all but the capture for as long as it has connections that were captured: it is by these chains
//! that their addresses are translated.
//!
//! One atomic batch makes the table anew, so there is no moment without rules when they are installed again.

use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::exchange::{Error, Exchange};
use super::expression::Comparison::{Equal, NotEqual};
use super::expression::{End, Expressions};
use super::message::{ACK, APPEND, Attributes, CREATE, DUMP, Message};
use super::{CONNECTION_MARK, MARK_MASK, Uncaptured};
use crate::{HBONE_PORT, OUTBOUND_PORT, PACKET_MARK, PLAINTEXT_PORT};

pub const TABLE: &str = "ztunnel";

/// The node's own health probes come from these (interop.md section 7.1).
pub(super) const PROBE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
pub(super) const PROBE_V6: Ipv6Addr =
    Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

/// How the names of the rules begin that capture, and of those about what gets past them.
const CAPTURE: &str = "capture of";
const PAST: &str = "past the capture";

pub(super) const HOOK_PREROUTING: u32 = 0;
const HOOK_INPUT: u32 = 1;
pub(super) const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;
pub(super) const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_MANGLE: i32 = -150;
const PRIORITY_FILTER: i32 = 0;

pub(super) const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
pub(super) const FAMILY_INET: u8 = libc::NFPROTO_INET as u8;

/// Puts the table into the namespace of the calling thread, in place of what it held before.
pub fn install(uncaptured: Uncaptured) -> Result<(), Error> {
    put(|rule| uncaptured == Uncaptured::Dropped || !rule.starts_with(PAST))
}

/// As [`install`], with nothing captured any more.
pub fn release() -> Result<(), Error> {
    put(|rule| !rule.starts_with(CAPTURE) && !rule.starts_with(PAST))
}

fn put(wanted: impl Fn(&str) -> bool) -> Result<(), Error> {
    let mut batch = vec![add_table(TABLE), delete_table(TABLE), add_table(TABLE)];
    for (name, kind, hook, priority, rules) in chains() {
        batch.push(add_chain(TABLE, name, kind, hook, priority));
        let rules = rules.into_iter().filter(|(subject, _)| wanted(subject));
        batch.extend(rules.map(|(subject, rule)| add_rule(TABLE, name, subject, &rule)));
    }
    commit(batch)
}

/// Whether the namespace of the calling thread has the table.
pub(super) fn is_there() -> Result<bool, Error> {
    let header = family_header(FAMILY_INET, 0);
    let asked = Message::new("the table", operation(libc::NFT_MSG_GETTABLE), 0, &header);
    let asked = asked.with(&Attributes::new().text(1, TABLE));
    match Exchange::open(NETLINK_NETFILTER)?.ask(&asked) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a table of ours from the namespace of the calling thread, if it is there.
pub fn remove(table: &str) -> Result<(), Error> {
    match commit(vec![delete_table(table)]) {
        Err(error) if error.is_not_found() => Ok(()),
        outcome => outcome,
    }
}

/// All tables, chains, rules, sets and flow tables of the calling thread's namespace, as the kernel tells them.
pub fn dump() -> Result<Vec<Vec<u8>>, Error> {
    const NFT_MSG_GETFLOWTABLE: i32 = 23;
    let mut exchange = Exchange::open(NETLINK_NETFILTER)?;
    let mut found = Vec::new();
    let kinds = [libc::NFT_MSG_GETTABLE, libc::NFT_MSG_GETCHAIN, libc::NFT_MSG_GETRULE, libc::NFT_MSG_GETSET];
    for kind in kinds.into_iter().chain([libc::NFT_MSG_GETOBJ, NFT_MSG_GETFLOWTABLE]) {
        let request = Message::new("the ruleset", operation(kind), DUMP, &family_header(0, 0));
        found.extend(exchange.dump(&request)?);
    }
    // The header has the generation of the ruleset, which counts changes and is no part of it.
    for body in &mut found {
        body.drain(..body.len().min(4));
    }
    Ok(found)
}

type Rules = Vec<(&'static str, Expressions)>;

fn chains() -> [(&'static str, &'static str, u32, i32, Rules); 5] {
    [
        ("prerouting", "nat", HOOK_PREROUTING, PRIORITY_DSTNAT, prerouting()),
        ("output", "nat", HOOK_OUTPUT, PRIORITY_DSTNAT, output()),
        ("replies", "route", HOOK_OUTPUT, PRIORITY_MANGLE, replies()),
        // Where a packet has the device by which it leaves, after what `output` did to it.
        ("leaks", "filter", HOOK_POSTROUTING, PRIORITY_FILTER, leaks()),
        ("intrusions", "filter", HOOK_INPUT, PRIORITY_FILTER, intrusions()),
    ]
}

fn prerouting() -> Rules {
    let rule = Expressions::new;
    vec![
        ("probes, IPv4", rule().address_v4(End::Source, Equal, PROBE_V4).accept()),
        ("probes, IPv6", rule().address_v6(End::Source, Equal, PROBE_V6).accept()),
        ("to loopback, IPv4", rule().address_v4(End::Destination, Equal, Ipv4Addr::LOCALHOST).accept()),
        ("to loopback, IPv6", rule().address_v6(End::Destination, Equal, Ipv6Addr::LOCALHOST).accept()),
        (
            "capture of what arrives",
            rule()
                .tcp()
                .begins()
                .destination_port(NotEqual, HBONE_PORT)
                .packet_mark(NotEqual, PACKET_MARK, MARK_MASK)
                .redirect(PLAINTEXT_PORT),
        ),
    ]
}

fn output() -> Rules {
    let rule = Expressions::new;
    vec![
        ("answers to probes, IPv4", rule().address_v4(End::Destination, Equal, PROBE_V4).accept()),
        ("answers to probes, IPv6", rule().address_v6(End::Destination, Equal, PROBE_V6).accept()),
        (
            "proxy to app",
            rule()
                .tcp()
                .leaves_by_loopback(Equal)
                .packet_mark(Equal, PACKET_MARK, MARK_MASK)
                .set_connection_mark(CONNECTION_MARK, MARK_MASK)
                .accept(),
        ),
        ("the pod to itself", rule().leaves_by_loopback(Equal).accept()),
        (
            "capture of what leaves",
            rule().tcp().begins().packet_mark(NotEqual, PACKET_MARK, MARK_MASK).redirect(OUTBOUND_PORT),
        ),
    ]
}

fn replies() -> Rules {
    let rule = Expressions::new();
    let matched = rule.match_reply().connection_mark(Equal, CONNECTION_MARK, MARK_MASK);
    vec![("app to proxy", matched.set_packet_mark(CONNECTION_MARK))]
}

fn leaks() -> Rules {
    // The device first, in both chains: most of what is captured is on loopback and needs no second look.
    let begins = Expressions::new().leaves_by_loopback(NotEqual).tcp().begins();
    vec![("past the capture", begins.packet_mark(NotEqual, PACKET_MARK, MARK_MASK).drop())]
}

fn intrusions() -> Rules {
    let unproxied = || {
        let begins = Expressions::new().arrives_by_loopback(NotEqual).tcp().begins();
        begins.destination_port(NotEqual, PLAINTEXT_PORT).destination_port(NotEqual, HBONE_PORT)
    };
    vec![
        ("past the capture, IPv4", unproxied().address_v4(End::Source, NotEqual, PROBE_V4).drop()),
        ("past the capture, IPv6", unproxied().address_v6(End::Source, NotEqual, PROBE_V6).drop()),
    ]
}

pub(super) fn commit(messages: Vec<Message>) -> Result<(), Error> {
    let edge = |kind: i32| {
        Message::new(
            "the batch of nftables messages (nf_tables in the kernel? CAP_NET_ADMIN?)",
            kind as u16,
            0,
            &family_header(0, SUBSYSTEM),
        )
    };
    let mut batch = vec![edge(libc::NFNL_MSG_BATCH_BEGIN)];
    batch.extend(messages);
    batch.push(edge(libc::NFNL_MSG_BATCH_END));
    Exchange::open(NETLINK_NETFILTER)?.send(&batch)
}

pub(super) fn add_table(table: &str) -> Message {
    let attributes = Attributes::new().text(1, table).big_endian(2, 0);
    request(format!("nftables table inet {table}"), libc::NFT_MSG_NEWTABLE, CREATE).with(&attributes)
}

pub(super) fn delete_table(table: &str) -> Message {
    let attributes = Attributes::new().text(1, table);
    request(format!("removal of nftables table inet {table}"), libc::NFT_MSG_DELTABLE, 0).with(&attributes)
}

pub(super) fn add_chain(table: &str, name: &str, kind: &str, hook: u32, priority: i32) -> Message {
    let hook = Attributes::new().big_endian(1, hook).bytes(2, &priority.to_be_bytes());
    let accept = 1;
    let attributes = Attributes::new().text(1, table).text(3, name).nested(4, &hook).big_endian(5, accept);
    let subject = format!("nftables chain {name} (type {kind})");
    request(subject, libc::NFT_MSG_NEWCHAIN, CREATE).with(&attributes.text(7, kind))
}

pub(super) fn add_rule(table: &str, chain: &str, subject: &str, rule: &Expressions) -> Message {
    let attributes = Attributes::new().text(1, table).text(2, chain).nested(4, rule.attributes());
    let subject = format!("nftables rule \"{subject}\" of chain {chain}");
    request(subject, libc::NFT_MSG_NEWRULE, CREATE | APPEND).with(&attributes)
}

pub(super) fn request(subject: impl Into<String>, kind: i32, flags: u16) -> Message {
    Message::new(subject, operation(kind), flags | ACK, &family_header(FAMILY_INET, 0))
}

pub(super) fn operation(kind: i32) -> u16 {
    SUBSYSTEM << 8 | kind as u16
}

/// struct nfgenmsg: family, version, resource in network byte order.
pub(super) fn family_header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

#[cfg(test)]
pub(crate) mod deeds;

/// A table that is not ours.
#[cfg(test)]
pub(super) fn add_foreign_table() -> Result<(), Error> {
    commit(vec![add_table("theirs")])
}
