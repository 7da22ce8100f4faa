//! The proxy's end of the broker socket: pods and sockets come in, requests and reports go out.
//!
//! Must not know the agent's state, nor what the proxy does with the sockets. Whatever the agent sends is checked: a
//! message that does not fit the protocol (see [`crate::broker`]) is an [`Error`], after which the caller drops the
//! client and connects anew with what it holds.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::broker::wire::proto::{self, to_agent, to_proxy};
use crate::broker::wire::{self, Connection, MAX_DESCRIPTORS, VERSION};
pub use crate::sockets::Listeners;

/// For the agent to answer Hello; it answers once it knows its pods.
const WELCOME_DEADLINE: Duration = Duration::from_secs(10);
/// For the agent to take one message off a full socket.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// Pods about which messages may wait to be sent. Far more than a node can hold.
const MAX_WAITING: usize = 16 * 1024;
/// A longer reason is cut, so that it fits a packet.
const MAX_REASON: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connecting to the agent at {path}: {source}; is ztunnel-redirect running on this node?")]
    Connect { path: PathBuf, source: std::io::Error },
    #[error("the agent refused this proxy: {0}")]
    Refused(String),
    #[error("the agent did not answer within {WELCOME_DEADLINE:?}")]
    NoAnswer,
    #[error("the agent speaks broker protocol version {0}, this proxy {VERSION}")]
    Version(u32),
    #[error("the agent closed the connection")]
    Closed,
    #[error("the agent broke the broker protocol: {0}")]
    Protocol(&'static str),
    #[error(transparent)]
    Wire(#[from] wire::Error),
}

/// A pod that this proxy already serves, handed back so that a restarted agent need not bind again.
#[derive(Debug)]
pub struct Held {
    pub uid: String,
    pub listeners: Listeners,
}

/// A captured pod and the sockets on which its connections arrive.
#[derive(Debug)]
pub struct Pod {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub addresses: Vec<IpAddr>,
    pub listeners: Listeners,
}

#[derive(Debug)]
pub enum Event {
    /// Also for a pod which the proxy serves already: these listeners replace the ones it has.
    PodAdded(Pod),
    /// Pods not named since the connection began are no longer captured.
    SnapshotSent,
    /// Answers one refill; may hold fewer sockets than asked for, or none, and may come after the pod's removal.
    Sockets { uid: String, sockets: Vec<OwnedFd> },
    /// No more connections of this pod are captured; to be answered with [`Handle::drained`] when none is left. PodAdded takes
    /// it back.
    PodLeaving { uid: String },
    /// Everything of this pod must be closed, so that its namespace can go.
    PodRemoved { uid: String },
}

/// A connection to the agent that has been welcomed.
#[derive(Debug)]
pub struct Client {
    connection: Arc<Connection>,
    outbox: Arc<Outbox>,
    writer: JoinHandle<()>,
}

/// Sends to the agent from anywhere, without waiting.
///
/// What waits is merged per pod: refills add up, of reports the last stands. So the queue is bounded by the number of
/// pods and nothing is lost while the agent is slow.
#[derive(Debug, Clone)]
pub struct Handle {
    outbox: Arc<Outbox>,
}

impl Client {
    /// Connects, hands `held` back and waits to be welcomed.
    pub async fn connect(path: &Path, held: Vec<Held>) -> Result<Self, Error> {
        let connection = open(path).map_err(|source| Error::Connect { path: path.to_owned(), source })?;
        tokio::time::timeout(WELCOME_DEADLINE, greet(&connection, held))
            .await
            .map_err(|_| Error::NoAnswer)??;
        let connection = Arc::new(connection);
        let outbox = Arc::new(Outbox::default());
        let writer = tokio::spawn(write(Arc::clone(&connection), Arc::clone(&outbox)));
        Ok(Self { connection, outbox, writer })
    }

    /// The next event; cancel-safe.
    pub async fn next(&mut self) -> Result<Event, Error> {
        let (message, descriptors) =
            self.connection.receive::<proto::ToProxy>().await?.ok_or(Error::Closed)?;
        event(message, descriptors)
    }

    pub fn handle(&self) -> Handle {
        Handle { outbox: Arc::clone(&self.outbox) }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.writer.abort();
        self.outbox.lock().closed = true;
    }
}

impl Handle {
    /// Asks for `count` more sockets of a pod.
    pub fn refill(&self, uid: &str, count: u32) {
        self.outbox.put(uid, |waiting| waiting.refill = waiting.refill.saturating_add(count));
    }

    /// Tells the agent that the pod is served.
    pub fn ready(&self, uid: &str) {
        self.outbox.put(uid, |waiting| waiting.report = Some(Report::Ready));
    }

    /// Tells the agent that the pod cannot be served.
    pub fn failed(&self, uid: &str, reason: &str) {
        let reason: String = reason.chars().take(MAX_REASON / 4).collect();
        self.outbox.put(uid, |waiting| waiting.report = Some(Report::Failed(reason)));
    }

    /// Tells the agent that a pod which leaves has no connection here.
    pub fn drained(&self, uid: &str) {
        self.outbox.put(uid, |waiting| waiting.report = Some(Report::Drained));
    }
}

fn open(path: &Path) -> std::io::Result<Connection> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&socket2::SockAddr::unix(path)?)?;
    Connection::new(socket.into())
}

