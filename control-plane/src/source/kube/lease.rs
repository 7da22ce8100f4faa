//! Which of several controllers acts for all of them, by a Lease of the API.
//!
//! ```text
//!            free, or not renewed for as long as it says
//!   stands by ────────────────────────────────────────────▶ leads
//!      ▲                                                      │
//!      └── lost to another, or not renewed for ten seconds ───┘
//! ```
//!
//! Time is this process's own, from one look to the next; no clock is compared with another one's. Who leads stops acting
//! five seconds before another one may begin, and a request takes no longer than that: no two act at once. What the lease
//! says of time is for people.

use std::future::Future;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::call::{Api, MANAGED_BY, MANAGER, Resource, Trouble};
use crate::object::Name;

const LEASES: Resource = Resource::new("coordination.k8s.io", "leases");
/// Whatever a lease says: one that is not renewed for longer is free.
const LONGEST: u64 = 60;

/// How long what takes.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// A lease that was not renewed for so long is free.
    pub lease: Duration,
    /// Who could not renew for so long acts no more.
    pub acting: Duration,
    /// From one try to the next.
    pub retry: Duration,
    /// For giving it up at the end.
    pub release: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { lease: s(15), acting: s(10), retry: s(2), release: s(2) }
    }
}

/// One of those who may lead.
pub struct Candidate {
    api: Api,
    at: Name,
    me: String,
    terms: Terms,
    /// The lease as it was seen, and since when it has been so.
    seen: Option<(String, Instant)>,
    /// The last trouble, while it lasts: said once.
    trouble: Option<String>,
}

enum Lost {
    ToAnother(String),
    Trouble(Trouble),
}

impl Candidate {
    /// `me` is a name that no other candidate has.
    pub fn new(api: Api, at: Name, me: String, terms: Terms) -> Self {
        Self { api, at, me, terms, seen: None, trouble: None }
    }

