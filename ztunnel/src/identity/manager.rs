//! One worker that keeps a certificate for every identity that somebody holds a [`PodSvid`] of.
//!
//! Readers never wait for the worker: each entry publishes its state behind one atomic pointer. The worker learns of new
//! and dropped entries by looking at the table when it is woken, so there is no queue that could fill: the table has one
//! entry for each identity on the node, and at most [`IN_FLIGHT`] requests run at a time.

mod held;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use ztunnel_model::Identity;

use super::Config;
use super::ca_client::{self, CaClient};
use super::schedule::{Schedule, Validity};
use crate::tls::revocation::Revocations;
use crate::tls::svid::Svid;

pub use held::{CertificateState, Counters, Handle, PodSvid, Unavailable};
use held::{Entry, Shared};

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

/// The worker. Runs on the control thread until it is told to stop; when it goes, every holder is told.
pub struct Manager<I: Issuer = CaClient> {
    issuer: Arc<I>,
    revocations: Revocations,
    shared: Arc<Shared>,
    tasks: HashMap<Identity, Task>,
    grace: Duration,
}

impl Manager<CaClient> {
    /// Own certificates that `revocations` names are replaced, peers that it names refused.
    pub fn new(config: Config, revocations: Revocations) -> (Self, Handle) {
        let issuer = CaClient::new(config, revocations.clone());
        Self::with_issuer(issuer, revocations)
    }
}

impl<I: Issuer + 'static> Manager<I> {
    pub fn with_issuer(issuer: I, revocations: Revocations) -> (Self, Handle) {
        let shared = Arc::new(Shared::default());
        let handle = Handle(Arc::clone(&shared));
        let manager =
            Self { issuer: Arc::new(issuer), revocations, shared, tasks: HashMap::new(), grace: GRACE };
        (manager, handle)
    }

    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut in_flight = FuturesUnordered::new();
        let mut revoked = self.revocations.changes();
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
                Ok(()) = revoked.changed() => self.replace_revoked(),
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
            if held.lease.strong_count() > 0 || held.wanted {
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

    /// Peers refuse our own certificate when it is revoked, so another one is asked for at once.
    fn replace_revoked(&mut self) {
        let now = SystemTime::now();
        for task in self.tasks.values_mut() {
            let Some(svid) = task.entry.state.load_full().svid.clone() else { continue };
            let Err(revoked) = svid.revoked() else { continue };
            if task.revoked.as_deref() == Some(&*revoked.serial) {
                continue;
            }
            self.shared.revoked.fetch_add(1, Ordering::Relaxed);
            let identity = &task.entry.identity;
            tracing::error!(%identity, serial = revoked.serial, "our own certificate is revoked; asking for another one");
            task.revoked = Some(revoked.serial);
            task.schedule.hurry(now, 0.0);
        }
    }

    /// The CA is back: whoever was put off because it was away tries again soon.
    fn hurry_all(&mut self, now: SystemTime) {
        for task in self.tasks.values_mut().filter(|task| task.outage && !task.in_flight) {
            task.outage = false;
            task.schedule.hurry(now, rand::random());
        }
    }

    /// Among the identities that are due: first those that a connection waits for (RealTime), then those without a
    /// certificate or with one that is nearly over (Warmup), then those that are renewed in good time (Background); among
    /// equals the longest due. A certificate near its end does not wait behind a crowd of new pods for ever.
    fn start_most_urgent(&mut self, now: SystemTime) -> Option<Identity> {
        let due = self.tasks.values_mut().filter(|task| !task.in_flight && task.schedule.wait(now).is_zero());
        let task = due.min_by_key(|task| {
            let waited_for = task.entry.waiters.load(Ordering::Relaxed) > 0;
            let usable = task.validity.is_some_and(|validity| {
                validity.not_after.duration_since(now).is_ok_and(|left| left > validity.lifetime() / 10)
            });
            (!waited_for, usable, task.schedule.due())
        })?;
        task.in_flight = true;
        task.schedule.started(now);
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
                task.outage = false;
                task.succeeded(now, svid);
                self.hurry_all(now);
            }
            Ok(svid) => {
                self.shared.failed.fetch_add(1, Ordering::Relaxed);
                let over = now.duration_since(svid.not_after()).unwrap_or_default();
                task.failed(now, &format!("the CA's certificate was already over by {}s", over.as_secs()));
            }
            Err(error) => {
                self.shared.failed.fetch_add(1, Ordering::Relaxed);
                task.outage = error.is_outage();
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
    /// The last request failed because the CA was away.
    outage: bool,
    /// The serial number of a certificate whose revocation was noticed.
    revoked: Option<String>,
}

impl Task {
    fn new(entry: Arc<Entry>, now: SystemTime) -> Self {
        let schedule = Schedule::new(now);
        Self {
            entry,
            schedule,
            validity: None,
            in_flight: false,
            end_reported: false,
            idle_since: None,
            outage: false,
            revoked: None,
        }
    }

    fn succeeded(&mut self, now: SystemTime, svid: Svid) {
        let validity = Validity { not_before: svid.not_before(), not_after: svid.not_after() };
        let svid = match &self.entry.state.load().svid {
            Some(former) if now <= former.not_after() => match svid.succeeding(former) {
                Ok(svid) => svid,
                Err(error) => return self.failed(now, &error.to_string()),
            },
            _ => svid,
        };
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

#[cfg(test)]
mod tests;
