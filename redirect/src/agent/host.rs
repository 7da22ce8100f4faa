//! Keeps the table in the node's own namespace as the pods need it (rules/host.rs).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::ifaddrs::getifaddrs;
use tokio::time::Instant;

use crate::audit::{Contest, Ear, Pace, Wake};
use crate::retry::Retry;
use crate::rules::Error;
use crate::rules::exchange::Exchange;
use crate::rules::form::{self, Form};
use crate::rules::host::{self, Members};

/// By which the runtime names what the kernel tells of the node's rules.
pub(super) const TOKEN: u64 = u64::MAX;
/// On a node others change rules all the time, and may have many: between looks there is so many times what one took, ...
const SHARE: u32 = 20;
/// ... and no more than what lets a repair come within a second.
const LONGEST_REST: Duration = Duration::from_millis(500);

pub(super) struct Host {
    probe_uid: u32,
    period: Duration,
    ear: Option<Ear>,
    /// When it is looked at next.
    due: Instant,
    /// Since when it may be looked at again.
    rested: Instant,
    /// Nothing before it could be had.
    form: Option<Form>,
    /// What is in the table; `None` before it was installed.
    members: Option<Members>,
    /// What was asked for, from which the node's own addresses are left out.
    asked: Members,
    generation: Option<u32>,
    failed: Option<Retry>,
    contest: Contest,
    pub(super) repairs: u64,
}

impl Host {
    /// For the namespace of the calling thread.
    pub(super) fn new(probe_uid: u32, period: Duration, wake: &Wake) -> Self {
        let unheard = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, "changes of the node's own rules are not heard, only looked for");
        };
        let ear = Ear::rules().inspect_err(|error| unheard(error)).ok();
        if let Some(Err(error)) = ear.as_ref().map(|ear| ear.wake_by(wake, TOKEN)) {
            unheard(&error);
        }
        Self {
            probe_uid,
            period,
            ear,
            due: Instant::now(),
            rested: Instant::now(),
            form: None,
            members: None,
            asked: Members::default(),
            generation: None,
            failed: None,
            contest: Contest::default(),
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

    /// The kernel tells of a change, be it ours or another's.
    pub(super) fn hear(&mut self) {
        self.ear.iter().for_each(Ear::drain);
        self.due = self.due.min(self.rested);
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
        // Not asked here for its generation, which may be another's already: the kernel tells of this change too.
        self.generation = None;
        self.members = Some(wanted);
        Ok(())
    }

    /// Whether somebody changed it: looked at when the kernel told of a change, and once in a period.
    fn is_damaged(&mut self) -> Result<bool, Error> {
        let start = Instant::now();
        if start < self.due {
            return Ok(false);
        }
        self.due = start + self.period;
        let damaged = self.look();
        self.rested = Instant::now() + (start.elapsed() * SHARE).min(LONGEST_REST);
        damaged
    }

    fn look(&mut self) -> Result<bool, Error> {
        let Some(form) = &self.form else { return Ok(true) };
        let mut exchange = Exchange::open(NETLINK_NETFILTER)?;
        let generation = form::generation(&mut exchange)?;
        if self.generation == Some(generation) {
            return Ok(false);
        }
        let difference = form.difference(&Form::read(&mut exchange, host::TABLE)?);
        let others = Some(host::members()?) != self.members;
        if difference.is_none() && !others {
            self.generation = Some(generation);
            return Ok(false);
        }
        let what = difference.map_or_else(|| "its members were changed".to_owned(), |one| one.to_string());
        match self.contest.pace(Instant::now()) {
            Pace::Wait => {
                self.due = Instant::now();
                return Ok(false);
            }
            Pace::Repair => tracing::warn!(what, "the node's own rules repaired"),
            Pace::RepairContested => {
                tracing::error!(what, "the node's own rules repaired; somebody undoes them over and over");
            }
        }
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
    use std::sync::Arc;

    use super::*;
    use crate::netns::Place;
    use crate::rules::fixture::fresh_netns;
    use crate::rules::host::withdraw;

    fn members(pods: &[&str], quarantined: &[&str]) -> Members {
        let set = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
        Members { pods: set(pods), quarantined: set(quarantined) }
    }

    /// Does it in a namespace of its own, or in this one.
    async fn inside<T: Send + 'static>(node: &Place, work: impl FnOnce() -> T + Send + 'static) -> T {
        node.open().expect("it is held").run(work).await.expect("namespace")
    }

    fn node() -> (Place, Arc<Wake>) {
        (Place::Descriptor(Arc::new(fresh_netns())), Arc::new(Wake::new().expect("a set")))
    }

    #[tokio::test]
    async fn an_agent_that_starts_again_lets_nobody_go_before_all_is_known() {
        let (node, wake) = node();
        let starts = move || {
            let made = || Host::new(0, Duration::ZERO, &wake);
            let before = members(&["10.0.0.1"], &["10.0.0.2"]);
            made().keep(before.clone(), true);
            let mut second = made();
            second.keep(Members::default(), false);
            assert_eq!(host::members().expect("members"), before);
            second.keep(members(&["10.0.0.3"], &[]), false);
            assert_eq!(host::members().expect("members"), members(&["10.0.0.1", "10.0.0.3"], &["10.0.0.2"]));
            second.keep(members(&["10.0.0.3"], &[]), true);
            assert_eq!(host::members().expect("members"), members(&["10.0.0.3"], &[]));
        };
        inside(&node, starts).await;
    }

    #[tokio::test]
    async fn what_is_changed_is_repaired_and_the_node_is_never_quarantined() {
        let (node, wake) = node();
        let changes = move || {
            let mut host = Host::new(0, Duration::ZERO, &wake);
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
        };
        inside(&node, changes).await;
    }

    #[tokio::test]
    async fn a_change_is_heard_long_before_the_next_look() {
        let (node, wake) = node();
        let there = members(&[], &["10.0.0.2"]);
        let (told, wanted) = (wake.clone(), there.clone());
        let withdrawn = move || {
            let mut host = Host::new(0, Duration::from_secs(3600), &told);
            host.keep(wanted.clone(), true);
            host.keep(wanted, true);
            host.hear();
            withdraw().expect("by somebody else");
            host
        };
        let mut host = inside(&node, withdrawn).await;
        let told = tokio::time::timeout(Duration::from_secs(10), wake.woken()).await;
        assert_eq!(told.expect("the kernel tells"), [TOKEN]);
        let wanted = there.clone();
        let heard = move || {
            host.hear();
            let deadline = Instant::now() + Duration::from_secs(10);
            while host.repairs == 0 && Instant::now() < deadline {
                host.keep(wanted.clone(), true);
            }
            (host.repairs, super::host::members().expect("members"))
        };
        assert_eq!(inside(&node, heard).await, (1, there));
    }
}
