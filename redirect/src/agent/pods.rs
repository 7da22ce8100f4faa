//! The pods of the agent and what happens to each.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
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
}

pub(super) struct Pods {
    captured: BTreeMap<String, Captured>,
    pending: HashMap<String, Pending>,
    record: Record,
    /// What an earlier agent captured and this one has not seen listed yet.
    inherited: Option<Vec<Entry>>,
}

struct Captured {
    pod: Pod,
    ident: Ident,
    installed: Installed,
}

struct Pending {
    pod: Pod,
    next: Instant,
    pause: Duration,
}

impl Pods {
    pub(super) fn new(record: Record) -> Self {
        let inherited = Some(record.read());
        Self { captured: BTreeMap::new(), pending: HashMap::new(), record, inherited }
    }

    /// The source's whole list.
    pub(super) async fn listed(&mut self, listed: Vec<Pod>) -> Vec<Change> {
        let mut changes = Vec::new();
        let wanted: HashMap<&str, &Pod> = listed.iter().map(|pod| (pod.uid.as_str(), pod)).collect();
        for entry in self.inherited.take().into_iter().flatten() {
            if !wanted.contains_key(entry.uid.as_str()) {
                tracing::info!(pod = entry.uid, "left the source while no agent ran");
                withdraw(&entry.uid, Netns::reopen(&entry.netns, entry.ident)).await;
            }
        }
        self.pending.retain(|uid, _| wanted.contains_key(uid.as_str()));
        let stale: Vec<String> = self
            .captured
            .iter()
            .filter(|(uid, held)| wanted.get(uid.as_str()).is_none_or(|pod| **pod != held.pod))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in stale {
            let Some(Captured { pod, ident, installed }) = self.captured.remove(&uid) else { continue };
            if let Some(&now) = wanted.get(uid.as_str()).filter(|now| now.netns == pod.netns) {
                // Rules and listeners stay, or the pod would be open while it is captured anew; the proxies begin
                // again with what the pod is now.
                changes.push(removed(uid.clone()));
                changes.extend(self.keep(now.clone(), ident, installed));
            } else {
                withdraw(&uid, Netns::reopen(&pod.netns, ident)).await;
                drop(installed);
                changes.push(removed(uid));
            }
        }
        for pod in listed {
            if !self.captured.contains_key(&pod.uid) && !self.pending.contains_key(&pod.uid) {
                changes.extend(self.capture(pod, None, FIRST_PAUSE).await);
            }
        }
        self.save();
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
                let next = Instant::now() + FIRST_PAUSE;
                self.pending.insert(uid.clone(), Pending { pod: held.pod, next, pause: FIRST_PAUSE });
                changes.push(removed(uid));
            }
        }
        let now = Instant::now();
        let due: Vec<String> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.next <= now)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in due {
            if let Some(pending) = self.pending.remove(&uid) {
                changes.extend(self.capture(pending.pod, None, pending.pause).await);
            }
        }
        if !changes.is_empty() {
            self.save();
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
                    changes.extend(self.capture(pending.pod, Some(listeners), pending.pause).await);
                }
                None => tracing::debug!(pod = uid, "listeners handed back are not needed"),
            }
        }
        if !changes.is_empty() {
            self.save();
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

    async fn capture(&mut self, pod: Pod, listeners: Option<Listeners>, pause: Duration) -> Option<Change> {
        match install(&pod, listeners).await {
            Ok((ident, installed)) => {
                tracing::info!(pod = pod.uid, namespace = pod.namespace, name = pod.name, netns = %pod.netns.display(), "pod captured");
                self.keep(pod, ident, installed)
            }
            Err(error) => {
                let wait = pause.mul_f64(rand::rng().random_range(0.8..1.2));
                tracing::warn!(pod = pod.uid, %error, retry_ms = wait.as_millis(), "pod not captured");
                let (next, pause) = (Instant::now() + wait, (pause * 2).min(LAST_PAUSE));
                self.pending.insert(pod.uid.clone(), Pending { pod, next, pause });
                None
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

    fn save(&self) {
        let entry = |(uid, held): (&String, &Captured)| Entry {
            uid: uid.clone(),
            netns: held.pod.netns.clone(),
            ident: held.ident,
        };
        self.record.write(&self.captured.iter().map(entry).collect::<Vec<_>>());
    }
}

/// The straight line: namespace, listeners, ports, rules.
async fn install(pod: &Pod, listeners: Option<Listeners>) -> Result<(Ident, Installed), Error> {
    let netns = Netns::open(&pod.netns)?;
    let ident = netns.ident();
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

async fn withdraw(uid: &str, netns: Result<Netns, netns::Error>) {
    let outcome = match netns {
        Ok(netns) => netns.run(rules::withdraw).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(Ok(())) => tracing::info!(pod = uid, "pod withdrawn"),
        Ok(Err(error)) => tracing::error!(pod = uid, %error, "rules not removed"),
        Err(error) if error.is_gone() => tracing::info!(pod = uid, "pod withdrawn, its namespace is gone"),
        Err(error) => tracing::error!(pod = uid, %error, "rules not removed"),
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
