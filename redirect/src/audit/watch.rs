//! Hears of changes in one namespace and looks at what is there, through sockets that were opened inside.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::libc;

use super::Wake;
use crate::rules::exchange::{Error, Exchange};
use crate::rules::form::{self, Difference, Foreign, Form};
use crate::rules::{TABLE, routing};

/// Changes of policy routing: nothing else of routing takes part in capture.
const ROUTE_GROUPS: [u32; 4] =
    [libc::RTNLGRP_IPV4_RULE, libc::RTNLGRP_IPV6_RULE, libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE];

/// In what way capture was damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Damage {
    Table(Difference),
    Routing(&'static str),
    /// The sockets that were kept for looking do not work.
    Unseen(String),
}

impl Damage {
    /// For a metric.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Table(Difference::Flushed) => "flushed",
            Self::Table(Difference::Changed(_)) => "changed",
            Self::Routing(_) => "routing",
            Self::Unseen(_) => "unseen",
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(difference) => difference.fmt(f),
            Self::Routing(family) => write!(f, "policy routing of marked packets is gone ({family})"),
            Self::Unseen(error) => write!(f, "the rules cannot be looked at: {error}"),
        }
    }
}

/// Of one audit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) damage: Option<Damage>,
    /// Chains of others that are in the way, if they are not those of the last audit.
    pub(crate) foreign: Option<Vec<Foreign>>,
}

/// Hears that something changed in the namespace in which it was opened.
pub(crate) struct Ear(Socket);

impl Ear {
    /// For changes of any nftables.
    pub(crate) fn rules() -> Result<Self, Error> {
        Self::of(NETLINK_NETFILTER, &[libc::NFNLGRP_NFTABLES as u32])
    }

    fn of(protocol: isize, groups: &[u32]) -> Result<Self, Error> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self(socket))
    }

    #[expect(unsafe_code, reason = "the socket lends no descriptor by itself")]
    pub(crate) fn wake_by(&self, wake: &Wake, token: u64) -> io::Result<()> {
        // SAFETY: the socket is open for as long as it is borrowed.
        wake.add(&unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }, token)
    }

    /// Takes all that was told. What it was does not matter, nor whether some was lost: an audit follows.
    pub(crate) fn drain(&self) {
        let mut start = Vec::with_capacity(16);
        loop {
            start.clear();
            match self.0.recv(&mut start, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => break,
            }
        }
    }
}

pub(crate) struct Watch {
    rules: Ear,
    routes: Ear,
    ask_rules: Exchange,
    ask_routes: Exchange,
    families: Vec<i32>,
    /// Of the ruleset that was last found whole.
    generation: Option<u32>,
    foreign: Vec<Foreign>,
}

impl Watch {
    /// In the namespace of the calling thread, where the rules are installed.
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self {
            rules: Ear::rules()?,
            routes: Ear::of(NETLINK_ROUTE, &ROUTE_GROUPS)?,
            ask_rules: Exchange::open(NETLINK_NETFILTER)?,
            ask_routes: Exchange::open(NETLINK_ROUTE)?,
            families: routing::families().collect(),
            generation: None,
            foreign: Vec::new(),
        })
    }

    pub(crate) fn wake_by(&self, wake: &Wake, token: u64) -> io::Result<()> {
        self.rules.wake_by(wake, token)?;
        self.routes.wake_by(wake, token)
    }

    /// What is there must be looked at again, though it has not changed.
    pub(crate) fn forget(&mut self) {
        self.generation = None;
    }

    pub(crate) fn drain(&self) {
        self.rules.drain();
        self.routes.drain();
    }

    /// Compares what is there with what must be.
    pub(crate) fn audit(&mut self, expected: &Form) -> Finding {
        self.look(expected).unwrap_or_else(|error| Finding {
            damage: Some(Damage::Unseen(error.to_string())),
            foreign: None,
        })
    }

    fn look(&mut self, expected: &Form) -> Result<Finding, Error> {
        let mut finding = Finding::default();
        let generation = form::generation(&mut self.ask_rules)?;
        if self.generation != Some(generation) {
            let found = Form::read(&mut self.ask_rules, TABLE)?;
            let foreign = form::foreign(&mut self.ask_rules)?;
            if foreign != self.foreign {
                self.foreign.clone_from(&foreign);
                finding.foreign = Some(foreign);
            }
            if let Some(difference) = expected.difference(&found) {
                finding.damage = Some(Damage::Table(difference));
                return Ok(finding);
            }
            // What changes while it is read has another generation, and is read again.
            self.generation = Some(generation);
        }
        for family in &self.families {
            if !routing::delivers(&mut self.ask_routes, *family)? {
                finding.damage = Some(Damage::Routing(routing::family_name(*family)));
            }
        }
        Ok(finding)
    }
}

#[cfg(test)]
mod tests;
