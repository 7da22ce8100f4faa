//! The agent: one task that owns every pod from its capture to its withdrawal.
//!
//! ```text
//! listed ─▶ capturing ─▶ captured ─▶ withdrawn (no longer listed: rules removed, listeners closed)
//!    ▲          │ failed: tried again    └▶ gone (its namespace is no more: descriptors closed)
//!    └──────────┘ with back-off
//! ```
//!
//! After a restart, ports that are in use belong most likely to a proxy that outlived the agent: capturing then fails,
//! is tried again, and succeeds when that proxy reconnects and hands its listeners back.

mod pods;
mod rate;
mod record;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::broker::server::{self, Incoming, Outgoing, ProxyId, Server};
use crate::broker::wire::MAX_DESCRIPTORS;
use crate::broker::wire::proto::{self, to_proxy};
use crate::netns::Netns;
use crate::sockets;
use crate::source::file;
use pods::Pods;
use rate::Rate;

/// How the agent is started.
#[derive(Debug, Clone)]
pub struct Config {
    pub socket: PathBuf,
    pub pods: PathBuf,
    pub proxy_uid: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Broker(#[from] server::Error),
}

const QUEUE: usize = 1024;
/// How often namespaces are looked at and failed captures tried.
const PERIOD: Duration = Duration::from_millis(200);

type Proxies = HashMap<ProxyId, mpsc::Sender<Outgoing>>;

/// Runs for ever.
pub async fn run(config: Config) -> Result<(), Error> {
    let server = Server::bind(&config.socket, config.proxy_uid)?;
    let (say, mut said) = mpsc::channel(QUEUE);
    let (list, mut lists) = mpsc::channel(1);
    tokio::spawn(server.serve(say));
    tokio::spawn(file::follow(config.pods, list));
    let mut pods = Pods::new(record::Record::beside(&config.socket));
    let mut proxies = Proxies::new();
    let rate = Rate::default();
    let mut look = tokio::time::interval(PERIOD);
    tracing::info!(socket = %config.socket.display(), "ready");
    loop {
        let changes = tokio::select! {
            Some(listed) = lists.recv() => pods.listed(listed).await,
            _ = look.tick() => pods.look().await,
            Some(message) = said.recv() => match message {
                Incoming::Joined { proxy, held, queue } => {
                    let changes = pods.adopt(held).await;
                    for message in pods.snapshot() {
                        // Its queue is longer than a node has pods.
                        let _ = queue.try_send(message);
                    }
                    announce(&mut proxies, changes);
                    proxies.insert(proxy, queue);
                    Vec::new()
                }
                Incoming::Left { proxy } => {
                    proxies.remove(&proxy);
                    Vec::new()
                }
                Incoming::Refill { proxy, uid, count } => {
                    if let (Some(queue), Some(netns)) = (proxies.get(&proxy), pods.namespace_of(&uid)) {
                        tokio::spawn(refill(queue.clone(), uid, count, netns, rate.clone()));
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
    }
}

/// A change that every proxy must hear of.
pub(crate) type Change = Box<dyn Fn() -> std::io::Result<Outgoing> + Send>;

fn announce(proxies: &mut Proxies, changes: Vec<Change>) {
    for change in changes {
        proxies.retain(|proxy, queue| match change() {
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

async fn refill(
    queue: mpsc::Sender<Outgoing>,
    uid: String,
    count: u32,
    netns: Result<Netns, crate::netns::Error>,
    rate: Rate,
) {
    let count = (count as usize).min(MAX_DESCRIPTORS);
    rate.take(count).await;
    let made = match netns {
        Ok(netns) => netns.run(move || sockets::stock(count)).await,
        Err(error) => Err(error),
    };
    let descriptors = match made {
        Ok(Ok(descriptors)) => descriptors,
        Ok(Err(error)) => {
            tracing::error!(pod = uid, %error, "no sockets for the pod");
            Vec::new()
        }
        Err(error) => {
            tracing::debug!(pod = uid, %error, "no sockets for the pod");
            Vec::new()
        }
    };
    let message = to_proxy::Message::Sockets(proto::Sockets { uid });
    let _ = queue.send(Outgoing { message, descriptors }).await;
}
