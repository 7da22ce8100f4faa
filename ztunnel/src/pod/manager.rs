//! Follows the agent: brings pods up on every worker, takes them down, and shares out the sockets that come.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use redirect::client::{Client, Event, Handle as Agent, Held, Listeners, Pod};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use ztunnel_model::Identity;

use super::demand::Demands;
use super::view::{Shown, View};
use crate::identity::manager::Handle as Identities;
use crate::io::budget::Room;
use crate::io::worker::{self, Workers};
use crate::net::listen::same_socket;
use crate::proxy::{Live, Neighbours, PodFacts, PodProxy, Shared};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether pods that leave have connections left.
const LOOK: Duration = Duration::from_millis(250);
/// A pod without a connection for so long has none in the queues of its listeners either.
const QUIET: Duration = Duration::from_secs(2);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What a worker holds: its share of every pod.
#[derive(Default)]
pub struct Local {
    pub(super) pods: RefCell<HashMap<String, Rc<PodProxy>>>,
    pub(super) neighbours: Rc<Neighbours>,
}

impl Local {
    pub(super) fn pod(&self, uid: &str) -> Option<Rc<PodProxy>> {
        self.pods.borrow().get(uid).cloned()
    }
}

pub struct Manager {
    pub(super) workers: Arc<Workers<Local>>,
    pub(super) shared: Arc<Shared>,
    pub(super) identities: Identities,
    trust_domain: String,
    socket: PathBuf,
    pub(super) demands: Demands,
    pub(super) view: View,
    /// How many workers there shall be.
    sizes: watch::Receiver<usize>,
    /// When their number is to be changed, if it is.
    resize_again: Option<Instant>,
    pub(super) pods: HashMap<String, Enrolled>,
    /// Pods that could not be served; never one of `pods`.
    pending: HashMap<String, Pending>,
    /// Called once, when the agent's first snapshot is served.
    ready: Option<Box<dyn FnOnce()>>,
}

pub(super) struct Enrolled {
    pub(super) facts: Arc<PodFacts>,
    /// Kept to hand back to an agent that lost its own.
    pub(super) listeners: Listeners,
    pub(super) stop: CancellationToken,
    /// Which worker gets the next sockets, in the order of asking.
    asked: VecDeque<(usize, u32)>,
    /// The worker that accepts.
    pub(super) home: usize,
    /// Its connections on every worker.
    pub(super) live: Vec<Live>,
    pub(super) room: Arc<Room>,
    /// Since when it has been leaving without a connection; the outer is none while it stays.
    leaving: Option<Option<Instant>>,
}

struct Pending {
    pod: Pod,
    /// How long it waits this time.
    pause: Duration,
    due: Instant,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("pod {pod}: {source}")]
    Identity { pod: String, source: ztunnel_model::identity::Error },
    #[error("pod {pod}: its listeners cannot be used: {source}")]
    Listeners { pod: String, source: io::Error },
    #[error(transparent)]
    Grow(worker::Error),
    #[error("pod {pod}: {source}")]
    Worker { pod: String, source: worker::Error },
}

impl Manager {
    pub fn new(
        workers: Arc<Workers<Local>>,
        shared: Arc<Shared>,
        identities: Identities,
        trust_domain: String,
        socket: PathBuf,
        sizes: watch::Receiver<usize>,
        ready: impl FnOnce() + 'static,
    ) -> (Self, View) {
        let view = View::default();
        let manager = Self {
            workers,
            shared,
            identities,
            trust_domain,
            socket,
            demands: Demands::default(),
            view: view.clone(),
            sizes,
            resize_again: None,
            pods: HashMap::new(),
            pending: HashMap::new(),
            ready: Some(Box::new(ready)),
        };
        (manager, view)
    }

