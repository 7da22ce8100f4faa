//! The expressions of nf_tables that our rules are made of (linux/netfilter/nf_tables.h).
//!
//! Every expression works on register 1; a comparison that fails ends the rule.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::message::Attributes;

const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;

const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const CT_DIRECTION: u32 = 1;
const CT_MARK: u32 = 3;

const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const TCP_FIN: u8 = 1;
const TCP_SYN: u8 = 2;
const TCP_RST: u8 = 4;
const TCP_ACK: u8 = 16;
const IP_CT_DIR_REPLY: u8 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// The loopback device has this index in every namespace.
pub const LOOPBACK_INDEX: u32 = 1;

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

#[derive(Debug, Clone, Copy)]
pub enum Comparison {
    Equal = 0,
    NotEqual = 1,
}

#[derive(Debug, Clone, Copy)]
pub enum End {
    Source,
    Destination,
}

/// The expressions of one rule.
#[derive(Debug, Clone, Default)]
pub struct Expressions(Attributes);

impl Expressions {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn tcp(self) -> Self {
        self.load_meta(META_L4PROTO).compare(Comparison::Equal, &[IPPROTO_TCP])
    }

    /// Matches IPv4 only, whatever the comparison.
    pub fn address_v4(self, end: End, comparison: Comparison, address: Ipv4Addr) -> Self {
        self.load_v4(end).compare(comparison, &address.octets())
    }

    /// Matches IPv6 only, whatever the comparison.
    pub fn address_v6(self, end: End, comparison: Comparison, address: Ipv6Addr) -> Self {
        self.load_v6(end).compare(comparison, &address.octets())
    }

    pub fn in_set_v4(self, end: End, set: &str) -> Self {
        self.load_v4(end).look_up(set)
    }

    pub fn in_set_v6(self, end: End, set: &str) -> Self {
        self.load_v6(end).look_up(set)
    }

    /// By a process of this user; nothing that is forwarded.
    pub fn sent_by(self, uid: u32) -> Self {
        self.load_meta(META_SKUID).compare(Comparison::Equal, &uid.to_ne_bytes())
    }

    /// Only after [`tcp`](Self::tcp).
    pub fn destination_port(self, comparison: Comparison, port: u16) -> Self {
        self.load_payload(PAYLOAD_TRANSPORT, 2, 2).compare(comparison, &port.to_be_bytes())
    }

    /// The first packet of a connection. Only after [`tcp`](Self::tcp).
    pub fn begins(self) -> Self {
        self.load_payload(PAYLOAD_TRANSPORT, 13, 1)
            .masked(&[TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN])
            .compare(Comparison::Equal, &[TCP_SYN])
    }

    pub fn leaves_by_loopback(self, comparison: Comparison) -> Self {
        self.load_meta(META_OIF).compare(comparison, &LOOPBACK_INDEX.to_ne_bytes())
    }

    pub fn arrives_by_loopback(self, comparison: Comparison) -> Self {
        self.load_meta(META_IIF).compare(comparison, &LOOPBACK_INDEX.to_ne_bytes())
    }

    pub fn packet_mark(self, comparison: Comparison, mark: u32, mask: u32) -> Self {
        self.load_meta(META_MARK).bitwise(mask, 0).compare(comparison, &mark.to_ne_bytes())
    }

    pub fn set_packet_mark(self, mark: u32) -> Self {
        self.immediate(&mark.to_ne_bytes())
            .add("meta", Attributes::new().big_endian(2, META_MARK).big_endian(3, REGISTER))
    }

    pub fn connection_mark(self, comparison: Comparison, mark: u32, mask: u32) -> Self {
        self.load_ct(CT_MARK).bitwise(mask, 0).compare(comparison, &mark.to_ne_bytes())
    }

    /// Writes the bits of `mask`, leaves the others to whom they belong.
    pub fn set_connection_mark(self, mark: u32, mask: u32) -> Self {
        self.load_ct(CT_MARK)
            .bitwise(!mask, mark)
            .add("ct", Attributes::new().big_endian(2, CT_MARK).big_endian(4, REGISTER))
    }

    pub fn match_reply(self) -> Self {
        self.load_ct(CT_DIRECTION).compare(Comparison::Equal, &[IP_CT_DIR_REPLY])
    }

