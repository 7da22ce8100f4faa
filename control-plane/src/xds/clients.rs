//! Who is connected and how it gets on, for an admin page; and what has happened since the start.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;
use tonic::Code;

use super::response::Response;
use super::session::{Received, Session, TypeReport};
use super::store::{Extent, Store};
use crate::resource::Kind;

/// Everybody who is connected.
#[derive(Clone)]
pub struct Clients(Arc<Shared>);

/// One connected client.
#[derive(Clone, Debug, Serialize)]
pub struct Client {
    pub id: u64,
    /// As whom it has authenticated.
    pub caller: String,
    /// What it calls itself, and the node it runs on; nothing before its first request.
    pub node_id: String,
    pub node: Option<String>,
    pub peer: Option<SocketAddr>,
    pub connected_s: f64,
    pub types: Vec<TypeReport>,
}

/// What has happened since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub streams: u64,
    pub refused: u64,
    /// The refused ones by the name of the gRPC code that they were told.
    pub refusals: BTreeMap<&'static str, u64>,
    pub connected: usize,
    /// By type URL; what nobody has resources of is "other".
    pub types: BTreeMap<&'static str, TypeCounters>,
    /// Streams that ended, by reason.
    pub ended: BTreeMap<Ended, u64>,
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The client closed it, or its connection.
    Closed,
    /// The controller stops.
    Stopped,
    /// The client did not answer a response in time.
    Unanswered,
    /// The client did not read in time.
    Unread,
    /// The client did not say in time what it wants, or did not end what it began to say.
    Silent,
    /// More was removed than is remembered: the client is told to come back with what it holds.
    Behind,
    /// What the client said was not accepted.
    Refused,
    /// What came could not be read as messages.
    Broken,
    /// The token that opened it counts no more.
    Unproven,
}

impl Counters {
    /// What a stream may be refused with.
    pub const REFUSALS: [&str; 5] =
        ["unauthenticated", "permission_denied", "unavailable", "resource_exhausted", "other"];
}

impl Ended {
    pub const ALL: [Self; 9] = [
        Self::Closed,
        Self::Stopped,
        Self::Unanswered,
        Self::Unread,
        Self::Silent,
        Self::Behind,
        Self::Refused,
        Self::Broken,
        Self::Unproven,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Stopped => "stopped",
            Self::Unanswered => "unanswered",
            Self::Unread => "unread",
            Self::Silent => "silent",
            Self::Behind => "behind",
            Self::Refused => "refused",
            Self::Broken => "broken",
            Self::Unproven => "unproven",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeCounters {
    pub responses: u64,
    pub resources: u64,
    pub removed: u64,
    pub bytes: u64,
    pub acks: u64,
    pub nacks: u64,
}

/// What the registry knows of a stream.
pub(super) struct Connected {
    pub(super) id: u64,
    pub(super) caller: Arc<str>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) since: Instant,
    /// Locked by the stream's task for each event, and by whoever looks.
    pub(super) session: Mutex<Session>,
}

/// The stream is connected for as long as this exists.
pub(super) struct Registered {
    clients: Clients,
    pub(super) connected: Arc<Connected>,
}

struct Shared {
    store: Store,
    streams: Mutex<BTreeMap<u64, Arc<Connected>>>,
    opened: AtomicU64,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    types: Mutex<BTreeMap<&'static str, TypeCounters>>,
    ended: Mutex<BTreeMap<Ended, u64>>,
}

impl Clients {
    pub(super) fn new(store: Store) -> Self {
        let (streams, types, ended) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self(Arc::new(Shared {
            store,
            streams,
            opened: AtomicU64::new(0),
            refusals: Mutex::default(),
            types,
            ended,
        }))
    }

    /// All clients, in the order in which they came.
    pub fn list(&self) -> Vec<Client> {
        // The registry is let go before the sessions are asked one by one.
        let streams: Vec<_> = self.streams().values().cloned().collect();
        let now = Instant::now();
        streams.iter().map(|connected| connected.describe(&self.0.store, now)).collect()
    }

    pub fn counters(&self) -> Counters {
        let refusals = self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Counters {
            streams: self.0.opened.load(Ordering::Relaxed),
            refused: refusals.values().sum(),
            refusals,
            connected: self.streams().len(),
            types: self.0.types.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ended: self.0.ended.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// How much there is to send.
    pub fn extents(&self) -> [(Kind, Extent); 3] {
        Kind::ALL.map(|kind| (kind, self.0.store.extent(kind)))
    }

    /// Whether all that there is has been taken in once. Nobody is answered before.
    pub fn is_complete(&self) -> bool {
        self.0.store.is_complete()
    }

    /// A number that no other stream has.
    pub(super) fn next_id(&self) -> u64 {
        self.0.opened.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn register(&self, connected: Connected) -> Registered {
        let connected = Arc::new(connected);
        self.streams().insert(connected.id, Arc::clone(&connected));
        Registered { clients: self.clone(), connected }
    }

    pub(super) fn count_refused(&self, code: Code) {
        let name = match code {
            Code::Unauthenticated => "unauthenticated",
            Code::PermissionDenied => "permission_denied",
            Code::Unavailable => "unavailable",
            Code::ResourceExhausted => "resource_exhausted",
            _ => "other",
        };
        *self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }

    pub(super) fn count_ended(&self, reason: Ended) {
        let mut ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended.entry(reason).or_default() += 1;
    }

    pub(super) fn count_sent(&self, response: &Response) {
        self.count(&response.type_url, |counters| {
            counters.responses += 1;
            counters.resources += response.resources() as u64;
            counters.removed += response.removed() as u64;
            counters.bytes += response.bytes() as u64;
        });
    }

    pub(super) fn count_received(&self, type_url: &str, received: &Received) {
        match received {
            Received::Ack => self.count(type_url, |counters| counters.acks += 1),
            Received::Nack(_) => self.count(type_url, |counters| counters.nacks += 1),
            Received::Subscription | Received::Stale => {}
        }
    }

    fn count(&self, type_url: &str, count: impl FnOnce(&mut TypeCounters)) {
        let label = Kind::from_type_url(type_url).map_or("other", Kind::type_url);
        count(self.0.types.lock().unwrap_or_else(PoisonError::into_inner).entry(label).or_default());
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Connected>>> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    fn describe(&self, store: &Store, now: Instant) -> Client {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let node = session.node();
        Client {
            id: self.id,
            caller: self.caller.to_string(),
            node_id: node.map(|node| node.id.clone()).unwrap_or_default(),
            node: node.and_then(|node| node.name.as_deref()).map(str::to_owned),
            peer: self.peer,
            connected_s: now.saturating_duration_since(self.since).as_secs_f64(),
            types: session.reports(store, now),
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.clients.streams().remove(&self.connected.id);
    }
}
