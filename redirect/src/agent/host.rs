//! Keeps the table in the node's own namespace as the pods need it (rules/host.rs).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::ifaddrs::getifaddrs;
use tokio::time::Instant;

use crate::retry::Retry;
use crate::rules::Error;
use crate::rules::exchange::Exchange;
use crate::rules::form::{self, Form};
use crate::rules::host::{self, Members};

pub(super) struct Host {
    probe_uid: u32,
    period: Duration,
    /// Nothing before it could be had.
    form: Option<Form>,
    /// What is in the table; `None` before it was installed.
    members: Option<Members>,
    /// What was asked for, from which the node's own addresses are left out.
    asked: Members,
    generation: u32,
    audited: Instant,
    failed: Option<Retry>,
    pub(super) repairs: u64,
}

impl Host {
    /// For the namespace of the calling thread.
    pub(super) fn new(probe_uid: u32, period: Duration) -> Self {
        Self {
            probe_uid,
            period,
            form: None,
            members: None,
            asked: Members::default(),
            generation: 0,
            audited: Instant::now(),
            failed: None,
            repairs: 0,
        }
    }

    /// Makes these the members. Until all pods are `known`, those that are there already stay.
    pub(super) fn keep(&mut self, wanted: Members, known: bool) {
        if self.failed.is_some_and(|retry| !retry.is_due()) {
            return;
        }
        match self.try_keep(wanted, known) {
            Ok(()) => self.failed = None,
            Err(error) => {
                let retry = Retry::after(self.failed);
                let retry_ms = retry.wait().as_millis();
                tracing::error!(%error, retry_ms, "the node's own rules are not as they must be: probes may fail, no pod is quarantined anew");
                self.failed = Some(retry);
                self.members = None;
            }
        }
    }

    pub(super) fn quarantined(&self) -> Option<&BTreeSet<IpAddr>> {
        self.members.as_ref().map(|members| &members.quarantined)
    }

    fn try_keep(&mut self, mut wanted: Members, known: bool) -> Result<(), Error> {
        if self.form.is_none() {
            self.form = Some(host::form(self.probe_uid)?);
        }
        let there = match &self.members {
            Some(members) => members.clone(),
            None => host::members()?,
        };
        if !known {
            wanted.pods.extend(&there.pods);
            wanted.quarantined.extend(&there.quarantined);
        }
        let whole = self.members.is_some() && !self.is_damaged()?;
        if whole && self.asked == wanted {
            return Ok(());
        }
        self.asked.clone_from(&wanted);
        for own in own_addresses() {
            wanted.pods.remove(&own);
            if wanted.quarantined.remove(&own) {
                tracing::error!(address = %own, "the node's own address is not quarantined");
            }
        }
        for ip in wanted.quarantined.difference(&there.quarantined) {
            tracing::error!(address = %ip, "quarantined: all its TCP is dropped");
        }
        for ip in there.quarantined.difference(&wanted.quarantined) {
            tracing::info!(address = %ip, "let out of quarantine");
        }
        if !whole {
            host::install(self.probe_uid, &wanted)?;
        } else if wanted != there {
            host::replace(&wanted)?;
        }
        self.generation = form::generation(&mut Exchange::open(NETLINK_NETFILTER)?)?;
        self.members = Some(wanted);
        Ok(())
    }

    /// Whether somebody changed it, looked at once in a period.
    fn is_damaged(&mut self) -> Result<bool, Error> {
        let Some(form) = &self.form else { return Ok(true) };
        if self.audited.elapsed() < self.period {
            return Ok(false);
        }
        self.audited = Instant::now();
        let mut exchange = Exchange::open(NETLINK_NETFILTER)?;
        let generation = form::generation(&mut exchange)?;
        if generation == self.generation {
            return Ok(false);
        }
        let difference = form.difference(&Form::read(&mut exchange, host::TABLE)?);
        let others = Some(host::members()?) != self.members;
        if difference.is_none() && !others {
            self.generation = generation;
            return Ok(false);
        }
        let what = difference.map_or_else(|| "its members were changed".to_owned(), |one| one.to_string());
        tracing::warn!(what, "the node's own rules repaired");
        self.repairs += 1;
        Ok(true)
    }
}

/// Nothing where they cannot be read: then nobody can be told from the node, and the source's word stands.
fn own_addresses() -> BTreeSet<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return BTreeSet::new() };
    let address = |one: nix::ifaddrs::InterfaceAddress| {
        let storage = one.address?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| v6.ip().into()))
    };
    interfaces.filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::fixture::fresh_netns;
    use crate::rules::host::withdraw;

    fn members(pods: &[&str], quarantined: &[&str]) -> Members {
        let set = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
        Members { pods: set(pods), quarantined: set(quarantined) }
    }

    fn made() -> Host {
        Host::new(0, Duration::ZERO)
    }

    #[test]
    fn an_agent_that_starts_again_lets_nobody_go_before_all_is_known() {
        fresh_netns()
            .run_blocking(|| {
                let before = members(&["10.0.0.1"], &["10.0.0.2"]);
                made().keep(before.clone(), true);
                let mut second = made();
                second.keep(Members::default(), false);
                assert_eq!(host::members().expect("members"), before);
                second.keep(members(&["10.0.0.3"], &[]), false);
                assert_eq!(
                    host::members().expect("members"),
                    members(&["10.0.0.1", "10.0.0.3"], &["10.0.0.2"])
                );
                second.keep(members(&["10.0.0.3"], &[]), true);
                assert_eq!(host::members().expect("members"), members(&["10.0.0.3"], &[]));
            })
            .expect("namespace");
    }

    #[test]
    fn what_is_changed_is_repaired_and_the_node_is_never_quarantined() {
        fresh_netns()
            .run_blocking(|| {
                let mut host = made();
                host.keep(members(&[], &["127.0.0.1", "10.0.0.2"]), true);
                let there = members(&[], &["10.0.0.2"]);
                assert_eq!(super::host::members().expect("members"), there);
                withdraw().expect("by somebody else");
                host.keep(there.clone(), true);
                assert_eq!(super::host::members().expect("members"), there);
                super::host::replace(&Members::default()).expect("by somebody else");
                host.keep(there.clone(), true);
                assert_eq!(super::host::members().expect("members"), there);
                assert_eq!(host.repairs, 2);
            })
            .expect("namespace");
    }
}