    pub fn accept(self) -> Self {
        self.verdict(NF_ACCEPT)
    }

    pub fn drop(self) -> Self {
        self.verdict(NF_DROP)
    }

    #[cfg(test)]
    pub fn untracked(self) -> Self {
        self.add("notrack", Attributes::new())
    }

    fn verdict(self, verdict: u32) -> Self {
        let verdict = Attributes::new().big_endian(1, verdict);
        let value = Attributes::new().nested(DATA_VERDICT, &verdict);
        self.add("immediate", Attributes::new().big_endian(1, REGISTER_VERDICT).nested(2, &value))
    }

    pub fn redirect(self, port: u16) -> Self {
        self.immediate(&port.to_be_bytes()).add("redir", Attributes::new().big_endian(1, REGISTER))
    }

    pub fn snat_v4(self, address: Ipv4Addr) -> Self {
        self.immediate(&address.octets()).snat(NFPROTO_IPV4)
    }

    pub fn snat_v6(self, address: Ipv6Addr) -> Self {
        self.immediate(&address.octets()).snat(NFPROTO_IPV6)
    }

    pub fn attributes(&self) -> &Attributes {
        &self.0
    }

    fn snat(self, family: u8) -> Self {
        const SOURCE: u32 = 0;
        let operands = Attributes::new().big_endian(1, SOURCE).big_endian(2, family.into());
        self.add("nat", operands.big_endian(3, REGISTER))
    }

    fn look_up(self, set: &str) -> Self {
        self.add("lookup", Attributes::new().text(1, set).big_endian(2, REGISTER))
    }

    fn load_v4(self, end: End) -> Self {
        let offset = match end {
            End::Source => 12,
            End::Destination => 16,
        };
        let family = self.load_meta(META_NFPROTO).compare(Comparison::Equal, &[NFPROTO_IPV4]);
        family.load_payload(PAYLOAD_NETWORK, offset, 4)
    }

    fn load_v6(self, end: End) -> Self {
        let offset = match end {
            End::Source => 8,
            End::Destination => 24,
        };
        let family = self.load_meta(META_NFPROTO).compare(Comparison::Equal, &[NFPROTO_IPV6]);
        family.load_payload(PAYLOAD_NETWORK, offset, 16)
    }

    fn load_meta(self, key: u32) -> Self {
        self.add("meta", Attributes::new().big_endian(1, REGISTER).big_endian(2, key))
    }

    fn load_ct(self, key: u32) -> Self {
        self.add("ct", Attributes::new().big_endian(1, REGISTER).big_endian(2, key))
    }

    fn load_payload(self, base: u32, offset: u32, length: u32) -> Self {
        let place = Attributes::new().big_endian(1, REGISTER).big_endian(2, base);
        self.add("payload", place.big_endian(3, offset).big_endian(4, length))
    }

    fn compare(self, comparison: Comparison, value: &[u8]) -> Self {
        let operands = Attributes::new().big_endian(1, REGISTER).big_endian(2, comparison as u32);
        self.add("cmp", operands.nested(3, &plain(value)))
    }

    fn masked(self, mask: &[u8]) -> Self {
        self.bits(mask, &vec![0; mask.len()])
    }

    fn bitwise(self, mask: u32, xor: u32) -> Self {
        self.bits(&mask.to_ne_bytes(), &xor.to_ne_bytes())
    }

    fn bits(self, mask: &[u8], xor: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).expect("invariant: a register holds few bytes");
        let operands =
            Attributes::new().big_endian(1, REGISTER).big_endian(2, REGISTER).big_endian(3, length);
        self.add("bitwise", operands.nested(4, &plain(mask)).nested(5, &plain(xor)))
    }

    fn immediate(self, value: &[u8]) -> Self {
        self.add("immediate", Attributes::new().big_endian(1, REGISTER).nested(2, &plain(value)))
    }

    fn add(self, name: &str, operands: Attributes) -> Self {
        let expression = Attributes::new().text(1, name).nested(2, &operands);
        Self(self.0.nested(1, &expression))
    }
}

fn plain(value: &[u8]) -> Attributes {
    Attributes::new().bytes(DATA_VALUE, value)
}
