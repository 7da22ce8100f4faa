//! One worker that keeps a certificate for every identity that somebody holds a [`PodSvid`] of.
//!
//! Readers never wait for the worker: each entry publishes its state behind one atomic pointer. The worker learns of new
//! and dropped entries by looking at the table when it is woken, so there is no queue that could fill: the table has one
//! entry for each identity on the node, and at most [`IN_FLIGHT`] requests run at a time.

use std::collections::HashMap;
use std::collections::hash_map;
use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use ztunnel_model::Identity;

use super::Config;
use super::ca_client::{self, CaClient};
use super::schedule::{Schedule, Validity};
use crate::tls::svid::{Description, Svid};

const IN_FLIGHT: usize = 8;

/// How long an identity outlives its last holder: a pod that restarts does not cost the CA a request.
const GRACE: Duration = Duration::from_secs(30);

/// The worker looks at its entries at least this often, which bounds what a jump of the wall clock can do.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Gives certificates; implemented by [`CaClient`].
pub trait Issuer: Send + Sync {
    fn fetch(&self, identity: &Identity) -> impl Future<Output = Result<Svid, ca_client::Error>> + Send;
}

impl Issuer for CaClient {
    async fn fetch(&self, identity: &Identity) -> Result<Svid, ca_client::Error> {
        CaClient::fetch(self, identity).await
    }
}

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
    /// Identities held now.
    pub held: u64,
}

/// The right to one pod's certificate. The first one starts the request; when the last one is gone, the identity is
/// forgotten after a grace. Usable from any thread.
#[derive(Clone)]
pub struct PodSvid(Arc<Lease>);

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
pub struct Handle(Arc<Shared>);

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
                slot.insert(Held { entry, lease: Arc::downgrade(&lease) });
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

    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            fetched: read(&self.0.fetched),
            failed: read(&self.0.failed),
            expired: read(&self.0.expired),
            held: self.0.lock().entries.len() as u64,
        }
    }

    fn lease(&self, entry: Arc<Entry>) -> Arc<Lease> {
        Arc::new(Lease { entry, shared: Arc::clone(&self.0) })
    }
}

/// The worker. Runs on the control thread until it is told to stop; when it goes, every holder is told.
pub struct Manager<I: Issuer = CaClient> {
    issuer: Arc<I>,
    shared: Arc<Shared>,
    tasks: HashMap<Identity, Task>,
    grace: Duration,
}

impl Manager<CaClient> {
    pub fn new(config: Config) -> (Self, Handle) {
        Self::with_issuer(CaClient::new(config))
    }
}

impl<I: Issuer + 'static> Manager<I> {
    pub fn with_issuer(issuer: I) -> (Self, Handle) {
        let shared = Arc::new(Shared::default());
        let handle = Handle(Arc::clone(&shared));
        (Self { issuer: Arc::new(issuer), shared, tasks: HashMap::new(), grace: GRACE }, handle)
    }

    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut in_flight = FuturesUnordered::new();
        loop {
            let now = SystemTime::now();
            self.follow_table(now);
            self.report_ends(now);
            while in_flight.len() < IN_FLIGHT {
                let Some(identity) = self.start_most_urgent(now) else { break };
                in_flight.push(fetch(Arc::clone(&self.issuer), identity));
            }
            let sleep = self.next_look(now, in_flight.len() < IN_FLIGHT);
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some((identity, result)) = in_flight.next() => self.settle(&identity, result),
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Takes up what appeared in the table and forgets what nobody has held for the grace.
    fn follow_table(&mut self, now: SystemTime) {
        let (tasks, grace) = (&mut self.tasks, self.grace);
        let mut table = self.shared.lock();
        table.entries.retain(|identity, held| {
            let task =
                tasks.entry(identity.clone()).or_insert_with(|| Task::new(Arc::clone(&held.entry), now));
            if held.lease.strong_count() > 0 {
                task.idle_since = None;
                return true;
            }
            let idle_since = *task.idle_since.get_or_insert_with(Instant::now);
            if idle_since.elapsed() < grace {
                return true;
            }
            tracing::debug!(%identity, "certificate forgotten: no pod holds it any more");
            tasks.remove(identity);
            false
        });
    }

    /// Says once, loudly, that an identity can no longer be used.
    fn report_ends(&mut self, now: SystemTime) {
        for task in self.tasks.values_mut() {
            let is_over = task.validity.is_some_and(|validity| validity.is_over(now));
            if is_over && !task.end_reported {
                task.end_reported = true;
                self.shared.expired.fetch_add(1, Ordering::Relaxed);
                let identity = &task.entry.identity;
                tracing::error!(%identity, "certificate expired before it was renewed; its pods fail closed");
            }
        }
    }

    /// Among the identities that are due: first those that a connection waits for, then those without a certificate, then
    /// the longest due.
    fn start_most_urgent(&mut self, now: SystemTime) -> Option<Identity> {
        let due = self.tasks.values_mut().filter(|task| !task.in_flight && task.schedule.wait(now).is_zero());
        let task = due.min_by_key(|task| {
            let waited_for = task.entry.waiters.load(Ordering::Relaxed) > 0;
            let usable = task.validity.is_some_and(|validity| !validity.is_over(now));
            (!waited_for, usable, task.schedule.due())
        })?;
        task.in_flight = true;
        Some(task.entry.identity.clone())
    }

    fn settle(&mut self, identity: &Identity, result: Result<Svid, ca_client::Error>) {
        // Forgotten while the request ran: nobody wants the answer.
        let Some(task) = self.tasks.get_mut(identity) else { return };
        task.in_flight = false;
        let now = SystemTime::now();
        match result {
            Ok(svid) if now <= svid.not_after() => {
                self.shared.fetched.fetch_add(1, Ordering::Relaxed);
                task.succeeded(now, svid);
            }
            Ok(svid) => {
                self.shared.failed.fetch_add(1, Ordering::Relaxed);
                let over = now.duration_since(svid.not_after()).unwrap_or_default();
                task.failed(now, &format!("the CA's certificate was already over by {}s", over.as_secs()));
            }
            Err(error) => {
                self.shared.failed.fetch_add(1, Ordering::Relaxed);
                task.failed(now, &error.to_string());
            }
        }
    }

    fn next_look(&self, now: SystemTime, has_room: bool) -> Duration {
        let waits = self.tasks.values().flat_map(|task| {
            let request = (has_room && !task.in_flight).then(|| task.schedule.wait(now));
            let end = task.validity.filter(|_| !task.end_reported).map(|validity| {
                validity.not_after.duration_since(now).unwrap_or_default() + Duration::from_millis(1)
            });
            let forget = task.idle_since.map(|since| self.grace.saturating_sub(since.elapsed()));
            [request, end, forget]
        });
        waits.flatten().min().unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)
    }
}