async fn greet(connection: &Connection, held: Vec<Held>) -> Result<(), Error> {
    let count = u32::try_from(held.len()).map_err(|_| Error::Protocol("too many held pods"))?;
    let hello = to_agent::Message::Hello(proto::Hello { version: VERSION, held: count });
    // An agent that refuses does not read on: its reason must be read even if sending fails.
    let sent = hand_back(connection, hello, held).await;
    let answer = connection.receive::<proto::ToProxy>().await;
    let message = match (answer, sent) {
        (Ok(Some((message, _))), _) => message.message,
        (Ok(None), Err(error)) => return Err(error.into()),
        (Ok(None), Ok(())) => return Err(Error::Closed),
        (Err(error), _) => return Err(error.into()),
    };
    match message {
        Some(to_proxy::Message::Welcome(welcome)) if welcome.version == VERSION => Ok(()),
        Some(to_proxy::Message::Welcome(welcome)) => Err(Error::Version(welcome.version)),
        Some(to_proxy::Message::Refused(refused)) => Err(Error::Refused(refused.reason)),
        _ => Err(Error::Protocol("neither Welcome nor Refused in answer to Hello")),
    }
}

async fn hand_back(
    connection: &Connection,
    hello: to_agent::Message,
    held: Vec<Held>,
) -> Result<(), wire::Error> {
    connection.send(&proto::ToAgent { message: Some(hello) }, &[]).await?;
    for Held { uid, listeners } in held {
        let message = proto::ToAgent { message: Some(to_agent::Message::Held(proto::Held { uid })) };
        connection.send(&message, &listeners.each().map(AsFd::as_fd)).await?;
    }
    Ok(())
}

fn event(message: proto::ToProxy, descriptors: Vec<OwnedFd>) -> Result<Event, Error> {
    let message = message.message.ok_or(Error::Protocol("unknown message"))?;
    match message {
        to_proxy::Message::PodAdded(added) => pod(added, descriptors).map(Event::PodAdded),
        to_proxy::Message::Sockets(_) if descriptors.len() > MAX_DESCRIPTORS => {
            Err(Error::Protocol("too many descriptors"))
        }
        to_proxy::Message::Sockets(answer) => Ok(Event::Sockets { uid: answer.uid, sockets: descriptors }),
        _ if !descriptors.is_empty() => Err(Error::Protocol("descriptors with a message that has none")),
        to_proxy::Message::SnapshotSent(_) => Ok(Event::SnapshotSent),
        to_proxy::Message::PodRemoved(removed) => Ok(Event::PodRemoved { uid: removed.uid }),
        to_proxy::Message::PodLeaving(leaving) => Ok(Event::PodLeaving { uid: leaving.uid }),
        to_proxy::Message::Refused(refused) => Err(Error::Refused(refused.reason)),
        to_proxy::Message::Welcome(_) => Err(Error::Protocol("a second Welcome")),
    }
}

fn pod(added: proto::PodAdded, descriptors: Vec<OwnedFd>) -> Result<Pod, Error> {
    let listeners = Listeners::from_descriptors(descriptors)
        .ok_or(Error::Protocol("PodAdded without three listeners"))?;
    let addresses = added
        .addresses
        .iter()
        .map(|bytes| address(bytes).ok_or(Error::Protocol("an address of neither 4 nor 16 bytes")))
        .collect::<Result<_, _>>()?;
    Ok(Pod {
        uid: added.uid,
        name: added.name,
        namespace: added.namespace,
        service_account: added.service_account,
        addresses,
        listeners,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| Ipv6Addr::from(v6).to_canonical())
}

#[derive(Debug, Default)]
struct Outbox {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: HashMap<String, Waiting>,
    /// The pods of `waiting`, first come first served, so that no pod starves another.
    order: VecDeque<String>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    refill: u32,
    report: Option<Report>,
}

#[derive(Debug)]
enum Report {
    Ready,
    Failed(String),
    Drained,
}

impl Outbox {
    fn put(&self, uid: &str, change: impl FnOnce(&mut Waiting)) {
        {
            let mut queue = self.lock();
            if queue.closed {
                return;
            }
            if !queue.waiting.contains_key(uid) {
                if queue.order.len() >= MAX_WAITING {
                    tracing::warn!(
                        uid,
                        limit = MAX_WAITING,
                        "message to the agent dropped, too many pods waiting"
                    );
                    return;
                }
                queue.order.push_back(uid.to_owned());
            }
            change(queue.waiting.entry(uid.to_owned()).or_default());
        }
        self.wake.notify_one();
    }

    /// The next message. A large refill is cut into packets, between which other pods have their turn.
    fn take(&self) -> Option<to_agent::Message> {
        let mut queue = self.lock();
        let uid = queue.order.pop_front()?;
        let mut waiting = queue.waiting.remove(&uid).unwrap_or_default();
        let message = match waiting.report.take() {
            Some(Report::Ready) => to_agent::Message::PodReady(proto::PodReady { uid: uid.clone() }),
            Some(Report::Failed(reason)) => {
                to_agent::Message::PodFailed(proto::PodFailed { uid: uid.clone(), reason })
            }
            Some(Report::Drained) => to_agent::Message::PodDrained(proto::PodDrained { uid: uid.clone() }),
            None => {
                let count = waiting.refill.min(u32::try_from(MAX_DESCRIPTORS).unwrap_or(u32::MAX));
                waiting.refill -= count;
                to_agent::Message::Refill(proto::Refill { uid: uid.clone(), count })
            }
        };
        if waiting.refill > 0 {
            queue.waiting.insert(uid.clone(), waiting);
            queue.order.push_back(uid);
        }
        Some(message)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn write(connection: Arc<Connection>, outbox: Arc<Outbox>) {
    loop {
        let Some(message) = outbox.take() else {
            outbox.wake.notified().await;
            continue;
        };
        let message = proto::ToAgent { message: Some(message) };
        let sent = tokio::time::timeout(SEND_DEADLINE, connection.send(&message, &[])).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::warn!(?sent, "agent does not take messages, closing the connection");
            outbox.lock().closed = true;
            connection.shutdown();
            return;
        }
    }
}
