//! What connection tracking remembers from before the rules.
//!
//! A connection is tracked as long as some rule of the namespace asks for it. One that ends while none does stays in the
//! kernel's memory as if it were open, for days; and a SYN with the same ports is then no new connection to the kernel, which
//! asks no nat chain about it: it would not be captured.
//!
//! That is known of the time before the table. A connection that is open then, and dies without a word later, is remembered all the
//! same: its ports lead nowhere until the kernel forgets them (`net.netfilter.nf_conntrack_tcp_timeout_established`).

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::exchange::{Error, Exchange};
use super::message::{self, ACK, Attributes, DUMP, Message, attributes};
use super::nftables::family_header;

/// linux/netfilter/nfnetlink_conntrack.h
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE: u16 = 1;
const STATUS: u16 = 3;
const MARK: u16 = 8;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
/// IPS_SRC_NAT and IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h).
const TRANSLATED: u32 = 1 << 4 | 1 << 5;

/// Forgets the TCP connections of the calling thread's namespace that go without translation and without mark. One that is open is
/// known again by its next packet. A translated one needs what is remembered of it, and a mark is what somebody remembers.
pub(super) fn forget_untranslated() -> Result<(), Error> {
    let mut exchange = Exchange::open(NETLINK_NETFILTER)?;
    let all = Message::new("the tracked connections", operation(GET), DUMP, &family_header(0, 0));
    for tracked in exchange.dump(&all)? {
        let Some(forgotten) = untranslated(&tracked) else { continue };
        match exchange.send(&[forgotten]) {
            // It ended meanwhile.
            Err(error) if error.is_not_found() => {}
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
    let marked = number(MARK).is_some_and(|mark| mark != 0);
    if protocol != [libc::IPPROTO_TCP as u8] || number(STATUS)? & TRANSLATED != 0 || marked {
        return None;
    }
    // By its number too: meanwhile the same ports may be those of a connection that was captured.
    let mut named = Attributes::new().bytes(TUPLE, tuple).bytes(ID, value(ID)?);
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
