//! The agent's end: accepts proxies, and carries messages between them and the agent's task.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::Socket;
use tokio::sync::mpsc;

use super::wire::proto::{self, to_agent, to_proxy};
use super::wire::{Connection, VERSION};
use crate::listener::{Error, Listener};
use crate::sockets::Listeners;

/// A proxy must say Hello, and hand back what it holds, within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// A proxy that takes no message for so long is cut off.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// More pods than a node can have.
const MOST_HELD: u32 = 4096;
/// Messages that wait for one proxy.
const QUEUE: usize = 8192;

/// A message to a proxy with its descriptors.
pub struct Outgoing {
    pub message: to_proxy::Message,
    pub descriptors: Vec<OwnedFd>,
}

/// One connected proxy; the number tells connections apart.
pub type ProxyId = u64;

/// What proxies say.
pub enum Incoming {
    Joined {
        proxy: ProxyId,
        held: Vec<(String, Listeners)>,
        queue: mpsc::Sender<Outgoing>,
    },
    Refill {
        proxy: ProxyId,
        uid: String,
        count: u32,
    },
    Ready {
        proxy: ProxyId,
        uid: String,
    },
    Failed {
        proxy: ProxyId,
        uid: String,
        reason: String,
    },
    Drained {
        proxy: ProxyId,
        uid: String,
    },
    Left {
        proxy: ProxyId,
    },
    /// Another agent wants to serve; the connection that it waits on is kept open as long as this.
    Succeed {
        waits: Arc<Connection>,
    },
}

/// The listening end.
pub struct Server {
    listener: Listener,
    proxy_uid: u32,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Wire(#[from] super::wire::Error),
    #[error("version {0} is not spoken here (this agent speaks {VERSION})")]
    Version(u32),
    #[error("no Hello within {} s", HELLO_DEADLINE.as_secs())]
    Silent,
    #[error("the first message is not a Hello")]
    NoHello,
    #[error("more than {MOST_HELD} held pods")]
    TooMany,
    #[error("held pod {0} comes without three listeners")]
    Held(String),
    #[error("the proxy went away")]
    Gone,
    #[error("an unexpected message")]
    Unexpected,
}

impl Server {
    /// Binds the socket for the proxy's user.
    pub fn bind(path: &Path, proxy_uid: u32) -> Result<Self, Error> {
        Ok(Self { listener: Listener::bind(path, Some(proxy_uid))?, proxy_uid })
    }

