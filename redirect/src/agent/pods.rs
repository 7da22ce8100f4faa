//! The pods of the agent and what happens to each.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use super::Change;
use super::record::{Entry, Record};
use crate::broker::server::Outgoing;
use crate::broker::wire::proto::{self, to_proxy};
use crate::netns::{self, Ident, Netns};
use crate::rules::{self, Installed, NotLive, Ports};
use crate::sockets::{self, Listeners};
use crate::source::Pod;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(10);

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
    #[error("network namespace {path} is that of pod {other} too; each pod needs its own")]
    Shared { path: PathBuf, other: String },
}

pub(super) struct Pods {
    captured: BTreeMap<String, Captured>,
    pending: HashMap<String, Pending>,
    /// No longer wanted, and their rules could not be removed yet.
    leaving: Vec<Leaving>,
    record: Record,
}

struct Captured {
    pod: Pod,
    ident: Ident,
    installed: Installed,
}

impl Captured {
    fn entry(&self) -> Entry {
        Entry { uid: self.pod.uid.clone(), netns: self.pod.netns.clone(), ident: self.ident }
    }
}

struct Pending {
    pod: Pod,
    retry: Retry,
}

struct Leaving {
    entry: Entry,
    retry: Retry,
}

/// When something that failed is tried again.
#[derive(Clone, Copy)]
struct Retry {
    next: Instant,
    pause: Duration,
}

impl Retry {
    fn after(pause: Duration) -> Self {
        let next = Instant::now() + pause.mul_f64(rand::rng().random_range(0.8..1.2));
        Self { next, pause }
    }

    fn first() -> Self {
        Self::after(FIRST_PAUSE)
    }

    fn again(self) -> Self {
        Self::after((self.pause * 2).min(LAST_PAUSE))
    }

    fn wait(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }
}

impl Pods {
    pub(super) fn new(record: Record) -> Self {
        Self { captured: BTreeMap::new(), pending: HashMap::new(), leaving: Vec::new(), record }
    }

    /// The source's whole list.
    pub(super) async fn listed(&mut self, listed: Vec<Pod>) -> Vec<Change> {
        let mut changes = Vec::new();
        let wanted: HashMap<&str, &Pod> = listed.iter().map(|pod| (pod.uid.as_str(), pod)).collect();
        self.pending.retain(|uid, pending| wanted.get(uid.as_str()).is_some_and(|now| **now == pending.pod));
        let stale: Vec<String> = self
            .captured
            .iter()
            .filter(|(uid, held)| wanted.get(uid.as_str()).is_none_or(|pod| **pod != held.pod))
            .map(|(uid, _)| uid.clone())
            .collect();
        let mut dropped = Vec::new();
        for uid in stale {
            let Some(held) = self.captured.remove(&uid) else { continue };
            changes.push(removed(uid.clone()));
            match wanted.get(uid.as_str()).filter(|now| now.netns == held.pod.netns) {
                // Rules and listeners stay, or the pod would be open while it is captured anew; the proxies begin
                // again with what the pod is now.
                Some(&now) => changes.extend(self.keep(now.clone(), held.ident, held.installed)),
                None => dropped.push(held),
            }
        }
        // Whatever may have rules and is not wanted, captured by this agent or by an earlier one.
        let wanted_there =
            |entry: &Entry| wanted.get(entry.uid.as_str()).is_some_and(|pod| pod.netns == entry.netns);
        self.leaving.retain(|leaving| !wanted_there(&leaving.entry));
        let unwanted: Vec<Entry> =
            self.record.entries().iter().filter(|entry| !wanted_there(entry)).cloned().collect();
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
        changes
    }

    /// Looks for namespaces that are gone, and tries again what failed.
    pub(super) async fn look(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let gone = |held: &Captured| Ident::at(&held.pod.netns).ok() != Some(held.ident);
        let lost: Vec<String> =
            self.captured.iter().filter(|(_, held)| gone(held)).map(|(uid, _)| uid.clone()).collect();
        for uid in lost {
            if let Some(held) = self.captured.remove(&uid) {
                tracing::info!(pod = uid, "the pod's namespace is gone");
                self.record.remove(&held.entry());
                self.pending.insert(uid.clone(), Pending { pod: held.pod, retry: Retry::first() });
                changes.push(removed(uid));
            }
        }
        for leaving in self.leaving.extract_if(.., |leaving| leaving.retry.is_due()).collect::<Vec<_>>() {
            self.withdraw(leaving.entry, Some(leaving.retry)).await;
        }
        let due: Vec<Pending> = self
            .pending
            .extract_if(|_, pending| pending.retry.is_due())
            .map(|(_, pending)| pending)
            .collect();
        for Pending { pod, retry } in due {
            changes.extend(self.capture(pod, None, Some(retry)).await);
        }
        changes
    }

