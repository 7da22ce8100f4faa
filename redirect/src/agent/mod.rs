//! The agent: one task that owns every pod from its capture to its withdrawal.
//!
//! ```text
//! listed ─▶ capturing ─▶ captured ─▶ withdrawn (no longer listed: rules removed, listeners closed)
//!    ▲          │ failed: tried again    └▶ gone (its namespace is no more: descriptors closed)
//!    └──────────┘ with back-off
//! ```
//!
//! A pod that is no longer listed and lives on is withdrawn once its connections have ended (`pods::leave`).
//!
//! A proxy that joins hears of the end of the snapshot after the first whole list: until then nobody can tell which of its
//! pods are still wanted, and it goes on serving what it holds.
//!
//! After a restart, ports that are in use belong most likely to a proxy that outlived the agent: capturing then fails,
//! is tried again, and succeeds when that proxy reconnects and hands its listeners back.

mod pods;
mod rate;
mod record;
mod serving;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};

use crate::broker::server::{Incoming, Outgoing, ProxyId, Server};
use crate::broker::wire::MAX_DESCRIPTORS;
use crate::broker::wire::proto::{self, to_proxy};
use crate::listener;
use crate::netns::Netns;
use crate::sockets::{self, Listeners};
use crate::source::{Update, file, zds};
use crate::zds::server::{Roster, Server as ZdsServer};
use pods::{Part, Pods};
use rate::Rate;
use serving::Serving;

/// How the agent is started.
#[derive(Debug, Clone)]
pub struct Config {
    pub socket: PathBuf,
    pub proxy_uid: u32,
    pub role: Role,
}

/// Who tells of pods, and what is left to do about them.
#[derive(Debug, Clone)]
pub enum Role {
    /// Captures the pods of a file.
    Capture { pods: PathBuf },
    /// Installs the rules for the pods of a file, and drives stock ztunnels by ZDS, which open the listeners.
    DriveZtunnels { pods: PathBuf, socket: PathBuf },
    /// Opens listeners for the pods of which istio-cni tells by ZDS, and leaves the rules to it.
    BeneathIstioCni { socket: PathBuf },
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Listener(#[from] listener::Error),
}

const QUEUE: usize = 1024;
/// How often namespaces are looked at and failed captures tried.
const PERIOD: Duration = Duration::from_millis(200);

/// Refills of one proxy that wait or are made at once; it asks once at a time for each pod and worker.
const MOST_REFILLS: usize = 4096;

struct Proxy {
    queue: mpsc::Sender<Outgoing>,
    refills: Arc<Semaphore>,
}

type Proxies = HashMap<ProxyId, Proxy>;

struct Agent {
    pods: Pods,
    proxies: Proxies,
    serving: Serving,
    rate: Rate,
    /// The source has told every pod once.
    known: bool,
    /// For stock ztunnels.
    rosters: watch::Sender<Option<Arc<Roster>>>,
    /// For istio-cni's client.
    proxied: watch::Sender<bool>,
}

/// Runs for ever.
pub async fn run(config: Config) -> Result<(), Error> {
    let server = Server::bind(&config.socket, config.proxy_uid)?;
    let (say, mut said) = mpsc::channel(QUEUE);
    let (tell, mut told) = mpsc::channel(1);
    let (rosters, published) = watch::channel(None);
    let (proxied, present) = watch::channel(false);
    let part = match config.role {
        Role::Capture { pods } => {
            tokio::spawn(file::follow(pods, tell));
            Part::Both
        }
        Role::DriveZtunnels { pods, socket } => {
            tokio::spawn(ZdsServer::bind(&socket)?.serve(published));
            tracing::info!(socket = %socket.display(), "serving ZDS; ztunnels open the pods' listeners");
            tokio::spawn(file::follow(pods, tell));
            Part::Rules { proxied: false }
        }
        Role::BeneathIstioCni { socket } => {
            tokio::spawn(zds::follow(socket, tell, present));
            Part::Sockets
        }
    };
    tokio::spawn(server.serve(say));
    let mut agent = Agent {
        pods: Pods::new(record::Record::beside(&config.socket), part),
        proxies: Proxies::new(),
        serving: Serving::default(),
        rate: Rate::default(),
        known: false,
        rosters,
        proxied,
    };
    let mut look = tokio::time::interval(PERIOD);
    tracing::info!(socket = %config.socket.display(), "ready");
    loop {
        tokio::select! {
            Some(update) = told.recv() => agent.told(update).await,
            Some(message) = said.recv() => agent.said(message).await,
            _ = look.tick() => {
                let changes = agent.pods.look().await;
                agent.announce(changes);
            }
        }
        let proxied = !agent.proxies.is_empty();
        agent.proxied.send_if_modified(|before| std::mem::replace(before, proxied) != proxied);
        let changes = agent.pods.proxied(proxied).await;
        agent.announce(changes);
        if matches!(part, Part::Rules { .. }) {
            agent.publish();
        }
    }
}

/// A change of a pod that every proxy must hear of.
pub(crate) struct Change {
    uid: String,
    message: Box<dyn Fn() -> std::io::Result<Outgoing> + Send>,
}

impl Agent {
    async fn told(&mut self, update: Update) {
        let Update { pods, complete, ask } = update;
        let wanted = ask.as_ref().is_some_and(|ask| pods.iter().any(|pod| pod.uid == ask.uid));
        let changes = self.pods.listed(pods).await;
        self.announce(changes);
        if complete && !self.known {
            self.known = true;
            self.pods.forget_handed_back();
            // A queue that is full ends with the next announcement.
            self.proxies.values().for_each(|proxy| drop(proxy.queue.try_send(snapshot_sent())));
        }
        let Some(ask) = ask else { return };
        // Who asked may have gone.
        match self.pods.failure(&ask.uid) {
            Some(reason) => drop(ask.answer.send(Err(reason.to_owned()))),
            None if wanted => self.serving.ask(ask),
            None => drop(ask.answer.send(Ok(()))),
        }
    }