    /// Acts while it leads, until `stop`; what `acts` gives is dropped when it leads no more.
    pub async fn run<F: Future<Output = ()>>(mut self, stop: CancellationToken, mut acts: impl FnMut() -> F) {
        loop {
            let acquired = tokio::select! {
                acquired = self.acquire() => acquired,
                () = stop.cancelled() => return,
            };
            let (mut held, until) = acquired;
            tracing::info!(lease = %self.at, me = self.me, "leads");
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = self.hold(&mut held, until) => {}
                () = acts() => {}
            }
            if stop.is_cancelled() {
                return self.release(held).await;
            }
        }
    }

    async fn acquire(&mut self) -> (Value, Instant) {
        loop {
            let asked = Instant::now();
            match self.try_to_acquire().await {
                Ok(Some(held)) => {
                    self.is_well();
                    return (held, asked + self.terms.acting);
                }
                Ok(None) => self.is_well(),
                // Another one was faster.
                Err(Trouble::Conflict(_)) => {}
                Err(trouble) => self.complain(&trouble),
            }
            sleep(self.pause()).await;
        }
    }

    /// The lease, if it is ours now.
    async fn try_to_acquire(&mut self) -> Result<Option<Value>, Trouble> {
        let lease = match self.api.get(LEASES, &self.at).await {
            Err(Trouble::Absent(_)) => {
                let new = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {
                        "name": &*self.at.name, "namespace": &*self.at.namespace, "labels": {MANAGED_BY: MANAGER},
                    },
                    "spec": self.spec(&self.me, 0, None),
                });
                return self.api.create(LEASES, &self.at.namespace, &new).await.map(Some);
            }
            lease => lease?,
        };
        if !self.is_free(&lease) {
            return Ok(None);
        }
        let changes = lease["spec"]["leaseTransitions"].as_u64().unwrap_or_default();
        self.write(&lease, &self.me, changes + 1, None).await.map(Some)
    }

    /// Nobody holds it, or who does has not renewed it before our eyes for as long as it says.
    fn is_free(&mut self, lease: &Value) -> bool {
        let holder = holder(lease);
        let version = lease["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let now = Instant::now();
        let since = match &self.seen {
            Some((seen, since)) if seen == version => *since,
            _ => {
                self.seen = Some((version.to_owned(), now));
                now
            }
        };
        let seconds = lease["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(LONGEST).min(LONGEST);
        // We ourselves, in a life before this one: no one else has this name.
        holder.is_empty()
            || holder == self.me
            || now - since >= Duration::from_secs(seconds).max(self.terms.lease)
    }

    /// Ends when we may act no more.
    async fn hold(&mut self, held: &mut Value, mut until: Instant) {
        loop {
            let next = Instant::now() + self.pause();
            if next >= until {
                sleep_until(until).await;
                tracing::error!(lease = %self.at, "leads no more: the lease could not be renewed in time");
                return;
            }
            sleep_until(next).await;
            let asked = Instant::now();
            match timeout_at(until, self.renew(held)).await {
                Ok(Ok(())) => {
                    until = asked + self.terms.acting;
                    self.is_well();
                }
                Ok(Err(Lost::ToAnother(holder))) => {
                    tracing::warn!(lease = %self.at, holder, "leads no more: another one holds the lease");
                    return;
                }
                Ok(Err(Lost::Trouble(trouble))) => self.complain(&trouble),
                Err(_) => {}
            }
        }
    }

    async fn renew(&self, held: &mut Value) -> Result<(), Lost> {
        let changes = held["spec"]["leaseTransitions"].as_u64().unwrap_or_default();
        let acquired = held["spec"]["acquireTime"].as_str().map(str::to_owned);
        match self.write(held, &self.me, changes, acquired).await {
            Ok(lease) => *held = lease,
            // Our own write of before may have been done and not said.
            Err(Trouble::Conflict(_)) => {
                let lease = self.api.get(LEASES, &self.at).await.map_err(Lost::Trouble)?;
                if holder(&lease) != self.me {
                    return Err(Lost::ToAnother(holder(&lease).to_owned()));
                }
                let acquired = lease["spec"]["acquireTime"].as_str().map(str::to_owned);
                *held = self.write(&lease, &self.me, changes, acquired).await.map_err(Lost::Trouble)?;
            }
            Err(Trouble::Absent(_)) => return Err(Lost::ToAnother("nobody: it was deleted".to_owned())),
            Err(trouble) => return Err(Lost::Trouble(trouble)),
        }
        Ok(())
    }

    /// So that another one need not wait.
    async fn release(&self, held: Value) {
        match timeout(self.terms.release, self.give_up(held)).await {
            Ok(()) => tracing::info!(lease = %self.at, "released the lease"),
            Err(_) => tracing::warn!(lease = %self.at, "the lease could not be released, and runs out"),
        }
    }

    /// A renewal may have been under way, and what was done may not have been said: it is looked at again until it is so.
    async fn give_up(&self, mut held: Value) {
        while holder(&held) == self.me {
            let changes = held["spec"]["leaseTransitions"].as_u64().unwrap_or_default();
            match self.write(&held, "", changes, None).await {
                Ok(_) => return,
                Err(trouble) => tracing::debug!(lease = %self.at, %trouble, "the lease is not released yet"),
            }
            match self.api.get(LEASES, &self.at).await {
                Ok(lease) => held = lease,
                Err(Trouble::Absent(_)) => return,
                Err(_) => sleep(self.pause() / 10).await,
            }
        }
    }

    /// Only if the lease is still as it was read.
    async fn write(
        &self,
        lease: &Value,
        holder: &str,
        changes: u64,
        acquired: Option<String>,
    ) -> Result<Value, Trouble> {
        let metadata = &lease["metadata"];
        let new = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "name": &*self.at.name, "namespace": &*self.at.namespace,
                "resourceVersion": metadata["resourceVersion"], "uid": metadata["uid"],
                "labels": metadata["labels"], "annotations": metadata["annotations"],
            },
            "spec": self.spec(holder, changes, acquired),
        });
        self.api.replace(LEASES, &self.at, &new).await
    }

    fn spec(&self, holder: &str, changes: u64, acquired: Option<String>) -> Value {
        let now = now();
        let seconds = if holder.is_empty() { 1 } else { self.terms.lease.as_secs().max(1) };
        json!({
            "holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": changes,
            "acquireTime": acquired.unwrap_or_else(|| now.clone()), "renewTime": now,
        })
    }

    fn pause(&self) -> Duration {
        self.terms.retry.mul_f64(rand::random_range(0.7..=1.0))
    }

    fn complain(&mut self, trouble: &Trouble) {
        let text = trouble.to_string();
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(lease = %self.at, %trouble, "the lease is out of reach");
            self.trouble = Some(text);
        }
    }

    fn is_well(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!(lease = %self.at, "the lease is within reach again");
        }
    }
}

fn holder(lease: &Value) -> &str {
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default()
}

/// As the API writes times that it does not round.
pub(super) fn now() -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    OffsetDateTime::now_utc().format(format).unwrap_or_default()
}

#[cfg(test)]
mod tests;
