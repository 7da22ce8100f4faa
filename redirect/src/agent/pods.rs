//! The pods of the agent and what happens to each.

mod hold;
mod leave;
mod on_demand;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Change;
use super::record::{Entry, Record};
use crate::broker::server::{Outgoing, ProxyId};
use crate::broker::wire::proto::{self, to_proxy};
use crate::netns::{self, Ident, Netns, Place};
use crate::retry::Retry;
use crate::rules::{self, Closed, Installed, NotLive, Ports};
use crate::sockets::{self, Listeners};
use crate::source::Pod;
use crate::zds::server::{Entry as Known, Roster, Workload};
use hold::Hold;
pub(super) use hold::Part;
use leave::Leave;

/// More pods than a node can have.
const MOST_HANDED_BACK: usize = 4096;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    #[error(transparent)]
    Sockets(#[from] sockets::Error),
    #[error(transparent)]
    NotLive(#[from] NotLive),
    #[error("rules: {0}")]
    Rules(#[from] rules::Error),
    #[error("network namespace {place} is that of pod {other} too; each pod needs its own")]
    Shared { place: Place, other: String },
}

pub(super) struct Pods {
    captured: BTreeMap<String, Captured>,
    pending: HashMap<String, Pending>,
    /// No longer wanted, and their rules could not be removed yet.
    leaving: Vec<Leaving>,
    record: Record,
    part: Part,
    /// Listeners that proxies handed back before it was known which pods are wanted.
    handed_back: HashMap<String, Listeners>,
    /// Those that are connected.
    proxies: HashSet<ProxyId>,
}

struct Captured {
    pod: Pod,
    ident: Ident,
    hold: Hold,
    /// When opening its listeners failed.
    opening: Option<Retry>,
    /// No longer wanted, and some of its connections are still open.
    leaving: Option<Leave>,
}

struct Pending {
    pod: Pod,
    retry: Retry,
    reason: String,
}

struct Leaving {
    entry: Entry,
    retry: Retry,
}

impl Pods {
    pub(super) fn new(record: Record, part: Part) -> Self {
        Self {
            captured: BTreeMap::new(),
            pending: HashMap::new(),
            leaving: Vec::new(),
            record,
            part,
            handed_back: HashMap::new(),
            proxies: HashSet::new(),
        }
    }

    /// All that the source knows.
    pub(super) async fn listed(&mut self, listed: Vec<Pod>) -> Vec<Change> {
        let mut changes = Vec::new();
        let wanted: HashMap<&str, &Pod> = listed.iter().map(|pod| (pod.uid.as_str(), pod)).collect();
        self.pending.retain(|uid, pending| wanted.get(uid.as_str()).is_some_and(|now| **now == pending.pod));
        let mut dropped = Vec::new();
        for uid in self.uids(|uid, held| held.leaving.is_none() && !wanted.contains_key(uid)) {
            let Some(held) = self.captured.remove(&uid) else { continue };
            match self.leave(held).await {
                Ok(change) => changes.push(change),
                Err(held) => {
                    changes.push(removed(uid));
                    dropped.push(held);
                }
            }
        }
        for uid in self.uids(|uid, held| held.leaving.is_some() && wanted.contains_key(uid)) {
            changes.extend(self.rejoin(wanted[uid.as_str()].clone()).await);
        }
        for uid in self.uids(|uid, held| wanted.get(uid).is_some_and(|pod| **pod != held.pod)) {
            let Some(held) = self.captured.remove(&uid) else { continue };
            changes.push(removed(uid.clone()));
            let now = wanted[uid.as_str()];
            if now.netns == held.pod.netns {
                // Rules and listeners stay, or the pod would be open while it is captured anew; the proxies begin
                // again with what the pod is now.
                changes.extend(self.keep(now.clone(), held.ident, held.hold));
            } else {
                dropped.push(held);
            }
        }
        // Whatever may have rules and is not wanted, captured by this agent or by an earlier one.
        let wanted_there = |entry: &Entry| {
            wanted.get(entry.uid.as_str()).is_some_and(|pod| pod.netns.path() == Some(&entry.netns))
        };
        self.leaving.retain(|leaving| !wanted_there(&leaving.entry));
        let recorded = self.record.entries().iter().filter(|_| self.part != Part::Sockets);
        let is_leaving = |entry: &Entry| {
            self.captured
                .get(&entry.uid)
                .is_some_and(|held| held.leaving.is_some() && held.ident == entry.ident)
        };
        let unwanted = recorded.filter(|entry| !wanted_there(entry) && !is_leaving(entry));
        let unwanted: Vec<Entry> = unwanted.cloned().collect();
        for entry in unwanted {
            if !self.leaving.iter().any(|leaving| leaving.entry == entry) {
                self.withdraw(entry, None).await;
            }
        }
        // Only now: as long as rules lead to a port, something listens on it.
        drop(dropped);
        for pod in listed {
            if !self.captured.contains_key(&pod.uid) && !self.pending.contains_key(&pod.uid) {
                changes.extend(self.capture(pod, None, None).await);
            }
        }
        changes.extend(self.open_listeners().await);
        changes
    }

    /// Looks for namespaces that are gone, and tries again what failed.
    pub(super) async fn look(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let gone = |held: &Captured| held.pod.netns.ident().ok() != Some(held.ident);
        for uid in self.uids(|_, held| gone(held)) {
            if let Some(held) = self.captured.remove(&uid) {
                tracing::info!(pod = uid, "the pod's namespace is gone");
                if let Some(entry) = self.entry(&held.pod, held.ident) {
                    self.record.remove(&entry);
                }
                if held.leaving.is_none() {
                    let (retry, reason) = (Retry::after(None), "the pod's namespace is gone".to_owned());
                    self.pending.insert(uid.clone(), Pending { pod: held.pod, retry, reason });
                }
                changes.push(removed(uid));
            }
        }
        changes.extend(self.finish_leaving().await);
        for leaving in self.leaving.extract_if(.., |leaving| leaving.retry.is_due()).collect::<Vec<_>>() {
            self.withdraw(leaving.entry, Some(leaving.retry)).await;
        }
        let due: Vec<Pending> = self
            .pending
            .extract_if(|_, pending| pending.retry.is_due())
            .map(|(_, pending)| pending)
            .collect();
        for Pending { pod, retry, .. } in due {
            changes.extend(self.capture(pod, None, Some(retry)).await);
        }
        changes.extend(self.open_listeners().await);
        changes
    }

    /// Listeners that a proxy handed back: taken for pods that wait for them; else kept until it is `known` which pods are
    /// wanted, and closed then.
    pub(super) async fn adopt(&mut self, held: Vec<(String, Listeners)>, known: bool) -> Vec<Change> {
        let mut changes = Vec::new();
        for (uid, listeners) in held {
            let closed = self.captured.get(&uid).is_some_and(|held| held.hold.listeners().is_none());
            match self.pending.remove(&uid) {
                None if closed => changes.extend(self.open(&uid, Some(listeners)).await),
                Some(pending) => {
                    tracing::info!(pod = uid, "adopting the listeners that the proxy kept");
                    changes.extend(self.capture(pending.pod, Some(listeners), Some(pending.retry)).await);
                }
                None if !known && self.handed_back.len() < MOST_HANDED_BACK => {
                    self.handed_back.insert(uid, listeners);
                }
                None => tracing::debug!(pod = uid, "listeners handed back are not needed"),
            }
        }
        changes
    }

    /// Every pod that is wanted has been listed.
    pub(super) fn forget_handed_back(&mut self) {
        self.handed_back.clear();
    }

    pub(super) fn is_captured(&self, uid: &str) -> bool {
        self.captured.contains_key(uid)
    }

    /// Why a pod is not captured.
    pub(super) fn failure(&self, uid: &str) -> Option<&str> {
        self.pending.get(uid).map(|pending| pending.reason.as_str())
    }

    /// Every pod that a new proxy must serve.
    pub(super) fn snapshot(&self) -> Vec<Outgoing> {
        let told = |held: &Captured| -> Option<std::io::Result<Vec<Outgoing>>> {
            let added = added(&held.pod, held.hold.listeners()?);
            let leaves = held.leaving.as_ref().map(|_| (leave::announcement(held.pod.uid.clone()).message)());
            Some(std::iter::once(added).chain(leaves).collect())
        };
        let said = self.captured.values().filter_map(|held| {
            told(held)?.inspect_err(|error| tracing::error!(pod = held.pod.uid, %error, "pod not told")).ok()
        });
        said.flatten().collect()
    }

    /// What stock ztunnels must know.
    pub(super) fn roster(&self) -> Roster {
        let captured = self.captured.values().filter(|held| held.leaving.is_none());
        let captured = captured.map(|Captured { pod, ident, .. }| {
            let workload = Workload {
                name: pod.name.clone(),
                namespace: pod.namespace.clone(),
                service_account: pod.service_account.clone(),
                netns: pod.netns.clone(),
                ident: *ident,
            };
            (pod.uid.clone(), Known::Captured(Arc::new(workload)))
        });
        let pending = self.pending.keys().map(|uid| (uid.clone(), Known::Pending));
        pending.chain(captured).collect()
    }

    pub(super) fn namespace_of(&self, uid: &str) -> Option<Result<Netns, netns::Error>> {
        self.captured.get(uid).map(|held| held.pod.netns.reopen(held.ident))
    }

    /// `failed` is the last attempt, if there was one.
    async fn capture(
        &mut self,
        pod: Pod,
        listeners: Option<Listeners>,
        failed: Option<Retry>,
    ) -> Option<Change> {
        let listeners = listeners.or_else(|| self.handed_back.remove(&pod.uid));
        match self.install(&pod, listeners).await {
            Ok((ident, hold)) => {
                tracing::info!(pod = pod.uid, namespace = pod.namespace, name = pod.name, netns = %pod.netns, "pod captured");
                self.keep(pod, ident, hold)
            }
            Err(error) => {
                self.wait(pod, &error, failed);
                None
            }
        }
    }

    /// Tries a pod again later. `failed` is the last attempt, if there was one.
    fn wait(&mut self, pod: Pod, error: &Error, failed: Option<Retry>) {
        let retry = Retry::after(failed);
        tracing::warn!(pod = pod.uid, %error, retry_ms = retry.wait().as_millis(), "pod not captured");
        let reason = error.to_string();
        self.pending.insert(pod.uid.clone(), Pending { pod, retry, reason });
    }

    fn uids(&self, is_meant: impl Fn(&str, &Captured) -> bool) -> Vec<String> {
        let meant = self.captured.iter().filter(|(uid, held)| is_meant(uid, held));
        meant.map(|(uid, _)| uid.clone()).collect()
    }

    /// The straight line: namespace, record, listeners, ports, rules; without listeners where a ztunnel opens them.
    async fn install(&mut self, pod: &Pod, listeners: Option<Listeners>) -> Result<(Ident, Hold), Error> {
        let netns = pod.netns.open()?;
        let ident = netns.ident();
        if let Some(other) = self.captured.values().find(|held| held.ident == ident) {
            return Err(Error::Shared { place: pod.netns.clone(), other: other.pod.uid.clone() });
        }
        if let Some(entry) = self.entry(pod, ident) {
            self.record.add(entry);
        }
        let part = self.part;
        let hold = netns
            .run(move || -> Result<Hold, Error> {
                let listeners = match listeners {
                    Some(listeners) => listeners,
                    None if matches!(part, Part::Rules { .. }) => return Ok(Hold::Rules(Closed::install()?)),
                    None => Listeners::bind()?,
                };
                let ports = Ports::prove(listeners, ident)?;
                Ok(match part {
                    Part::Sockets => Hold::Sockets(ports),
                    Part::Both | Part::Rules { .. } => Hold::Both(Installed::install(ports)?),
                })
            })
            .await??;
        Ok((ident, hold))
    }

    /// What is recorded of a pod; nothing where the rules are not this agent's.
    fn entry(&self, pod: &Pod, ident: Ident) -> Option<Entry> {
        let netns = pod.netns.path().filter(|_| self.part != Part::Sockets)?;
        Some(Entry { uid: pod.uid.clone(), netns: netns.to_owned(), ident })
    }

    /// Removes the rules of a pod that is no longer wanted; what fails is tried again.
    async fn withdraw(&mut self, entry: Entry, failed: Option<Retry>) {
        let outcome = match Place::from(entry.netns.clone()).reopen(entry.ident) {
            Ok(netns) => netns.run(rules::withdraw).await,
            Err(error) => Err(error),
        };
        let error = match outcome {
            Ok(Ok(())) => None,
            Err(error) if error.is_gone() => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        match error {
            None => {
                tracing::info!(pod = entry.uid, "pod withdrawn");
                self.record.remove(&entry);
            }
            Some(error) => {
                let retry = Retry::after(failed);
                tracing::error!(
                    pod = entry.uid,
                    error,
                    retry_ms = retry.wait().as_millis(),
                    "rules not removed yet"
                );
                self.leaving.push(Leaving { entry, retry });
            }
        }
    }

    fn keep(&mut self, pod: Pod, ident: Ident, hold: Hold) -> Option<Change> {
        let (told, copy) = (pod.clone(), hold.listeners().map(Listeners::try_clone));
        self.captured.insert(pod.uid.clone(), Captured { pod, ident, hold, opening: None, leaving: None });
        match copy? {
            Ok(listeners) => {
                Some(Change { uid: told.uid.clone(), message: Box::new(move || added(&told, &listeners)) })
            }
            Err(error) => {
                tracing::error!(pod = told.uid, %error, "pod not told to the proxies");
                None
            }
        }
    }
}

fn added(pod: &Pod, listeners: &Listeners) -> std::io::Result<Outgoing> {
    let bytes = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let Listeners { outbound, plaintext, hbone } = listeners.try_clone()?;
    let message = to_proxy::Message::PodAdded(proto::PodAdded {
        uid: pod.uid.clone(),
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        service_account: pod.service_account.clone(),
        addresses: pod.addresses.iter().map(bytes).collect(),
    });
    Ok(Outgoing { message, descriptors: vec![outbound.into(), plaintext.into(), hbone.into()] })
}

fn removed(uid: String) -> Change {
    change(uid, |uid| to_proxy::Message::PodRemoved(proto::PodRemoved { uid }))
}

/// One without descriptors.
fn change(uid: String, message: fn(String) -> to_proxy::Message) -> Change {
    let told = uid.clone();
    let message = move || Ok(Outgoing { message: message(told.clone()), descriptors: Vec::new() });
    Change { uid, message: Box::new(message) }
}

#[cfg(test)]
mod tests;
