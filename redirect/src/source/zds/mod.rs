//! Pods from istio-cni, by ZDS: it writes the rules and tells of each pod with its network namespace; this agent opens
//! the sockets, and with the proxy is what istio-cni takes for a ztunnel.
//!
//! It therefore connects only while a proxy is there, and a pod is acknowledged when a proxy serves it. What cannot be
//! served in time is refused with the reason and tried further, as istio-cni expects of a ztunnel. Pods outlive a
//! connection: the next SnapshotSent tells which of them have gone meanwhile.
//!
//! A message that breaks the protocol is answered with the reason and ends the connection; pods go on and the next
//! connection is tried with back-off. (Istio's ztunnel ends its process after some of them, with every connection it
//! carries; that is on purpose not done here.)

mod request;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Ask, Pod, Update};
use crate::locate::addresses;
use crate::netns::{self, Place};
use crate::retry::Retry;
use crate::zds::wire::{self, Connection, MAX_MESSAGE, proto};
use request::{Mistake, Request};

/// For a pod to be served, less than the 5 s for which istio-cni waits.
const SERVED: Duration = Duration::from_secs(4);
/// More pods than a node can have.
const MOST_PODS: usize = 4096;
/// A longer reason is cut, so that it fits a message.
const MOST_REASON: usize = MAX_MESSAGE / 2;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("connecting to istio-cni at {path}: {source}; is it running on this node?")]
    Connect { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Wire(#[from] wire::Error),
    #[error("istio-cni broke the protocol: {0}")]
    Mistake(#[from] Mistake),
    #[error("the agent ends")]
    AgentEnds,
}

/// Why one pod is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    #[error("addresses of the pod: {0}")]
    Addresses(#[from] nix::Error),
    #[error("more than {MOST_PODS} pods")]
    TooMany,
    #[error("a pod without a uid")]
    NoUid,
    #[error("no proxy serves the pod after {} s; it is tried further", SERVED.as_secs())]
    Late,
    #[error("{0}")]
    Agent(String),
}

struct Source {
    pods: BTreeMap<String, Pod>,
    updates: mpsc::Sender<Update>,
    /// What this connection has named; `None` once it has named all.
    named: Option<HashSet<String>>,
}

/// Follows until nobody listens. `proxied` tells whether a proxy is connected.
pub async fn follow(path: PathBuf, updates: mpsc::Sender<Update>, mut proxied: watch::Receiver<bool>) {
    let mut source = Source { pods: BTreeMap::new(), updates, named: None };
    let mut retry = None;
    while proxied.wait_for(|yes| *yes).await.is_ok() {
        source.named = Some(HashSet::new());
        let Err(end) = source.session(&path).await;
        if matches!(end, End::AgentEnds) {
            return;
        }
        let pause = Retry::after(retry.filter(|_| source.named.is_some()));
        retry = Some(pause);
        let retry_ms = pause.wait().as_millis();
        tracing::warn!(reason = %end, retry_ms, "not connected to istio-cni; pods stay as they are");
        tokio::time::sleep_until(pause.due()).await;
    }
}

impl Source {
    async fn session(&mut self, path: &Path) -> Result<std::convert::Infallible, End> {
        let connection = open(path).map_err(|source| End::Connect { path: path.to_owned(), source })?;
        connection.send(&proto::ZdsHello { version: proto::Version::V1.into() }, None).await?;
        tracing::info!(socket = %path.display(), "connected to istio-cni");
        loop {
            let packet = connection.packet().await?;
            let outcome = match request::parse(packet) {
                Ok(request) => self.carry_out(request).await,
                Err(mistake) => Err(mistake.into()),
            };
            match outcome {
                Ok(Ok(())) => acknowledge(&connection, "").await?,
                Ok(Err(refused)) => acknowledge(&connection, &refused.to_string()).await?,
                Err(end) => {
                    if let End::Mistake(mistake) = &end {
                        acknowledge(&connection, &mistake.to_string()).await?;
                    }
                    return Err(end);
                }
            }
        }
    }

    /// The outer error ends the connection, the inner one concerns one pod.
    async fn carry_out(&mut self, request: Request) -> Result<Result<(), Refused>, End> {
        match request {
            Request::Add { uid, info, netns } => {
                let outcome = self.add(&uid, info, netns).await?;
                if let Err(error) = &outcome {
                    tracing::error!(pod = uid, %error, "pod refused");
                }
                return Ok(outcome);
            }
            Request::Keep { uid } => {
                self.named.as_mut().ok_or(Mistake::LateKeep)?.insert(uid);
            }
            Request::Del { uid } => {
                if let Some(named) = &mut self.named {
                    named.remove(&uid);
                }
                if self.pods.remove(&uid).is_some() {
                    tracing::info!(pod = uid, "istio-cni tells that the pod is gone");
                    // Answered as soon as the agent has closed what it held.
                    let _ = self.ask(uid).await?;
                }
            }
            Request::SnapshotSent => {
                let named = self.named.take().ok_or(Mistake::SecondSnapshot)?;
                self.pods.retain(|uid, _| named.contains(uid));
                tracing::info!(pods = self.pods.len(), "istio-cni has told every pod");
                self.tell(None).await?;
            }
        }
        Ok(Ok(()))
    }

    async fn add(
        &mut self,
        uid: &str,
        info: proto::WorkloadInfo,
        netns: OwnedFd,
    ) -> Result<Result<(), Refused>, End> {
        if uid.is_empty() {
            return Ok(Err(Refused::NoUid));
        }
        if self.pods.len() >= MOST_PODS && !self.pods.contains_key(uid) {
            return Ok(Err(Refused::TooMany));
        }
        // Also where it is refused: what served it before goes on.
        if let Some(named) = &mut self.named {
            named.insert(uid.to_owned());
        }
        let pod = match pod(uid, info, netns).await {
            Ok(pod) => pod,
            Err(refused) => return Ok(Err(refused)),
        };
        match self.pods.get(uid) {
            // Its addresses may be in another order; that is no news.
            Some(known) if (Pod { addresses: known.addresses.clone(), ..pod.clone() }) == *known => {}
            _ => drop(self.pods.insert(uid.to_owned(), pod)),
        }
        self.ask(uid.to_owned()).await
    }

    /// Tells the agent what there is, and waits for what becomes of one pod.
    async fn ask(&self, uid: String) -> Result<Result<(), Refused>, End> {
        let (answer, outcome) = oneshot::channel();
        self.tell(Some(Ask { uid, answer })).await?;
        match tokio::time::timeout(SERVED, outcome).await {
            Ok(Ok(outcome)) => Ok(outcome.map_err(Refused::Agent)),
            Ok(Err(_)) => Err(End::AgentEnds),
            Err(_) => Ok(Err(Refused::Late)),
        }
    }

    async fn tell(&self, ask: Option<Ask>) -> Result<(), End> {
        let pods = self.pods.values().cloned().collect();
        let update = Update { pods, complete: self.named.is_none(), ask, ..Update::default() };
        self.updates.send(update).await.map_err(|_| End::AgentEnds)
    }
}

fn open(path: &Path) -> std::io::Result<Connection> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Connection::new(socket.into())
}

async fn acknowledge(connection: &Connection, error: &str) -> Result<(), wire::Error> {
    let error = error[..error.floor_char_boundary(MOST_REASON)].to_owned();
    let ack = proto::workload_response::Payload::Ack(proto::Ack { error });
    connection.send(&proto::WorkloadResponse { payload: Some(ack) }, None).await
}

async fn pod(uid: &str, info: proto::WorkloadInfo, netns: OwnedFd) -> Result<Pod, Refused> {
    let netns = Place::of_descriptor(netns)?;
    let addresses = netns.open()?.run(addresses).await??;
    let proto::WorkloadInfo { name, namespace, service_account } = info;
    Ok(Pod { uid: uid.to_owned(), name, namespace, service_account, netns, addresses, strict: true })
}
