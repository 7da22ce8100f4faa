//! What the rest of the proxy holds of the certificates: leases, and the table that the worker works through.

use std::collections::{HashMap, HashSet, hash_map};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;
use ztunnel_model::Identity;

use crate::tls::svid::{Description, Svid};

/// Identities for which certificates are fetched before a pod asks.
pub(super) const MOST_PREFETCHED: usize = 1024;

/// Why there is no certificate to use now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("no certificate for {identity} yet: the first request to the CA is under way")]
    Pending { identity: Identity },
    #[error("no certificate for {identity}: {reason}")]
    Failed { identity: Identity, reason: Arc<str> },
    #[error("the certificate of {identity} is over and was not renewed: {reason}")]
    Expired { identity: Identity, reason: Arc<str> },
    #[error("no certificate for {identity}: the proxy is stopping")]
    Stopped { identity: Identity },
}

/// One identity's line in /config_dump (interop.md section 11.5).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateState {
    pub identity: String,
    pub state: String,
    #[serde(flatten)]
    pub certificate: Description,
}

/// What happened since the start, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Certificates received and accepted.
    pub fetched: u64,
    /// Requests that gave no usable certificate.
    pub failed: u64,
    /// Certificates that ended before a new one came.
    pub expired: u64,
    /// Certificates of our own that a CRL names.
    pub revoked: u64,
    /// Identities held now.
    pub held: u64,
}

/// The right to one pod's certificate. The first one starts the request; when the last one is gone, the identity is
/// forgotten after a grace. Usable from any thread.
#[derive(Clone)]
pub struct PodSvid(pub(super) Arc<Lease>);

impl PodSvid {
    pub fn identity(&self) -> &Identity {
        &self.0.entry.identity
    }

    /// The newest certificate, never one past its end. Called for each connection: one atomic load.
    pub fn current(&self, now: SystemTime) -> Result<Arc<Svid>, Unavailable> {
        self.0.entry.current(now)
    }

    /// As `current`, but waits while the first request is under way. Once a request has failed, the failure is the answer
    /// until one succeeds: a connection is better refused at once than late.
    pub async fn wait(&self, deadline: Duration) -> Result<Arc<Svid>, Unavailable> {
        let entry = &self.0.entry;
        let deadline = Instant::now() + deadline;
        let _waiting = Waiting::new(entry);
        loop {
            let mut changed = std::pin::pin!(entry.changed.notified());
            // Registered before the look, so that no change falls between the look and the wait.
            changed.as_mut().enable();
            let current = entry.current(SystemTime::now());
            if current.is_ok() || !entry.is_first_request_open() {
                return current;
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return entry.current(SystemTime::now());
            }
        }
    }
}

/// The manager as the rest of the proxy sees it.
#[derive(Clone)]
pub struct Handle(pub(super) Arc<Shared>);

impl Handle {
    /// The certificate of one identity, from now until the last `PodSvid` of it is dropped.
    pub fn pod_svid(&self, identity: Identity) -> PodSvid {
        let mut table = self.0.lock();
        let stopped = table.stopped;
        match table.entries.entry(identity) {
            hash_map::Entry::Occupied(mut slot) => {
                if let Some(lease) = slot.get().lease.upgrade() {
                    return PodSvid(lease);
                }
                let lease = self.lease(Arc::clone(&slot.get().entry));
                slot.get_mut().lease = Arc::downgrade(&lease);
                PodSvid(lease)
            }
            hash_map::Entry::Vacant(slot) => {
                let entry = Arc::new(Entry::new(slot.key().clone(), stopped));
                let lease = self.lease(Arc::clone(&entry));
                slot.insert(Held { entry, lease: Arc::downgrade(&lease), wanted: false });
                self.0.wake.notify_one();
                PodSvid(lease)
            }
        }
    }

    /// Every identity held, sorted by name.
    pub fn certificates(&self) -> Vec<CertificateState> {
        let now = SystemTime::now();
        let entries: Vec<_> = self.0.lock().entries.values().map(|held| Arc::clone(&held.entry)).collect();
        let mut list: Vec<_> = entries.iter().map(|entry| entry.describe(now)).collect();
        list.sort_by(|a, b| a.identity.cmp(&b.identity));
        list
    }

    /// Names every identity that pods of this node may soon want, instead of those named before: certificates for them are
    /// fetched ahead, behind those that somebody waits for, and kept. Nothing is queued and so nothing lost: the worker
    /// works through the table as it stands. Of more than [`MOST_PREFETCHED`] the rest is left to the pods themselves.
    pub fn prefetch(&self, wanted: &HashSet<Identity>) {
        let mut table = self.0.lock();
        for held in table.entries.values_mut() {
            held.wanted = wanted.contains(&held.entry.identity);
        }
        let mut room =
            MOST_PREFETCHED.saturating_sub(table.entries.values().filter(|held| held.wanted).count());
        let stopped = table.stopped;
        for identity in wanted {
            if room > 0 && !table.entries.contains_key(identity) {
                let entry = Arc::new(Entry::new(identity.clone(), stopped));
                table.entries.insert(identity.clone(), Held { entry, lease: Weak::new(), wanted: true });
                room -= 1;
            }
        }
        drop(table);
        self.0.wake.notify_one();
    }

