//! Follows the agent: brings pods up on every worker, takes them down, and shares out the sockets that come.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt;
use redirect::client::{Client, Event, Held, Listeners, Pod};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use ztunnel_model::Identity;

use super::demand::Demands;
use crate::identity::manager::Handle as Identities;
use crate::io::Workers;
use crate::net::listen::same_socket;
use crate::proxy::{Direction, Live, PodFacts, PodProxy, Shared};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What a worker holds: its share of every pod.
#[derive(Default)]
pub struct Local {
    pods: std::cell::RefCell<HashMap<String, Rc<PodProxy>>>,
}

/// Pods as the configuration dump shows them; shared with the control thread's other tasks.
#[derive(Clone, Default)]
pub struct View(Arc<Mutex<Shown>>);

/// Each pod with its connections on every worker.
type Shown = BTreeMap<String, (Arc<PodFacts>, Vec<Live>)>;

pub struct Manager {
    workers: Arc<Workers<Local>>,
    shared: Arc<Shared>,
    identities: Identities,
    trust_domain: String,
    socket: PathBuf,
    demands: Demands,
    view: View,
    pods: HashMap<String, Enrolled>,
    /// Called once, when the agent's first snapshot is served.
    ready: Option<Box<dyn FnOnce()>>,
}

struct Enrolled {
    /// Kept to hand back to an agent that lost its own.
    listeners: Listeners,
    stop: CancellationToken,
    /// Which worker gets the next sockets, in the order of asking.
    asked: VecDeque<(usize, u32)>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("pod {pod}: {source}")]
    Identity { pod: String, source: ztunnel_model::identity::Error },
    #[error("pod {pod}: its listeners cannot be used: {source}")]
    Listeners { pod: String, source: io::Error },
}

