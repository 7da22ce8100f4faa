//! The pods of the agent and what happens to each.

mod counts;
mod guard;
mod hold;
mod leave;
mod lost;
mod on_demand;
mod statuses;
mod told;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::time::Instant;

use super::Change;
use super::record::{Entry, Record};
use crate::broker::server::{Outgoing, ProxyId};
use crate::netns::{self, Ident, Netns, Place};
use crate::retry::Retry;
use crate::rules::exchange::Exchange;
use crate::rules::form::Form;
use crate::rules::{self, Closed, Installed, NotLive, Ports, TABLE, Uncaptured};
use crate::sockets::{self, Listeners};
use crate::source::{Notice, Pod};
use crate::zds::server::{Entry as Known, Roster, Workload};
pub(crate) use counts::Counts;
pub(super) use guard::Guarding;
use guard::{Guard, Inside};
use hold::Hold;
pub(super) use hold::Part;
use leave::Leave;
use told::{added, change, removed};

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
    lost: lost::All,
    /// No longer wanted, and their rules could not be removed yet.
    leaving: Vec<Leaving>,
    record: Record,
    part: Part,
    /// Listeners that proxies handed back before it was known which pods are wanted.
    handed_back: HashMap<String, Listeners>,
    /// Those that are connected.
    proxies: HashSet<ProxyId>,
    guarding: Guarding,
    pub(super) counts: Counts,
    reports: Vec<Notice>,
}

struct Captured {
    pod: Pod,
    ident: Ident,
    hold: Hold,
    /// When opening its listeners failed.
    opening: Option<Retry>,
    /// No longer wanted, and some of its connections are still open.
    leaving: Option<Leave>,
    /// Nothing where the rules are another's.
    guard: Option<Guard>,
}

struct Pending {
    pod: Pod,
    failed: Failed,
    reason: String,
    /// Its rules are not in place, or nobody knows.
    open: bool,
}

/// The last of some attempts.
#[derive(Clone, Copy)]
struct Failed {
    retry: Retry,
    /// When the first was.
    since: Instant,
    /// Whether the pod has an event about it.
    told: bool,
}

impl Failed {
    fn again(before: Option<Self>) -> Self {
        let since = before.map_or_else(Instant::now, |before| before.since);
        let told = before.is_some_and(|before| before.told);
        Self { retry: Retry::after(before.map(|before| before.retry)), since, told }
    }
}

struct Leaving {
    entry: Entry,
    retry: Retry,
}

impl Error {
    /// For a metric.
    fn class(&self) -> &'static str {
        match self {
            Self::Namespace(error) if error.is_gone() => "namespace_gone",
            Self::Namespace(_) => "namespace",
            Self::Sockets(sockets::Error::PortInUse { .. }) => "port_in_use",
            Self::Sockets(_) => "sockets",
            Self::NotLive(_) => "listeners",
            Self::Rules(_) => "rules",
            Self::Shared { .. } => "shared_namespace",
        }
    }
}

impl Pods {
    pub(super) fn new(record: Record, part: Part, guarding: Guarding) -> Self {
        Self {
            captured: BTreeMap::new(),
            pending: HashMap::new(),
            lost: lost::All::new(),
            leaving: Vec::new(),
            record,
            part,
            handed_back: HashMap::new(),
            proxies: HashSet::new(),
            guarding,
            counts: Counts::default(),
            reports: Vec::new(),
        }
    }