    /// The end of every certificate that is held.
    pub fn ends(&self) -> Vec<(String, SystemTime)> {
        let table = self.0.lock();
        let end = |held: &Held| held.entry.state.load().svid.as_ref().map(|svid| svid.not_after());
        let ends =
            table.entries.iter().filter_map(|(identity, held)| Some((identity.to_string(), end(held)?)));
        ends.collect()
    }

    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            fetched: read(&self.0.fetched),
            failed: read(&self.0.failed),
            expired: read(&self.0.expired),
            revoked: read(&self.0.revoked),
            held: self.0.lock().entries.len() as u64,
        }
    }

    fn lease(&self, entry: Arc<Entry>) -> Arc<Lease> {
        Arc::new(Lease { entry, shared: Arc::clone(&self.0) })
    }
}

#[derive(Default)]
pub(super) struct Shared {
    pub(super) table: Mutex<Table>,
    pub(super) wake: Notify,
    pub(super) fetched: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) revoked: AtomicU64,
}

impl Shared {
    /// Taken when a pod comes or goes and by the worker, never for a connection.
    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) entries: HashMap<Identity, Held>,
    pub(super) stopped: bool,
}

pub(super) struct Held {
    pub(super) entry: Arc<Entry>,
    pub(super) lease: Weak<Lease>,
    /// Kept although no pod holds it: one is expected.
    pub(super) wanted: bool,
}

pub(super) struct Lease {
    pub(super) entry: Arc<Entry>,
    pub(super) shared: Arc<Shared>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The worker notes that nobody holds the entry and starts the grace.
        self.shared.wake.notify_one();
    }
}

/// What readers see of an identity.
pub(super) struct Entry {
    pub(super) identity: Identity,
    pub(super) state: ArcSwap<State>,
    pub(super) changed: Notify,
    pub(super) waiters: AtomicUsize,
}

#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) svid: Option<Arc<Svid>>,
    pub(super) failure: Option<Arc<str>>,
    pub(super) stopped: bool,
}

impl Entry {
    fn new(identity: Identity, stopped: bool) -> Self {
        let state = ArcSwap::from_pointee(State { stopped, ..State::default() });
        Self { identity, state, changed: Notify::new(), waiters: AtomicUsize::new(0) }
    }

    pub(super) fn update(&self, change: impl Fn(&mut State)) {
        self.state.rcu(|state| {
            let mut state = State::clone(state);
            change(&mut state);
            state
        });
        self.changed.notify_waiters();
    }

    fn current(&self, now: SystemTime) -> Result<Arc<Svid>, Unavailable> {
        let state = self.state.load();
        let identity = || self.identity.clone();
        match (&state.svid, &state.failure) {
            (Some(svid), _) if now <= svid.not_after() => Ok(Arc::clone(svid)),
            _ if state.stopped => Err(Unavailable::Stopped { identity: identity() }),
            (Some(_), failure) => {
                let reason = failure.clone().unwrap_or_else(|| "the renewal is under way".into());
                Err(Unavailable::Expired { identity: identity(), reason })
            }
            (None, Some(reason)) => {
                Err(Unavailable::Failed { identity: identity(), reason: Arc::clone(reason) })
            }
            (None, None) => Err(Unavailable::Pending { identity: identity() }),
        }
    }

    /// Nothing has failed yet, so an answer may still come.
    fn is_first_request_open(&self) -> bool {
        let state = self.state.load();
        !state.stopped && state.failure.is_none()
    }

    fn describe(&self, now: SystemTime) -> CertificateState {
        let state = match self.current(now) {
            Ok(_) => "Available".to_owned(),
            Err(Unavailable::Pending { .. }) => "Initializing".to_owned(),
            Err(error) => format!("Unavailable: {error}"),
        };
        let certificate = self.state.load().svid.as_ref().map(|svid| svid.describe()).unwrap_or_default();
        CertificateState { identity: self.identity.to_string(), state, certificate }
    }
}

/// Counts one waiter for as long as it lives, also when its future is dropped.
struct Waiting<'a>(&'a Entry);

impl<'a> Waiting<'a> {
    fn new(entry: &'a Entry) -> Self {
        entry.waiters.fetch_add(1, Ordering::Relaxed);
        Self(entry)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}
