//! What connection tracking remembers from before the rules.
//!
//! A connection is tracked as long as some rule of the namespace asks for it. One that ends while none does stays in the
//! kernel's memory as if it were open, for days; and a SYN with the same ports is then no new connection to the kernel, which
//! asks no nat chain about it: it would not be captured.

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::libc;

use super::exchange::{Error, Exchange};
use super::message::{self, ACK, Attributes, DUMP, Message, attributes};
use super::nftables::family_header;
use super::{CONNECTION_MARK, MARK_MASK};

/// linux/netfilter/nfnetlink_conntrack.h
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE: u16 = 1;
const STATUS: u16 = 3;
const MARK: u16 = 8;
const ZONE: u16 = 18;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
/// IPS_SRC_NAT and IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h).
const TRANSLATED: u32 = 1 << 4 | 1 << 5;

/// Forgets the TCP connections of the calling thread's namespace that go without translation and without our mark. One that is
/// open is known again by its next packet; a translated one needs what is remembered of it, and was captured or is another's.
pub(super) fn forget_untranslated() -> Result<(), Error> {
    let mut exchange = Exchange::open(NETLINK_NETFILTER)?;
    let all = Message::new("the tracked connections", operation(GET), DUMP, &family_header(0, 0));
    for tracked in exchange.dump(&all)? {
        let Some(forgotten) = untranslated(&tracked) else { continue };
        match exchange.send(&[forgotten]) {
            // It ended meanwhile.
            Err(error) if error.errno() == Some(Errno::ENOENT as i32) => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// What deletes an entry that may go.
fn untranslated(tracked: &[u8]) -> Option<Message> {
    let family = *tracked.first()?;
    let body = tracked.get(4..)?;
    let value = |wanted| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let number = |wanted| value(wanted).and_then(message::big_endian);
    let tuple = value(TUPLE)?;
    let (_, protocol) = attributes(tuple).find(|(kind, _)| *kind == TUPLE_PROTOCOL)?;
    let (_, protocol) = attributes(protocol).find(|(kind, _)| *kind == PROTOCOL_NUMBER)?;
    let ours = number(MARK).unwrap_or(0) & MARK_MASK == CONNECTION_MARK;
    if protocol != [libc::IPPROTO_TCP as u8] || number(STATUS)? & TRANSLATED != 0 || ours {
        return None;
    }
    let mut named = Attributes::new().bytes(TUPLE, tuple);
    if let Some(zone) = value(ZONE) {
        named = named.bytes(ZONE, zone);
    }
    let subject = "the end of a tracked connection";
    Some(Message::new(subject, operation(DELETE), ACK, &family_header(family, 0)).with(&named))
}

fn operation(kind: u16) -> u16 {
    const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_CTNETLINK as u16;
    SUBSYSTEM << 8 | kind
}

#[cfg(test)]
mod tests;
