//! What the kernel says of a table of ours, without what differs from one namespace to another: handles, counts of uses.
//!
//! The expected form is not written here a second time and not taken from a pod, where somebody may have changed it
//! already: it is read once from a namespace that nobody else can enter, where the rules were installed for that purpose.
//! So it has what this kernel adds to what it was told, and every difference is somebody's change.

use std::fmt;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;
use nix::sched::{CloneFlags, unshare};

use super::Uncaptured;
use super::exchange::{Error, Exchange};
use super::message::{self, Attributes, DUMP, Message, attributes};
use super::nftables::{self, FAMILY_INET, family_header, operation};

const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_USE: u16 = 6;
const CHAIN_TYPE: u16 = 7;
const CHAIN_FLAGS: u16 = 10;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;

/// Of a table: its flags, chains and rules, in the kernel's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// `table`, `chain output`, `rule 3 of chain output`.
    name: String,
    content: Vec<u8>,
}

/// What was done to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// It is not there.
    Flushed,
    /// Something in it was taken away, added or changed: this was the first that was seen.
    Changed(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flushed => f.write_str("the table is gone"),
            Self::Changed(what) => f.write_str(what),
        }
    }
}

impl Form {
    /// Of the pods' table on this kernel. Costs a namespace for a moment.
    pub fn of_this_kernel(uncaptured: Uncaptured) -> Result<Self, Error> {
        Self::in_private(move || nftables::install(uncaptured), nftables::TABLE)
    }

    /// Of what `install` makes in a namespace of its own.
    pub(super) fn in_private(
        install: impl FnOnce() -> Result<(), Error> + Send,
        table: &str,
    ) -> Result<Self, Error> {
        let read = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)?;
            install()?;
            Self::read(&mut Exchange::open(NETLINK_NETFILTER)?, table)
        };
        let read = std::thread::scope(|scope| scope.spawn(read).join());
        read.unwrap_or(Err(Error::Malformed))
    }

    /// What there is now where the exchange was opened.
    pub fn read(exchange: &mut Exchange, table: &str) -> Result<Self, Error> {
        let mut parts = Vec::new();
        let named = |kind, wanted: &str| Attributes::new().text(kind, wanted);
        for body in dump(exchange, libc::NFT_MSG_GETTABLE, &Attributes::new())? {
            let table_name = value(&body, TABLE_NAME).map(message::text);
            if is_inet(&body) && table_name.as_deref() == Some(table) {
                parts.push(Part { name: "table".to_owned(), content: kept(&body, &[TABLE_FLAGS]) });
            }
        }
        for body in dump(exchange, libc::NFT_MSG_GETCHAIN, &Attributes::new())? {
            if !is_inet(&body) || value(&body, TABLE_NAME).map(message::text).as_deref() != Some(table) {
                continue;
            }
            let name = value(&body, CHAIN_NAME).map(message::text).unwrap_or_default();
            let content = kept(&body, &[CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE, CHAIN_FLAGS]);
            parts.push(Part { name: format!("chain {name}"), content });
        }
        let mut last = (String::new(), 0);
        for body in dump(exchange, libc::NFT_MSG_GETRULE, &named(TABLE_NAME, table))? {
            if !is_inet(&body) || value(&body, TABLE_NAME).map(message::text).as_deref() != Some(table) {
                continue;
            }
            let chain = value(&body, RULE_CHAIN).map(message::text).unwrap_or_default();
            last = if last.0 == chain { (chain, last.1 + 1) } else { (chain, 1) };
            let name = format!("rule {} of chain {}", last.1, last.0);
            parts.push(Part { name, content: kept(&body, &[RULE_EXPRESSIONS]) });
        }
        Ok(Self(parts))
    }

    /// What `found` has differently.
    pub fn difference(&self, found: &Self) -> Option<Difference> {
        if found.0.is_empty() && !self.0.is_empty() {
            return Some(Difference::Flushed);
        }
        let named = |form: &Self, name: &str| form.0.iter().find(|part| part.name == name).cloned();
        for part in &self.0 {
            match named(found, &part.name) {
                None => return Some(Difference::Changed(format!("{} is missing", part.name))),
                Some(other) if other != *part => {
                    return Some(Difference::Changed(format!("{} was changed", part.name)));
                }
                Some(_) => {}
            }
        }
        let added = found.0.iter().find(|part| named(self, &part.name).is_none());
        added.map(|part| Difference::Changed(format!("{} was added", part.name)))
    }
}