    async fn said(&mut self, message: Incoming) {
        match message {
            Incoming::Joined { proxy, held, queue } => self.welcome(proxy, held, queue).await,
            Incoming::Drained { proxy, uid } => self.pods.drained(proxy, &uid),
            Incoming::Left { proxy } => {
                self.proxies.remove(&proxy);
                self.pods.left(proxy);
                self.serving.left(proxy);
            }
            Incoming::Refill { proxy, uid, count } => {
                if !refill(&self.proxies, proxy, uid, count, &self.pods, &self.rate) {
                    tracing::warn!(proxy, "proxy asks for more sockets than it can use, cut off");
                    self.proxies.remove(&proxy);
                }
            }
            Incoming::Ready { proxy, uid } => {
                tracing::info!(pod = uid, "pod is served");
                self.heard(proxy, &uid, Ok(()));
            }
            Incoming::Failed { proxy, uid, reason } => {
                tracing::error!(pod = uid, reason, "the proxy cannot serve the pod; its connections wait");
                self.heard(proxy, &uid, Err(reason));
            }
        }
    }

    fn heard(&mut self, proxy: ProxyId, uid: &str, outcome: Result<(), String>) {
        if self.pods.is_captured(uid) && self.proxies.contains_key(&proxy) {
            self.serving.said(proxy, uid, outcome);
        }
    }

    fn announce(&mut self, changes: Vec<Change>) {
        for Change { uid, message } in changes {
            self.serving.changed(&uid);
            self.proxies.retain(|proxy, Proxy { queue, .. }| match message() {
                Ok(message) => {
                    let kept = queue.try_send(message).is_ok();
                    if !kept {
                        tracing::warn!(proxy, "proxy does not take messages, cut off");
                    }
                    kept
                }
                Err(error) => {
                    tracing::error!(proxy, %error, "descriptors cannot be duplicated, proxy cut off");
                    false
                }
            });
        }
    }

    /// Takes up what a proxy held, and tells it what there is.
    async fn welcome(
        &mut self,
        proxy: ProxyId,
        held: Vec<(String, Listeners)>,
        queue: mpsc::Sender<Outgoing>,
    ) {
        self.pods.joined(proxy);
        let changes = self.pods.adopt(held, self.known).await;
        self.announce(changes);
        let end = self.known.then(snapshot_sent);
        for message in self.pods.snapshot().into_iter().chain(end) {
            // Its queue is longer than a node has pods.
            let _ = queue.try_send(message);
        }
        self.proxies.insert(proxy, Proxy { queue, refills: Arc::new(Semaphore::new(MOST_REFILLS)) });
    }

    /// Before the first list nobody can tell which pods are wanted.
    fn publish(&self) {
        let roster = self.pods.roster();
        self.rosters.send_if_modified(|published| {
            let news = self.known && published.as_deref() != Some(&roster);
            if news {
                *published = Some(Arc::new(roster));
            }
            news
        });
    }
}

fn snapshot_sent() -> Outgoing {
    let message = to_proxy::Message::SnapshotSent(proto::SnapshotSent {});
    Outgoing { message, descriptors: Vec::new() }
}

/// Makes sockets for a pod and sends them; a pod that is unknown here is answered with none. False when too many are
/// asked for at once.
fn refill(proxies: &Proxies, proxy: ProxyId, uid: String, count: u32, pods: &Pods, rate: &Rate) -> bool {
    // A proxy that was cut off may still be heard.
    let Some(Proxy { queue, refills }) = proxies.get(&proxy) else { return true };
    let Ok(permit) = refills.clone().try_acquire_owned() else { return false };
    let (queue, rate, netns) = (queue.clone(), rate.clone(), pods.namespace_of(&uid));
    tokio::spawn(async move {
        let descriptors = match netns {
            Some(netns) => stock(&uid, count, netns, rate).await,
            None => Vec::new(),
        };
        let message = to_proxy::Message::Sockets(proto::Sockets { uid });
        let _ = queue.send(Outgoing { message, descriptors }).await;
        drop(permit);
    });
    true
}

async fn stock(uid: &str, count: u32, netns: Result<Netns, crate::netns::Error>, rate: Rate) -> Vec<OwnedFd> {
    let count = (count as usize).min(MAX_DESCRIPTORS);
    rate.take(count).await;
    let made = match netns {
        Ok(netns) => netns.run(move || sockets::stock(count)).await,
        Err(error) => Err(error),
    };
    match made {
        Ok(Ok(descriptors)) => descriptors,
        Ok(Err(error)) => {
            tracing::error!(pod = uid, %error, "no sockets for the pod");
            Vec::new()
        }
        Err(error) => {
            tracing::debug!(pod = uid, %error, "no sockets for the pod");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests;