    /// All that the source knows: pods, and the uids of others whose rules stay. Of what an earlier agent captured nothing is
    /// let go unless the list is `complete`.
    pub(super) async fn listed(
        &mut self,
        listed: Vec<Pod>,
        unlocated: &HashSet<String>,
        complete: bool,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let wanted: HashMap<&str, &Pod> = listed.iter().map(|pod| (pod.uid.as_str(), pod)).collect();
        self.pending.retain(|uid, pending| wanted.get(uid.as_str()).is_some_and(|now| **now == pending.pod));
        let mut dropped = Vec::new();
        for uid in self.uids(|uid, held| held.leaving.is_none() && !wanted.contains_key(uid)) {
            let Some(held) = self.captured.remove(&uid) else { continue };
            // Rules stay with one that was not found.
            let left = if unlocated.contains(&uid) { Err(held) } else { self.leave(held).await };
            match left {
                Ok(change) => changes.push(change),
                Err(held) => {
                    self.unguard(held.guard.as_ref());
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
            if now.netns == held.pod.netns || now.netns.ident().ok() == Some(held.ident) {
                // Where it was only found by another path.
                if let Some(entry) = self.entry(now, held.ident) {
                    self.record.add(entry);
                }
                // Rules and listeners stay, or the pod would be open while it is captured anew; the proxies begin
                // again with what the pod is now.
                let guard = held.guard.map(|guard| guard.of_another(now.strict != held.pod.strict));
                changes.extend(self.keep(now.clone(), held.ident, held.hold, guard));
            } else {
                self.unguard(held.guard.as_ref());
                dropped.push(held);
            }
        }
        // Whatever may have rules and is not wanted, captured by this agent or by an earlier one.
        let wanted_there = |entry: &Entry| {
            unlocated.contains(&entry.uid)
                || wanted.get(entry.uid.as_str()).is_some_and(|pod| {
                    pod.netns.path() == Some(&entry.netns) || pod.netns.ident().ok() == Some(entry.ident)
                })
        };
        self.leaving.retain(|leaving| !wanted_there(&leaving.entry));
        let is_leaving = |entry: &Entry| {
            self.captured
                .get(&entry.uid)
                .is_some_and(|held| held.leaving.is_some() && held.ident == entry.ident)
        };
        let let_go = |entry: &&Entry| {
            let known = complete || dropped.iter().any(|held| held.pod.uid == entry.uid);
            self.part != Part::Sockets && known && !is_leaving(entry)
        };
        let recorded = self.record.entries().iter().filter(let_go);
        let unwanted: Vec<Entry> = recorded.filter(|entry| !wanted_there(entry)).cloned().collect();
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
                self.unguard(held.guard.as_ref());
                if held.leaving.is_none() {
                    // That of a pod which is being deleted goes first, and is nothing to be told.
                    let failed = Failed { told: true, ..Failed::again(None) };
                    let reason = "the pod's namespace is gone".to_owned();
                    self.pending.insert(uid.clone(), Pending { pod: held.pod, failed, reason, open: true });
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
            .extract_if(|_, pending| pending.failed.retry.is_due())
            .map(|(_, pending)| pending)
            .collect();
        for Pending { pod, failed, .. } in due {
            changes.extend(self.capture(pod, None, Some(failed)).await);
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
                    changes.extend(self.capture(pending.pod, Some(listeners), Some(pending.failed)).await);
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
        failed: Option<Failed>,
    ) -> Option<Change> {
        let listeners = listeners.or_else(|| self.handed_back.remove(&pod.uid));
        match self.install(&pod, listeners).await {
            Ok((ident, hold, inside)) => {
                self.counts.captures += 1;
                tracing::info!(pod = pod.uid, namespace = pod.namespace, name = pod.name, netns = %pod.netns, "pod captured");
                if failed.is_some_and(|failed| failed.told) {
                    let message = "its connections are captured again".to_owned();
                    self.report(&pod, "Captured", message, false);
                }
                let guard = inside.map(|inside| self.guard(&pod, inside));
                self.keep(pod, ident, hold, guard)
            }
            Err((error, open)) => {
                self.wait(pod, &error, open, failed);
                None
            }
        }
    }

    /// Tries a pod again later. `open` if it is open, or nobody knows; `failed` is the last attempt, if there was one.
    fn wait(&mut self, pod: Pod, error: &Error, open: bool, failed: Option<Failed>) {
        *self.counts.failures.entry(error.class()).or_default() += 1;
        let reason = error.to_string();
        let mut failed = Failed::again(failed);
        // Where an earlier agent's rules hold, its proxy most likely hands the listeners over in a moment.
        if !failed.told && (open || failed.since.elapsed() >= guard::BOUND) {
            failed.told = true;
            self.report(&pod, "CaptureFailed", format!("the pod is not captured: {reason}"), true);
        }
        let retry_ms = failed.retry.wait().as_millis();
        tracing::warn!(pod = pod.uid, %error, retry_ms, "pod not captured");
        self.pending.insert(pod.uid.clone(), Pending { pod, failed, reason, open });
    }

    fn uids(&self, is_meant: impl Fn(&str, &Captured) -> bool) -> Vec<String> {
        let meant = self.captured.iter().filter(|(uid, held)| is_meant(uid, held));
        meant.map(|(uid, _)| uid.clone()).collect()
    }

    /// The straight line: namespace, record, listeners, ports, rules, proof; without listeners where a ztunnel opens them.
    /// With an error comes whether the pod is open, or nobody knows.
    async fn install(
        &mut self,
        pod: &Pod,
        listeners: Option<Listeners>,
    ) -> Result<(Ident, Hold, Option<Inside>), (Error, bool)> {
        let netns = pod.netns.open().map_err(|error| (error.into(), true))?;
        let ident = netns.ident();
        if let Some(other) = self.captured.values().find(|held| held.ident == ident) {
            // Its rules are those of the other.
            return Err((Error::Shared { place: pod.netns.clone(), other: other.pod.uid.clone() }, false));
        }
        if let Some(entry) = self.entry(pod, ident) {
            self.record.add(entry);
        }
        let part = self.part;
        let form = self.guarding.form(pod.strict).filter(|_| part != Part::Sockets).cloned();
        let uncaptured = Uncaptured::of(pod.strict);
        let work = move || match install_inside(part, ident, listeners, uncaptured) {
            Ok(hold) => {
                let inside = (part != Part::Sockets).then(|| Inside::look(&hold));
                Ok((ident, hold, inside))
            }
            Err(error) => Err((error, !form.is_some_and(|form| is_whole(&form)))),
        };
        netns.run(work).await.unwrap_or_else(|error| Err((error.into(), true)))
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

    fn keep(&mut self, pod: Pod, ident: Ident, hold: Hold, guard: Option<Guard>) -> Option<Change> {
        let (told, copy) = (pod.clone(), hold.listeners().map(Listeners::try_clone));
        let held = Captured { pod, ident, hold, opening: None, guard, leaving: None };
        self.captured.insert(told.uid.clone(), held);
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

/// In the namespace of the calling thread.
fn install_inside(
    part: Part,
    namespace: Ident,
    listeners: Option<Listeners>,
    uncaptured: Uncaptured,
) -> Result<Hold, Error> {
    let listeners = match listeners {
        Some(listeners) => listeners,
        None if matches!(part, Part::Rules { .. }) => return Ok(Hold::Rules(Closed::install(uncaptured)?)),
        None => Listeners::bind()?,
    };
    let ports = Ports::prove(listeners, namespace)?;
    Ok(match part {
        Part::Sockets => Hold::Sockets(ports),
        Part::Both | Part::Rules { .. } => Hold::Both(Installed::install(ports, uncaptured)?),
    })
}

/// Whether the rules of an earlier agent are in the namespace of the calling thread.
fn is_whole(form: &Form) -> bool {
    let found = Exchange::open(NETLINK_NETFILTER).and_then(|mut exchange| Form::read(&mut exchange, TABLE));
    found.is_ok_and(|found| form.difference(&found).is_none())
}

#[cfg(test)]
mod tests;