impl<I: Issuer> Drop for Manager<I> {
    fn drop(&mut self) {
        let mut table = self.shared.lock();
        table.stopped = true;
        for held in table.entries.values() {
            held.entry.update(|state| state.stopped = true);
        }
    }
}

/// What the worker alone knows of an identity.
struct Task {
    entry: Arc<Entry>,
    schedule: Schedule,
    validity: Option<Validity>,
    in_flight: bool,
    end_reported: bool,
    idle_since: Option<Instant>,
}

impl Task {
    fn new(entry: Arc<Entry>, now: SystemTime) -> Self {
        let schedule = Schedule::new(now);
        Self { entry, schedule, validity: None, in_flight: false, end_reported: false, idle_since: None }
    }

    fn succeeded(&mut self, now: SystemTime, svid: Svid) {
        let validity = Validity { not_before: svid.not_before(), not_after: svid.not_after() };
        self.schedule.succeeded(now, validity, rand::random());
        self.validity = Some(validity);
        self.end_reported = false;
        let identity = &self.entry.identity;
        let lifetime_s = validity.lifetime().as_secs();
        let renewal_s = self.schedule.wait(now).as_secs();
        tracing::info!(%identity, lifetime_s, renewal_s, "certificate fetched");
        let svid = Arc::new(svid);
        self.entry.update(|state| (state.svid, state.failure) = (Some(Arc::clone(&svid)), None));
    }

    fn failed(&mut self, now: SystemTime, reason: &str) {
        let retry_ms = self.schedule.failed(now, rand::random()).as_millis();
        let identity = &self.entry.identity;
        let failures = self.schedule.failures();
        match self.validity.and_then(|validity| validity.not_after.duration_since(now).ok()) {
            Some(left) => {
                let expires_s = left.as_secs();
                tracing::warn!(%identity, error = reason, failures, retry_ms, expires_s, "certificate not renewed");
            }
            None => tracing::warn!(%identity, error = reason, failures, retry_ms, "no certificate"),
        }
        let reason: Arc<str> = reason.into();
        self.entry.update(|state| state.failure = Some(Arc::clone(&reason)));
    }
}

async fn fetch<I: Issuer>(issuer: Arc<I>, identity: Identity) -> (Identity, Result<Svid, ca_client::Error>) {
    let result = issuer.fetch(&identity).await;
    (identity, result)
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    wake: Notify,
    fetched: AtomicU64,
    failed: AtomicU64,
    expired: AtomicU64,
}

impl Shared {
    /// Taken when a pod comes or goes and by the worker, never for a connection.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Table {
    entries: HashMap<Identity, Held>,
    stopped: bool,
}

struct Held {
    entry: Arc<Entry>,
    lease: Weak<Lease>,
}

struct Lease {
    entry: Arc<Entry>,
    shared: Arc<Shared>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The worker notes that nobody holds the entry and starts the grace.
        self.shared.wake.notify_one();
    }
}

/// What readers see of an identity.
struct Entry {
    identity: Identity,
    state: ArcSwap<State>,
    changed: Notify,
    waiters: AtomicUsize,
}

#[derive(Clone, Default)]
struct State {
    svid: Option<Arc<Svid>>,
    failure: Option<Arc<str>>,
    stopped: bool,
}

impl Entry {
    fn new(identity: Identity, stopped: bool) -> Self {
        let state = ArcSwap::from_pointee(State { stopped, ..State::default() });
        Self { identity, state, changed: Notify::new(), waiters: AtomicUsize::new(0) }
    }

    fn update(&self, change: impl Fn(&mut State)) {
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

#[cfg(test)]
mod tests;
