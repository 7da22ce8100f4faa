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
//! Captured pods whose rules are this agent's are audited, repaired and proven (`pods::guard`). A pod that stays without proven
//! capture is quarantined by the node's own table (`host`) while it is strict.
//!
//! A proxy that joins hears of the end of the snapshot after the first whole list: until then nobody can tell which of its
//! pods are still wanted, and it goes on serving what it holds.
//!
//! After a restart, ports that are in use belong most likely to a proxy that outlived the agent: capturing then fails,
//! is tried again, and succeeds when that proxy reconnects and hands its listeners back.

mod host;
mod pods;
mod rate;
mod record;
mod serving;

use std::collections::HashMap;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};

use crate::audit::Wake;
use crate::broker::server::{Incoming, Outgoing, ProxyId, Server};
use crate::broker::wire::proto::{self, to_proxy};
use crate::broker::wire::{Connection, MAX_DESCRIPTORS};
use crate::listener;
use crate::netns::Netns;
use crate::sockets::{self, Listeners};
use crate::source::{self, Notice, Notices, Served, Update, file, zds};
use crate::status::{self, Snapshot};
use crate::zds::server::{Roster, Said, Server as ZdsServer};
use host::Host;
pub(crate) use pods::Counts;
use pods::{Guarding, Part, Pods};
use rate::Rate;
use serving::Serving;

/// How the agent is started.
pub struct Config {
    pub socket: PathBuf,
    pub proxy_uid: u32,
    pub role: Role,
    /// How often each pod's rules are looked at, besides the kernel's word that they changed.
    pub audit_period: Duration,
    /// The kubelet's user, who may probe captured pods.
    pub probe_uid: u32,
    /// Where the agent is asked how it is.
    pub status: Option<TcpListener>,
    /// Whether the CNI plugin is in its place, where the agent is to put it there.
    pub placed: Option<watch::Receiver<bool>>,
}