impl Manager {
    pub fn new(
        workers: Arc<Workers<Local>>,
        shared: Arc<Shared>,
        identities: Identities,
        trust_domain: String,
        socket: PathBuf,
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
            pods: HashMap::new(),
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
        loop {
            tokio::select! {
                event = client.next() => match event {
                    Ok(Event::PodAdded(pod)) => {
                        named.insert(pod.uid.clone());
                        let uid = pod.uid.clone();
                        match self.add(pod).await {
                            Ok(()) => agent.ready(&uid),
                            Err(error) => {
                                tracing::error!(%error, "pod not served");
                                agent.failed(&uid, &error.to_string());
                            }
                        }
                    }
                    Ok(Event::SnapshotSent) => {
                        let gone: Vec<String> =
                            self.pods.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
                        for uid in gone {
                            self.remove(&uid).await;
                        }
                        if let Some(ready) = self.ready.take() {
                            ready();
                        }
                    }
                    Ok(Event::Sockets { uid, sockets }) => self.share_out(&uid, sockets).await,
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
            }
        }
    }

    async fn add(&mut self, pod: Pod) -> Result<(), Error> {
        let Pod { uid, name, namespace, service_account, addresses, listeners } = pod;
        if let Some(known) = self.pods.get_mut(&uid) {
            if same_socket(&known.listeners.hbone, &listeners.hbone) {
                return Ok(());
            }
            return self.listen_again(&uid, listeners).await;
        }
        let identity = Identity::new(&self.trust_domain, &namespace, &service_account)
            .map_err(|source| Error::Identity { pod: uid.clone(), source })?;
        let facts =
            Arc::new(PodFacts { uid: uid.clone(), name, namespace, service_account, addresses, identity });
        let svid = self.identities.pod_svid(facts.identity.clone());
        let stop = CancellationToken::new();
        let mut live = Vec::new();
        // Known before the workers start, because they ask for sockets at once.
        let fail = |source| Error::Listeners { pod: uid.clone(), source };
        let kept = duplicate(&listeners).map_err(fail)?;
        self.pods
            .insert(uid.clone(), Enrolled { listeners: kept, stop: stop.clone(), asked: VecDeque::new() });
        for worker in 0..self.workers.count() {
            let share = duplicate(&listeners).map_err(fail)?;
            let shown = Live::default();
            live.push(shown.clone());
            let (facts, shared, svid, stop) =
                (facts.clone(), self.shared.clone(), svid.clone(), stop.clone());
            let (demands, asker) = (self.demands.clone(), uid.clone());
            let start = move |local: &Rc<Local>| {
                let ask = Box::new(move |count| demands.add(&asker, worker, count));
                match PodProxy::start(facts.clone(), shared, svid, share, ask, shown, stop) {
                    Ok(pod) => drop(local.pods.borrow_mut().insert(facts.uid.clone(), pod)),
                    Err(error) => tracing::error!(pod = %facts.uid, %error, "pod not served by this worker"),
                }
            };
            if let Err(error) = self.workers.run(worker, start).await {
                tracing::error!(%error, pod = %uid, "pod not served by this worker");
            }
        }
        tracing::info!(pod = %uid, namespace = %facts.namespace, name = %facts.name, identity = %facts.identity, "pod added");
        self.shared.metrics.pods_active.inc();
        self.shared.metrics.pods_started.inc();
        self.view.pods().insert(uid, (facts, live));
        Ok(())
    }

    /// A new agent opened new listeners for a pod that is served already.
    async fn listen_again(&mut self, uid: &str, listeners: Listeners) -> Result<(), Error> {
        let fail = |source| Error::Listeners { pod: uid.to_owned(), source };
        for worker in 0..self.workers.count() {
            let share = duplicate(&listeners).map_err(fail)?;
            let pod = uid.to_owned();
            let listen = move |local: &Rc<Local>| {
                let found = local.pods.borrow().get(&pod).cloned();
                if let Some(Err(error)) = found.map(|found| found.listen(share)) {
                    tracing::error!(%pod, %error, "new listeners cannot be used");
                }
            };
            if let Err(error) = self.workers.run(worker, listen).await {
                tracing::error!(%error, pod = uid, "new listeners not passed on");
            }
        }
        if let Some(known) = self.pods.get_mut(uid) {
            known.listeners = listeners;
        }
        Ok(())
    }

    async fn remove(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        pod.stop.cancel();
        for worker in 0..self.workers.count() {
            let uid = uid.to_owned();
            let forget = move |local: &Rc<Local>| drop(local.pods.borrow_mut().remove(&uid));
            if let Err(error) = self.workers.run(worker, forget).await {
                tracing::error!(%error, "pod not removed from a worker");
            }
        }
        self.view.pods().remove(uid);
        self.shared.metrics.pods_active.dec();
        self.shared.metrics.pods_stopped.inc();
        tracing::info!(pod = uid, "pod removed");
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
                let found = local.pods.borrow().get(&uid).cloned();
                if let Some(pod) = found {
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

impl View {
    /// `workloadState` of the configuration dump (interop.md section 11.5).
    pub fn dump(&self) -> Value {
        let pods = self.pods();
        let states = pods.iter().map(|(uid, (facts, live))| {
            let all: Vec<_> = live.iter().flat_map(Live::list).collect();
            let of = |direction: Direction| -> Vec<_> {
                all.iter().filter(|connection| connection.direction == direction).collect()
            };
            let state = json!({
                "state": "Up",
                "connections": { "inbound": of(Direction::Inbound), "outbound": of(Direction::Outbound) },
                "info": {
                    "name": facts.name,
                    "namespace": facts.namespace,
                    "serviceAccount": facts.service_account,
                },
            });
            (uid.clone(), state)
        });
        Value::Object(states.collect())
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn duplicate(listeners: &Listeners) -> io::Result<Listeners> {
    Ok(Listeners {
        outbound: listeners.outbound.try_clone()?,
        plaintext: listeners.plaintext.try_clone()?,
        hbone: listeners.hbone.try_clone()?,
    })
}
