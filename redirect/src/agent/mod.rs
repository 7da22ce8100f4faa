//! The agent: one task that owns every pod from its capture to its withdrawal.
//!
//! ```text
//! listed ─▶ capturing ─▶ captured ─▶ withdrawn (no longer listed: rules removed, listeners closed)
//!    ▲          │ failed: tried again    └▶ gone (its namespace is no more: descriptors closed)
//!    └──────────┘ with back-off
//! ```
//!
//! A proxy that joins is answered after the first list: until then nobody can tell which of its pods are still wanted,
//! and it goes on serving what it holds.
//!
//! After a restart, ports that are in use belong most likely to a proxy that outlived the agent: capturing then fails,
//! is tried again, and succeeds when that proxy reconnects and hands its listeners back.

mod pods;
mod rate;
mod record;

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
use crate::source::file;
use crate::zds::server::{Roster, Server as ZdsServer};
use pods::{Opener, Pods};
use rate::Rate;

/// How the agent is started.
#[derive(Debug, Clone)]
pub struct Config {
    pub socket: PathBuf,
    pub pods: PathBuf,
    pub proxy_uid: u32,
    /// Where stock ztunnels are served by ZDS; they open the listeners.
    pub ztunnel_uds: Option<PathBuf>,
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

/// A proxy that said Hello, with the listeners that it held.
struct Joined {
    proxy: ProxyId,
    held: Vec<(String, Listeners)>,
    queue: mpsc::Sender<Outgoing>,
}

/// Runs for ever.
pub async fn run(config: Config) -> Result<(), Error> {
    let server = Server::bind(&config.socket, config.proxy_uid)?;
    let (say, mut said) = mpsc::channel(QUEUE);
    let (list, mut lists) = mpsc::channel(1);
    tokio::spawn(server.serve(say));
    let (rosters, published) = watch::channel(None);
    let opener = match config.ztunnel_uds {
        Some(path) => {
            tokio::spawn(ZdsServer::bind(&path)?.serve(published));
            tracing::info!(socket = %path.display(), "serving ZDS; ztunnels open the pods' listeners");
            Opener::Ztunnel { proxied: false }
        }
        None => Opener::Agent,
    };
    tokio::spawn(file::follow(config.pods, list));
    let mut pods = Pods::new(record::Record::beside(&config.socket), opener);
    let mut proxies = Proxies::new();
    let rate = Rate::default();
    let mut look = tokio::time::interval(PERIOD);
    tracing::info!(socket = %config.socket.display(), "ready");
    // Empty once the first list came.
    let mut early = Some(Vec::new());
    loop {
        let changes = tokio::select! {
            Some(listed) = lists.recv() => {
                let changes = pods.listed(listed).await;
                announce(&mut proxies, changes);
                for joined in early.take().into_iter().flatten() {
                    welcome(&mut pods, &mut proxies, joined).await;
                }
                Vec::new()
            }
            _ = look.tick() => pods.look().await,
            Some(message) = said.recv() => match message {
                Incoming::Joined { proxy, held, queue } => {
                    let joined = Joined { proxy, held, queue };
                    match &mut early {
                        Some(early) => early.push(joined),
                        None => welcome(&mut pods, &mut proxies, joined).await,
                    }
                    Vec::new()
                }
                Incoming::Left { proxy } => {
                    proxies.remove(&proxy);
                    early.iter_mut().for_each(|early| early.retain(|joined| joined.proxy != proxy));
                    Vec::new()
                }
                Incoming::Refill { proxy, uid, count } => {
                    if !refill(&proxies, proxy, uid, count, &pods, &rate) {
                        tracing::warn!(proxy, "proxy asks for more sockets than it can use, cut off");
                        proxies.remove(&proxy);
                    }
                    Vec::new()
                }
                Incoming::Ready { uid } => {
                    tracing::info!(pod = uid, "pod is served");
                    Vec::new()
                }
                Incoming::Failed { uid, reason } => {
                    tracing::error!(pod = uid, reason, "the proxy cannot serve the pod; its connections wait");
                    Vec::new()
                }
            },
        };
        announce(&mut proxies, changes);
        if opener != Opener::Agent {
            let changes = pods.proxied(!proxies.is_empty()).await;
            announce(&mut proxies, changes);
            publish(&rosters, &pods, early.is_none());
        }
    }
}

/// Before the first list nobody can tell which pods are wanted.
fn publish(rosters: &watch::Sender<Option<Arc<Roster>>>, pods: &Pods, known: bool) {
    let roster = pods.roster();
    rosters.send_if_modified(|published| {
        let news = known && published.as_deref() != Some(&roster);
        if news {
            *published = Some(Arc::new(roster));
        }
        news
    });
}

/// A change that every proxy must hear of.
pub(crate) type Change = Box<dyn Fn() -> std::io::Result<Outgoing> + Send>;

fn announce(proxies: &mut Proxies, changes: Vec<Change>) {
    for change in changes {
        proxies.retain(|proxy, Proxy { queue, .. }| match change() {
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
async fn welcome(pods: &mut Pods, proxies: &mut Proxies, joined: Joined) {
    let Joined { proxy, held, queue } = joined;
    let changes = pods.adopt(held).await;
    for message in pods.snapshot() {
        // Its queue is longer than a node has pods.
        let _ = queue.try_send(message);
    }
    announce(proxies, changes);
    proxies.insert(proxy, Proxy { queue, refills: Arc::new(Semaphore::new(MOST_REFILLS)) });
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