    /// Serves for ever; an agent that goes away is waited for while everything that stands goes on.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.connect().await {
                Ok(client) => {
                    tracing::info!(socket = %self.socket.display(), "connected to the agent");
                    pause = FIRST_PAUSE;
                    let error = self.follow(client).await;
                    tracing::warn!(%error, "the agent is gone; pods go on, new sockets wait for its return");
                }
                Err(error) => tracing::warn!(%error, retry_ms = pause.as_millis(), "no agent"),
            }
            tokio::time::sleep(pause.mul_f64(rand::rng().random_range(0.8..1.2))).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    async fn connect(&self) -> Result<Client, redirect::client::Error> {
        let held = self.pods.iter().filter_map(|(uid, pod)| {
            let listeners = duplicate(&pod.listeners).ok()?;
            Some(Held { uid: uid.clone(), listeners })
        });
        Client::connect(&self.socket, held.collect()).await
    }

    async fn follow(&mut self, mut client: Client) -> redirect::client::Error {
        self.ask_again().await;
        let agent = client.handle();
        let mut named = HashSet::new();
        let demands = self.demands.clone();
        let mut look = Instant::now();
        loop {
            let next = self.pending.values().map(|pending| pending.due).min();
            let leaving = self.pods.values().any(|pod| pod.leaving.is_some());
            let next = next.into_iter().chain(leaving.then_some(look)).chain(self.resize_again).min();
            tokio::select! {
                event = client.next() => match event {
                    Ok(Event::PodAdded(pod)) => {
                        named.insert(pod.uid.clone());
                        self.pending.remove(&pod.uid);
                        self.enrol(pod, &agent, None).await;
                    }
                    Ok(Event::SnapshotSent) => {
                        let known = self.pods.keys().chain(self.pending.keys());
                        let gone: Vec<String> = known.filter(|uid| !named.contains(*uid)).cloned().collect();
                        for uid in gone {
                            self.remove(&uid).await;
                        }
                        if let Some(ready) = self.ready.take() {
                            ready();
                        }
                    }
                    Ok(Event::Sockets { uid, sockets }) => self.share_out(&uid, sockets).await,
                    Ok(Event::PodLeaving { uid }) => self.leave(&uid, &agent),
                    Ok(Event::PodRemoved { uid }) => self.remove(&uid).await,
                    Err(error) => return error,
                },
                wanted = demands.take() => {
                    for ((uid, worker), count) in wanted {
                        if let Some(pod) = self.pods.get_mut(&uid) {
                            pod.asked.push_back((worker, count));
                            agent.refill(&uid, count);
                        }
                    }
                }
                Ok(()) = self.sizes.changed() => self.resize_again = Some(Instant::now()),
                () = until(next) => {
                    if look <= Instant::now() {
                        self.drained(&agent);
                        look = Instant::now() + LOOK;
                    }
                    self.try_again(&agent).await;
                    self.try_resize().await;
                }
            }
        }
    }

    /// Serves a pod, or keeps it to try again.
    async fn enrol(&mut self, pod: Pod, agent: &Agent, failed: Option<Duration>) {
        match self.add(&pod).await {
            Ok(()) => agent.ready(&pod.uid),
            Err(error) => {
                let pause = failed.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LAST_PAUSE));
                tracing::error!(%error, retry_ms = pause.as_millis(), "pod not served");
                agent.failed(&pod.uid, &error.to_string());
                self.view.show(&pod.uid, Shown::pending(&pod));
                let due = Instant::now() + pause.mul_f64(rand::rng().random_range(0.8..1.2));
                self.pending.insert(pod.uid.clone(), Pending { pod, pause, due });
            }
        }
        self.count();
    }

    /// The agent captures no more of its connections; it is told when those that there are have ended.
    fn leave(&mut self, uid: &str, agent: &Agent) {
        match self.pods.get_mut(uid) {
            Some(pod) => {
                tracing::info!(pod = uid, "pod leaves the mesh; its connections go on");
                pod.leaving = Some(None);
            }
            None => agent.drained(uid),
        }
    }

    fn drained(&mut self, agent: &Agent) {
        let now = Instant::now();
        for (uid, pod) in &mut self.pods {
            let Some(quiet) = &mut pod.leaving else { continue };
            match *quiet {
                _ if !pod.live.iter().all(Live::is_empty) => *quiet = None,
                None => *quiet = Some(now),
                Some(since) if now - since >= QUIET => {
                    agent.drained(uid);
                    *quiet = Some(now);
                }
                Some(_) => {}
            }
        }
    }

    async fn try_again(&mut self, agent: &Agent) {
        let now = Instant::now();
        let due = |(uid, pending): (&String, &Pending)| (pending.due <= now).then(|| uid.clone());
        let due: Vec<String> = self.pending.iter().filter_map(due).collect();
        for uid in due {
            if let Some(Pending { pod, pause, .. }) = self.pending.remove(&uid) {
                self.enrol(pod, agent, Some(pause)).await;
            }
        }
    }

    async fn try_resize(&mut self) {
        if self.resize_again.is_none_or(|due| due > Instant::now()) {
            return;
        }
        let count = *self.sizes.borrow_and_update();
        self.resize_again = match self.resize(count).await {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(%error, count, retry_ms = LAST_PAUSE.as_millis(), "the number of workers stays");
                Some(Instant::now() + LAST_PAUSE.mul_f64(rand::rng().random_range(0.8..1.2)))
            }
        };
    }

    async fn add(&mut self, pod: &Pod) -> Result<(), Error> {
        let uid = &pod.uid;
        let listeners =
            duplicate(&pod.listeners).map_err(|source| Error::Listeners { pod: uid.clone(), source })?;
        if let Some(known) = self.pods.get_mut(uid) {
            known.leaving = None;
            if same_socket(&known.listeners.hbone, &listeners.hbone) {
                return Ok(());
            }
            return self.listen_again(uid, listeners).await;
        }
        let identity = Identity::new(&self.trust_domain, &pod.namespace, &pod.service_account)
            .map_err(|source| Error::Identity { pod: uid.clone(), source })?;
        let facts = Arc::new(PodFacts {
            uid: uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            addresses: pod.addresses.clone(),
            identity,
        });
        let stop = self.shared.drain.force().child_token();
        // Known before the workers start, because they ask for sockets at once.
        let enrolled = Enrolled {
            facts: facts.clone(),
            listeners,
            stop: stop.clone(),
            asked: VecDeque::new(),
            home: self.next_home(),
            live: Vec::new(),
            room: Arc::default(),
            leaving: None,
        };
        self.pods.insert(uid.clone(), enrolled);
        match self.start(uid).await {
            Ok(()) => {
                tracing::info!(pod = %uid, namespace = %facts.namespace, name = %facts.name, identity = %facts.identity, "pod added");
                self.shared.metrics.pods_started.inc();
                Ok(())
            }
            Err(error) => {
                // A share of it would lose the connections that the kernel gives to the workers without one.
                self.stop(uid).await;
                Err(error)
            }
        }
    }

    async fn remove(&mut self, uid: &str) {
        let waited = self.pending.remove(uid).is_some();
        let served = self.stop(uid).await;
        if served {
            self.shared.metrics.pods_stopped.inc();
        }
        if served || waited {
            self.view.forget(uid);
            tracing::info!(pod = uid, "pod removed");
        }
        self.count();
    }

    /// Ends a pod on every worker; `false` if it was not there.
    async fn stop(&mut self, uid: &str) -> bool {
        let Some(pod) = self.pods.remove(uid) else { return false };
        pod.stop.cancel();
        let (namespace, name) = (&pod.facts.namespace, &pod.facts.name);
        let succeeded = |other: &Enrolled| other.facts.namespace == *namespace && other.facts.name == *name;
        if !self.pods.values().any(succeeded) {
            self.shared.metrics.forget_pod(namespace, name);
        }
        for worker in 0..self.workers.count() {
            let uid = uid.to_owned();
            let forget = move |local: &Rc<Local>| drop(local.pods.borrow_mut().remove(&uid));
            if let Err(error) = self.workers.run(worker, forget).await {
                tracing::error!(%error, "pod not removed from a worker");
            }
        }
        true
    }

    fn count(&self) {
        self.shared.metrics.pods_active.set(self.pods.len() as i64);
        self.shared.metrics.pods_pending.set(self.pending.len() as i64);
    }

    /// In the order of asking; whatever nobody asked for goes to the first worker.
    async fn share_out(&mut self, uid: &str, mut sockets: Vec<OwnedFd>) {
        while !sockets.is_empty() {
            let Some(pod) = self.pods.get_mut(uid) else { return };
            let (worker, count) = pod.asked.pop_front().unwrap_or((0, u32::MAX));
            let part = sockets.split_off(sockets.len().saturating_sub(count as usize));
            let unanswered = count.saturating_sub(part.len() as u32);
            if unanswered > 0 && count != u32::MAX {
                pod.asked.push_front((worker, unanswered));
            }
            let uid = uid.to_owned();
            let restock = move |local: &Rc<Local>| {
                if let Some(pod) = local.pod(&uid) {
                    pod.restock(part);
                }
            };
            if let Err(error) = self.workers.run(worker, restock).await {
                tracing::error!(%error, "sockets not passed on");
            }
        }
    }

    /// What the last agent was asked for never comes.
    async fn ask_again(&mut self) {
        for pod in self.pods.values_mut() {
            pod.asked.clear();
        }
        self.workers.ask(|local| local.pods.borrow().values().for_each(|pod| pod.ask_again())).await;
    }
}

/// For ever if there is no such time.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

pub(super) fn duplicate(listeners: &Listeners) -> io::Result<Listeners> {
    Ok(Listeners {
        outbound: listeners.outbound.try_clone()?,
        plaintext: listeners.plaintext.try_clone()?,
        hbone: listeners.hbone.try_clone()?,
    })
}