/// A base chain that is not ours and comes before ours, or drops whatever it is not told to accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    pub table: String,
    pub chain: String,
    pub hook: &'static str,
    pub priority: i32,
    pub drops: bool,
    pub rules: u32,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, chain, hook, priority, drops, rules } = self;
        let policy = if *drops { ", drops by default" } else { "" };
        write!(f, "chain {chain} of table {table} ({hook}, priority {priority}, {rules} rules{policy})")
    }
}

/// Chains in the way of ours.
pub fn foreign(exchange: &mut Exchange) -> Result<Vec<Foreign>, Error> {
    let chains = dump(exchange, libc::NFT_MSG_GETCHAIN, &Attributes::new())?;
    Ok(chains.iter().filter_map(|body| in_the_way(body)).collect())
}

/// Counts the changes of all tables of the namespace.
pub fn generation(exchange: &mut Exchange) -> Result<u32, Error> {
    const GENERATION: u16 = 1;
    let request = operation(libc::NFT_MSG_GETGEN);
    let answer = exchange.ask(&Message::new("the ruleset's generation", request, 0, &family_header(0, 0)))?;
    value(&answer, GENERATION).and_then(message::big_endian).ok_or(Error::Malformed)
}

fn in_the_way(body: &[u8]) -> Option<Foreign> {
    const HOOK_NUMBER: u16 = 1;
    const HOOK_PRIORITY: u16 = 2;
    const OURS: i32 = nftables::PRIORITY_DSTNAT;
    let family = i32::from(*body.first()?);
    let ip = [libc::NFPROTO_INET, libc::NFPROTO_IPV4, libc::NFPROTO_IPV6].contains(&family);
    let table = value(body, TABLE_NAME).map(message::text)?;
    if !ip || (is_inet(body) && table == nftables::TABLE) {
        return None;
    }
    let hook = value(body, CHAIN_HOOK)?;
    let number = |wanted| {
        let (_, bytes) = attributes(hook).find(|(kind, _)| *kind == wanted)?;
        message::big_endian(bytes)
    };
    let hook = match number(HOOK_NUMBER)? {
        0 => "prerouting",
        1 => "input",
        3 => "output",
        _ => return None,
    };
    let priority = number(HOOK_PRIORITY)?.cast_signed();
    let drops = value(body, CHAIN_POLICY).and_then(message::big_endian) == Some(0);
    let rules = value(body, CHAIN_USE).and_then(message::big_endian).unwrap_or(0);
    let chain = value(body, CHAIN_NAME).map(message::text)?;
    let earlier = rules > 0 && priority <= OURS;
    (drops || earlier).then_some(Foreign { table, chain, hook, priority, drops, rules })
}

fn dump(exchange: &mut Exchange, kind: i32, filter: &Attributes) -> Result<Vec<Vec<u8>>, Error> {
    let request = Message::new("the ruleset", operation(kind), DUMP, &family_header(0, 0));
    exchange.dump(&request.with(filter))
}

fn is_inet(body: &[u8]) -> bool {
    body.first() == Some(&FAMILY_INET)
}

/// Of a message of nf_tables, past its family header.
fn value(body: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(body.get(4..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn kept(body: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut content = Vec::new();
    for kind in wanted {
        content.extend_from_slice(&kind.to_ne_bytes());
        content.extend_from_slice(value(body, *kind).unwrap_or_default());
    }
    content
}