    /// Listeners that a proxy handed back: taken for pods that wait for them, closed otherwise.
    pub(super) async fn adopt(&mut self, held: Vec<(String, Listeners)>) -> Vec<Change> {
        let mut changes = Vec::new();
        for (uid, listeners) in held {
            match self.pending.remove(&uid) {
                Some(pending) => {
                    tracing::info!(pod = uid, "adopting the listeners that the proxy kept");
                    changes.extend(self.capture(pending.pod, Some(listeners), Some(pending.retry)).await);
                }
                None => tracing::debug!(pod = uid, "listeners handed back are not needed"),
            }
        }
        changes
    }

    /// What a new proxy must know.
    pub(super) fn snapshot(&self) -> Vec<Outgoing> {
        let mut messages: Vec<Outgoing> = self
            .captured
            .values()
            .filter_map(|held| {
                added(&held.pod, held.installed.listeners())
                    .inspect_err(|error| tracing::error!(pod = held.pod.uid, %error, "pod not told"))
                    .ok()
            })
            .collect();
        let message = to_proxy::Message::SnapshotSent(proto::SnapshotSent {});
        messages.push(Outgoing { message, descriptors: Vec::new() });
        messages
    }

    pub(super) fn namespace_of(&self, uid: &str) -> Option<Result<Netns, netns::Error>> {
        self.captured.get(uid).map(|held| Netns::reopen(&held.pod.netns, held.ident))
    }

    /// `failed` is the last attempt, if there was one.
    async fn capture(
        &mut self,
        pod: Pod,
        listeners: Option<Listeners>,
        failed: Option<Retry>,
    ) -> Option<Change> {
        match self.install(&pod, listeners).await {
            Ok((ident, installed)) => {
                tracing::info!(pod = pod.uid, namespace = pod.namespace, name = pod.name, netns = %pod.netns.display(), "pod captured");
                self.keep(pod, ident, installed)
            }
            Err(error) => {
                let retry = failed.map_or_else(Retry::first, Retry::again);
                tracing::warn!(pod = pod.uid, %error, retry_ms = retry.wait().as_millis(), "pod not captured");
                self.pending.insert(pod.uid.clone(), Pending { pod, retry });
                None
            }
        }
    }

    /// The straight line: namespace, record, listeners, ports, rules.
    async fn install(
        &mut self,
        pod: &Pod,
        listeners: Option<Listeners>,
    ) -> Result<(Ident, Installed), Error> {
        let netns = Netns::open(&pod.netns)?;
        let ident = netns.ident();
        if let Some(other) = self.captured.values().find(|held| held.ident == ident) {
            return Err(Error::Shared { path: pod.netns.clone(), other: other.pod.uid.clone() });
        }
        self.record.add(Entry { uid: pod.uid.clone(), netns: pod.netns.clone(), ident });
        let installed = netns
            .run(move || -> Result<Installed, Error> {
                let listeners = match listeners {
                    Some(listeners) => listeners,
                    None => Listeners::bind()?,
                };
                Ok(Installed::install(Ports::prove(listeners, ident)?)?)
            })
            .await??;
        Ok((ident, installed))
    }

    /// Removes the rules of a pod that is no longer wanted; what fails is tried again.
    async fn withdraw(&mut self, entry: Entry, failed: Option<Retry>) {
        let outcome = match Netns::reopen(&entry.netns, entry.ident) {
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
                let retry = failed.map_or_else(Retry::first, Retry::again);
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

    fn keep(&mut self, pod: Pod, ident: Ident, installed: Installed) -> Option<Change> {
        let (told, copy) = (pod.clone(), installed.listeners().try_clone());
        self.captured.insert(pod.uid.clone(), Captured { pod, ident, installed });
        match copy {
            Ok(listeners) => Some(Box::new(move || added(&told, &listeners))),
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
    Box::new(move || {
        let message = to_proxy::Message::PodRemoved(proto::PodRemoved { uid: uid.clone() });
        Ok(Outgoing { message, descriptors: Vec::new() })
    })
}

#[cfg(test)]
mod tests;