    /// Accepts for ever.
    pub async fn serve(self, incoming: mpsc::Sender<Incoming>) {
        for proxy in 1.. {
            let accepted = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a proxy failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match getsockopt(&accepted, sockopt::PeerCredentials) {
                Ok(peer) if peer.uid() == self.proxy_uid || peer.uid() == 0 => {
                    let may_serve = peer.uid() == self.proxy_uid;
                    tokio::spawn(attend(proxy, accepted, may_serve, incoming.clone()));
                }
                Ok(peer) => {
                    tracing::warn!(
                        uid = peer.uid(),
                        expected = self.proxy_uid,
                        pid = peer.pid(),
                        "connection refused: wrong user"
                    );
                }
                Err(error) => tracing::warn!(%error, "connection refused: no peer credentials"),
            }
        }
    }
}

async fn attend(proxy: ProxyId, socket: Socket, may_serve: bool, incoming: mpsc::Sender<Incoming>) {
    let connection = match Connection::new(socket.into()) {
        Ok(connection) => Arc::new(connection),
        Err(error) => return tracing::warn!(%error, "connection not usable"),
    };
    let greeted =
        tokio::time::timeout(HELLO_DEADLINE, greet(&connection)).await.unwrap_or(Err(Refused::Silent));
    let held = match greeted {
        Ok(Greeting::Proxy(held)) if may_serve => held,
        Ok(Greeting::Successor) => {
            // The agent is ending if it does not hear it.
            let _ = incoming.send(Incoming::Succeed { waits: connection }).await;
            return;
        }
        Ok(Greeting::Proxy(_)) => {
            return tracing::warn!(proxy, "connection refused: root, and no agent");
        }
        Err(refused) => {
            tracing::warn!(proxy, error = %refused, "proxy refused");
            let reason = to_proxy::Message::Refused(proto::Refused { reason: refused.to_string() });
            let farewell = proto::ToProxy { message: Some(reason) };
            let _ = tokio::time::timeout(SEND_DEADLINE, connection.send(&farewell, &[])).await;
            return;
        }
    };
    let (queue, outgoing) = mpsc::channel(QUEUE);
    let welcome = to_proxy::Message::Welcome(proto::Welcome { version: VERSION });
    // The queue is new, so there is room.
    let _ = queue.try_send(Outgoing { message: welcome, descriptors: Vec::new() });
    if incoming.send(Incoming::Joined { proxy, held, queue }).await.is_err() {
        return;
    }
    tracing::info!(proxy, "proxy connected");
    let error = tokio::select! {
        error = write(&connection, outgoing) => error,
        error = read(proxy, &connection, &incoming) => error,
    };
    tracing::info!(proxy, reason = %error, "proxy disconnected");
    let _ = incoming.send(Incoming::Left { proxy }).await;
}

/// How a conversation begins.
enum Greeting {
    /// With what it holds.
    Proxy(Vec<(String, Listeners)>),
    Successor,
}

async fn greet(connection: &Connection) -> Result<Greeting, Refused> {
    let (first, _) = connection.receive::<proto::ToAgent>().await?.ok_or(Refused::Gone)?;
    let hello = match first.message {
        Some(to_agent::Message::Hello(hello)) => hello,
        Some(to_agent::Message::Succeed(_)) => return Ok(Greeting::Successor),
        _ => return Err(Refused::NoHello),
    };
    if hello.version != VERSION {
        return Err(Refused::Version(hello.version));
    }
    if hello.held > MOST_HELD {
        return Err(Refused::TooMany);
    }
    let mut held = Vec::new();
    for _ in 0..hello.held {
        let (message, descriptors) = connection.receive::<proto::ToAgent>().await?.ok_or(Refused::Gone)?;
        let Some(to_agent::Message::Held(pod)) = message.message else { return Err(Refused::Unexpected) };
        let listeners =
            Listeners::from_descriptors(descriptors).ok_or_else(|| Refused::Held(pod.uid.clone()))?;
        held.push((pod.uid, listeners));
    }
    Ok(Greeting::Proxy(held))
}

async fn write(connection: &Connection, mut outgoing: mpsc::Receiver<Outgoing>) -> Refused {
    while let Some(Outgoing { message, descriptors }) = outgoing.recv().await {
        let packet = proto::ToProxy { message: Some(message) };
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        match tokio::time::timeout(SEND_DEADLINE, connection.send(&packet, &borrowed)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return Refused::Silent,
        }
    }
    Refused::Gone
}

async fn read(proxy: ProxyId, connection: &Connection, incoming: &mpsc::Sender<Incoming>) -> Refused {
    loop {
        let message = match connection.receive::<proto::ToAgent>().await {
            Ok(Some((_, descriptors))) if !descriptors.is_empty() => return Refused::Unexpected,
            Ok(Some((message, _))) => message,
            Ok(None) => return Refused::Gone,
            Err(error) => return error.into(),
        };
        let said = match message.message {
            Some(to_agent::Message::Refill(refill)) => {
                Incoming::Refill { proxy, uid: refill.uid, count: refill.count }
            }
            Some(to_agent::Message::PodReady(ready)) => Incoming::Ready { proxy, uid: ready.uid },
            Some(to_agent::Message::PodFailed(failed)) => {
                Incoming::Failed { proxy, uid: failed.uid, reason: failed.reason }
            }
            Some(to_agent::Message::PodDrained(drained)) => Incoming::Drained { proxy, uid: drained.uid },
            Some(
                to_agent::Message::Hello(_) | to_agent::Message::Held(_) | to_agent::Message::Succeed(_),
            )
            | None => {
                return Refused::Unexpected;
            }
        };
        if incoming.send(said).await.is_err() {
            return Refused::Gone;
        }
    }
}