/// Who tells of pods, and what is left to do about them.
pub enum Role {
    /// Captures the pods of a file.
    Capture { pods: PathBuf },
    /// Installs the rules for the pods of a file, and drives stock ztunnels by ZDS, which open the listeners.
    DriveZtunnels { pods: PathBuf, socket: PathBuf },
    /// Captures the pods of a node of which Kubernetes says that they belong to the mesh; by rules alone where there is a
    /// socket for stock ztunnels, as above.
    Kubernetes { source: Box<source::kube::Config>, socket: Option<PathBuf> },
    /// Opens listeners for the pods of which istio-cni tells by ZDS, and leaves the rules to it.
    BeneathIstioCni { socket: PathBuf },
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Listener(#[from] listener::Error),
    #[error(transparent)]
    Kubernetes(#[from] reflector::Error),
    #[error("waiting for changes of rules: {0}")]
    Wake(std::io::Error),
    #[error("status server: {0}")]
    Status(std::io::Error),
}

/// Another agent waits for the end of this one's process.
pub struct Succeeded {
    _waits: Arc<Connection>,
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

/// Stock ztunnels are numbered among the proxies from here on.
const ZTUNNELS: ProxyId = 1_000_000;

struct Agent {
    pods: Pods,
    proxies: Proxies,
    serving: Serving,
    rate: Rate,
    /// Of the namespace in which the agent runs; nothing where the rules are another's.
    host: Option<Host>,
    handed_out: Arc<AtomicU64>,
    /// What proxies asked for before it was known which pods there are: nothing is an answer that they would not ask after.
    early: Vec<(ProxyId, String, u32)>,
    notices: Notices,
    /// The source has told every pod once.
    known: bool,
    /// For stock ztunnels.
    rosters: watch::Sender<Option<Arc<Roster>>>,
    /// For istio-cni's client.
    proxied: watch::Sender<bool>,
    /// For Kubernetes.
    served: watch::Sender<Served>,
}

/// Runs until another agent wants to serve, which is told by the end of the process.
pub async fn run(config: Config) -> Result<Succeeded, Error> {
    let server = Server::bind(&config.socket, config.proxy_uid)?;
    let (say, mut said) = mpsc::channel(QUEUE);
    let (tell, mut told) = mpsc::channel(1);
    let (rosters, published) = watch::channel(None);
    let (proxied, present) = watch::channel(false);
    // Nobody takes them from there but Kubernetes.
    let (notices, noticed) = Notices::channel();
    let (served, seen_served) = watch::channel(Served::default());
    let (answer, mut answered) = mpsc::channel(QUEUE);
    let Config { socket, proxy_uid: _, role, audit_period, probe_uid, status, placed } = config;
    let part = role.begin(Ends { tell, published, answer, present, noticed, served: seen_served })?;
    tokio::spawn(server.serve(say));
    let wake = Arc::new(Wake::new().map_err(Error::Wake)?);
    let guarding = Guarding::new(wake.clone(), audit_period);
    let (ask, mut asked) = mpsc::channel(status::MOST_ASKING);
    let (known, is_known) = watch::channel(false);
    if let Some(listener) = status {
        let server = status::Server::on(listener).map_err(Error::Status)?;
        let placed = placed.unwrap_or_else(|| watch::channel(true).1);
        tokio::spawn(server.serve(ask.clone(), status::Ready { known: is_known, placed }));
    }
    let mut agent = Agent {
        pods: Pods::new(record::Record::beside(&socket), part, guarding),
        notices,
        proxies: Proxies::new(),
        serving: Serving::default(),
        rate: Rate::default(),
        host: (part != Part::Sockets).then(|| Host::new(probe_uid, audit_period, &wake)),
        handed_out: Arc::default(),
        early: Vec::new(),
        known: false,
        rosters,
        proxied,
        served,
    };
    let mut look = tokio::time::interval(PERIOD);
    tracing::info!(socket = %socket.display(), "ready");
    loop {
        let soon = agent.pods.soon();
        tokio::select! {
            Some(update) = told.recv() => agent.told(update).await,
            Some(message) = said.recv() => if let Some(succeeded) = agent.said(message).await {
                return Ok(succeeded);
            },
            Some(answer) = answered.recv() => agent.answered(answer),
            _ = look.tick() => {
                let changes = agent.pods.look().await;
                agent.announce(changes);
                agent.pods.audit().await;
                agent.keep_host();
            }
            () = soon => agent.pods.audit().await,
            tokens = wake.woken() => {
                if let Some(host) = agent.host.as_mut().filter(|_| tokens.contains(&host::TOKEN)) {
                    host.hear();
                    agent.keep_host();
                }
                agent.pods.woken(tokens);
                agent.pods.audit().await;
            }
            // Who asked may have gone.
            Some(answer) = asked.recv() => drop(answer.send(agent.snapshot())),
        }
        agent.pods.reports().into_iter().for_each(|notice| agent.notices.tell(notice));
        known.send_if_modified(|before| std::mem::replace(before, agent.known) != agent.known);
        let proxied = !agent.proxies.is_empty();
        agent.proxied.send_if_modified(|before| std::mem::replace(before, proxied) != proxied);
        let changes = agent.pods.proxied(proxied).await;
        agent.announce(changes);
        if matches!(part, Part::Rules { .. }) {
            agent.publish();
        }
    }
}

/// What those hold who tell of pods, and who serve them.
struct Ends {
    tell: mpsc::Sender<Update>,
    published: watch::Receiver<Option<Arc<Roster>>>,
    answer: mpsc::Sender<Said>,
    present: watch::Receiver<bool>,
    noticed: mpsc::Receiver<Notice>,
    served: watch::Receiver<Served>,
}

impl Role {
    /// Begins to follow who tells of pods.
    fn begin(self, ends: Ends) -> Result<Part, Error> {
        let Ends { tell, published, answer, present, noticed, served } = ends;
        Ok(match self {
            Role::Capture { pods } => {
                tokio::spawn(file::follow(pods, tell));
                Part::Both
            }
            Role::DriveZtunnels { pods, socket } => {
                serve_ztunnels(&socket, published, answer)?;
                tokio::spawn(file::follow(pods, tell));
                Part::Rules { proxied: false }
            }
            Role::Kubernetes { source, socket } => {
                let part = match socket {
                    Some(socket) => {
                        serve_ztunnels(&socket, published, answer)?;
                        Part::Rules { proxied: false }
                    }
                    None => Part::Both,
                };
                source::kube::start(*source, tell, noticed, served)?;
                part
            }
            Role::BeneathIstioCni { socket } => {
                tokio::spawn(zds::follow(socket, tell, present));
                Part::Sockets
            }
        })
    }
}

fn serve_ztunnels(
    socket: &Path,
    published: watch::Receiver<Option<Arc<Roster>>>,
    answer: mpsc::Sender<Said>,
) -> Result<(), listener::Error> {
    tokio::spawn(ZdsServer::bind(socket)?.serve(published, answer));
    tracing::info!(socket = %socket.display(), "serving ZDS; ztunnels open the pods' listeners");
    Ok(())
}

/// A change of a pod that every proxy must hear of.
pub(crate) struct Change {
    uid: String,
    message: Box<dyn Fn() -> std::io::Result<Outgoing> + Send>,
}

impl Agent {
    async fn told(&mut self, update: Update) {
        let Update { pods, unlocated, complete, ask } = update;
        let wanted = ask.as_ref().is_some_and(|ask| pods.iter().any(|pod| pod.uid == ask.uid));
        let uids = unlocated.iter().map(|pod| pod.uid.clone()).collect();
        let changes = self.pods.listed(pods, &uids, complete).await;
        self.pods.unlocated(unlocated).await;
        self.announce(changes);
        if complete && !self.known {
            self.known = true;
            self.pods.forget_handed_back();
            // A queue that is full ends with the next announcement.
            self.proxies.values().for_each(|proxy| drop(proxy.queue.try_send(snapshot_sent())));
            for (proxy, uid, count) in std::mem::take(&mut self.early) {
                self.refill(proxy, uid, count);
            }
        }
        // Before anybody hears that a pod is captured: its first probe may come at once.
        self.keep_host();
        let Some(ask) = ask else { return };
        // Who asked may have gone.
        match self.pods.failure(&ask.uid) {
            Some(reason) => drop(ask.answer.send(Err(reason.to_owned()))),
            None if wanted => self.serving.ask(ask),
            None => drop(ask.answer.send(Ok(()))),
        }
    }

    /// Whether another agent wants to serve.
    async fn said(&mut self, message: Incoming) -> Option<Succeeded> {
        match message {
            Incoming::Succeed { waits } => return Some(Succeeded { _waits: waits }),
            Incoming::Joined { proxy, held, queue } => self.welcome(proxy, held, queue).await,
            Incoming::Drained { proxy, uid } => self.pods.drained(proxy, &uid),
            Incoming::Left { proxy } => {
                self.proxies.remove(&proxy);
                self.pods.left(proxy);
                self.serving.left(proxy);
            }
            Incoming::Refill { proxy, uid, count }
                if !self.known && !self.pods.is_captured(&uid) && self.early.len() < MOST_REFILLS =>
            {
                self.early.push((proxy, uid, count));
            }
            Incoming::Refill { proxy, uid, count } => self.refill(proxy, uid, count),
            Incoming::Ready { proxy, uid } => {
                tracing::info!(pod = uid, "pod is served");
                self.heard(proxy, &uid, Ok(()));
            }
            Incoming::Failed { proxy, uid, reason } => {
                tracing::error!(pod = uid, reason, "the proxy cannot serve the pod; its connections wait");
                self.heard(proxy, &uid, Err(reason));
            }
        }
        None
    }

    fn refill(&mut self, proxy: ProxyId, uid: String, count: u32) {
        if !refill(&self.proxies, proxy, uid, count, &self.pods, &self.rate, &self.handed_out) {
            tracing::warn!(proxy, "proxy asks for more sockets than it can use, cut off");
            self.proxies.remove(&proxy);
        }
    }

    fn heard(&mut self, proxy: ProxyId, uid: &str, outcome: Result<(), String>) {
        if self.pods.is_captured(uid) && self.proxies.contains_key(&proxy) {
            self.serves(proxy, uid, outcome);
        }
    }

    fn answered(&mut self, said: Said) {
        match said {
            Said::Pod { ztunnel, uid, outcome } if self.pods.is_captured(&uid) => {
                self.serves(ZTUNNELS + ztunnel, &uid, outcome);
            }
            Said::Pod { .. } => {}
            Said::Left { ztunnel } => self.serving.left(ZTUNNELS + ztunnel),
        }
    }

    fn serves(&mut self, proxy: ProxyId, uid: &str, outcome: Result<(), String>) {
        if outcome.is_ok() {
            self.served.send_if_modified(|served| served.insert(uid.to_owned()));
        }
        self.serving.said(proxy, uid, outcome);
    }

    fn announce(&mut self, changes: Vec<Change>) {
        for Change { uid, message } in changes {
            self.serving.changed(&uid);
            // Whoever follows them keeps in mind what was true.
            self.served.send_if_modified(|served| {
                served.remove(&uid);
                false
            });
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

    fn keep_host(&mut self) {
        if let Some(host) = &mut self.host {
            host.keep(self.pods.members(), self.known);
        }
    }

    fn snapshot(&self) -> Snapshot {
        let quarantined = self.host.as_ref().and_then(Host::quarantined);
        Snapshot {
            pods: self.pods.statuses(quarantined, |uid| self.serving.proxies(uid)),
            counts: self.pods.counts.clone(),
            host_repairs: self.host.as_ref().map_or(0, |host| host.repairs),
            proxies: self.proxies.len(),
            handed_out: self.handed_out.load(Ordering::Relaxed),
            namespaces: self.pods.namespaces(),
        }
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
fn refill(
    proxies: &Proxies,
    proxy: ProxyId,
    uid: String,
    count: u32,
    pods: &Pods,
    rate: &Rate,
    handed_out: &Arc<AtomicU64>,
) -> bool {
    // A proxy that was cut off may still be heard.
    let Some(Proxy { queue, refills }) = proxies.get(&proxy) else { return true };
    let Ok(permit) = refills.clone().try_acquire_owned() else { return false };
    let (queue, rate, netns) = (queue.clone(), rate.clone(), pods.namespace_of(&uid));
    let handed_out = handed_out.clone();
    tokio::spawn(async move {
        let descriptors = match netns {
            Some(netns) => stock(&uid, count, netns, rate).await,
            None => Vec::new(),
        };
        handed_out.fetch_add(descriptors.len() as u64, Ordering::Relaxed);
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
