//! What became of each policy, written where the one who wrote it looks: a condition in its status, as istiod writes it for
//! ztunnel, and an event for what is not enforced as it is written.
//!
//! | Enforced | `ZtunnelAccepted` | Reason | Event |
//! |---|---|---|---|
//! | as written | True | `Accepted` | none |
//! | in part | True | `UnsupportedValue` | `PolicyPartlyEnforced` |
//! | not at all | False | `UnsupportedValue` | `PolicyRefused` |
//!
//! A namespace whose label istio.io/dataplane-mode cannot be read gets an event `UnknownLabel`, in the namespace `default` as
//! those of all that is in none.
//!
//! A status whose conditions are another manager's is left alone. Events have names made of what they say, so the next
//! leader does not repeat them.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use aws_lc_rs::digest;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::Pauses;
use super::call::{Api, MANAGED_BY, MANAGER, Resource, Trouble};
use super::lease::now;
use crate::object::{Key, Kind, Name};

const GROUP: &str = "security.istio.io";
const EVENTS: Resource = Resource::new("events.k8s.io", "events");
/// Of what is in no namespace.
const EVENTS_OF_NONE: &str = "default";
const CONDITION: &str = "ZtunnelAccepted";

/// Changes that come close together are reported once.
const SETTLE: Duration = Duration::from_millis(500);
/// After one was looked at.
const PACE: Duration = Duration::from_millis(50);
/// Everything is looked at again after so long: a status that someone changed, a generation that differs in nothing.
const LOOK: Duration = Duration::from_secs(600);
/// In characters; an event takes 1024 bytes.
const LONGEST_MESSAGE: usize = 2000;
const LONGEST_NOTE: usize = 1000;

/// What became of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub enforced: Enforced,
    /// What is not enforced as written: where it stands, and why.
    pub reasons: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    Fully,
    Partly,
    Not,
}

/// Where verdicts come from.
pub struct Verdicts {
    /// All that there are now.
    pub all: Box<dyn Fn() -> BTreeMap<Key, Verdict> + Send + Sync>,
    /// Changes when one of them may differ.
    pub changes: watch::Receiver<u64>,
}

/// Keeps the statuses right.
pub struct Reporter {
    api: Api,
    /// The name of this controller, for events.
    me: String,
    verdicts: Verdicts,
    reported: BTreeMap<Key, Verdict>,
    /// Of which was told that they cannot be written.
    told: HashSet<Key>,
    trouble: Option<String>,
}

impl Reporter {
    pub fn new(api: Api, me: String, verdicts: Verdicts) -> Self {
        Self { api, me, verdicts, reported: BTreeMap::new(), told: HashSet::new(), trouble: None }
    }

    /// For ever.
    pub async fn run(&mut self) {
        let mut pauses = Pauses::default();
        // Another one may have led meanwhile.
        self.reported.clear();
        let mut look = Instant::now() + LOOK;
        loop {
            self.verdicts.changes.mark_unchanged();
            if let Err(trouble) = self.all().await {
                self.complain(&trouble);
                sleep(pauses.next()).await;
                continue;
            }
            self.is_well();
            pauses = Pauses::default();
            tokio::select! {
                Ok(()) = self.verdicts.changes.changed() => sleep(SETTLE).await,
                () = sleep_until(look) => {
                    self.reported.clear();
                    look = Instant::now() + LOOK;
                }
            }
        }
    }

    async fn all(&mut self) -> Result<(), Trouble> {
        let all = (self.verdicts.all)();
        self.reported.retain(|key, _| all.contains_key(key));
        self.told.retain(|key| all.contains_key(key));
        let mut first = Ok(());
        for (key, verdict) in all {
            if self.reported.get(&key) == Some(&verdict) {
                continue;
            }
            match self.one(&key, &verdict).await {
                Ok(()) => drop(self.reported.insert(key, verdict)),
                // What is wrong with one keeps no other from being told; an API server that is away is asked no further.
                Err(trouble) if trouble.is_of_one_object() => first = first.and(Err(trouble)),
                Err(trouble) => return Err(trouble),
            }
            sleep(PACE).await;
        }
        first
    }

    async fn one(&mut self, key: &Key, verdict: &Verdict) -> Result<(), Trouble> {
        let Some(resource) = resource(key.kind) else { return Ok(()) };
        let at = Name::new(key.namespace.clone(), key.name.clone());
        let policy = match self.api.get(resource, &at).await {
            // It stands in a folder of manifests alone, or has gone meanwhile.
            Err(Trouble::Absent(_)) => return Ok(()),
            policy => policy?,
        };
        if key.kind != Kind::Namespace {
            self.write_status(key, &at, &policy, verdict).await?;
        }
        if verdict.enforced == Enforced::Fully {
            return Ok(());
        }
        match self.api.create(EVENTS, place(key), &event(&self.me, key, &policy, verdict)).await {
            // It is there already, or the namespace has gone.
            Ok(_) | Err(Trouble::Conflict(_) | Trouble::Absent(_)) => Ok(()),
            Err(Trouble::Denied(denied)) if denied.is_of_ending_namespace() => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    async fn write_status(
        &mut self,
        key: &Key,
        at: &Name,
        policy: &Value,
        verdict: &Verdict,
    ) -> Result<(), Trouble> {
        let Some(condition) = condition(policy, verdict) else { return Ok(()) };
        let Some(resource) = resource(key.kind) else { return Ok(()) };
        let object = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": key.kind.as_str(),
            "metadata": {"name": &*key.name, "namespace": &*key.namespace},
            "status": {"conditions": [condition]},
        });
        match self.api.apply(resource.status(), at, &object, false).await {
            Ok(_) => {
                tracing::info!(policy = %key, status = %condition["status"], "status written");
                Ok(())
            }
            Err(trouble @ (Trouble::Conflict(_) | Trouble::Absent(_))) => {
                if self.told.insert(key.clone()) {
                    tracing::warn!(policy = %key, %trouble, "the status is left alone");
                }
                Ok(())
            }
            Err(trouble) => Err(trouble),
        }
    }

    fn complain(&mut self, trouble: &Trouble) {
        let text = trouble.to_string();
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(%trouble, "what became of the policies cannot be written into the cluster");
            self.trouble = Some(text);
        }
    }

    fn is_well(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("what became of the policies is written into the cluster");
        }
    }
}

fn resource(kind: Kind) -> Option<Resource> {
    match kind {
        Kind::AuthorizationPolicy => Some(Resource::new(GROUP, "authorizationpolicies")),
        Kind::PeerAuthentication => Some(Resource::new(GROUP, "peerauthentications")),
        Kind::Namespace => Some(Resource::new("", "namespaces")),
        _ => None,
    }
}

/// Where its events are.
fn place(key: &Key) -> &str {
    if key.namespace.is_empty() { EVENTS_OF_NONE } else { &key.namespace }
}

/// The condition, if the policy does not have it.
fn condition(policy: &Value, verdict: &Verdict) -> Option<Value> {
    let (status, reason) = match verdict.enforced {
        Enforced::Fully => ("True", "Accepted"),
        Enforced::Partly => ("True", "UnsupportedValue"),
        Enforced::Not => ("False", "UnsupportedValue"),
    };
    let message = match (verdict.reasons.is_empty(), verdict.enforced) {
        (true, Enforced::Not) => "not enforced".to_owned(),
        (true, _) => "attached to ztunnel".to_owned(),
        (false, _) => cut(&verdict.reasons.join("; "), LONGEST_MESSAGE),
    };
    let held = policy["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let held = held.iter().find(|one| one["type"] == CONDITION).unwrap_or(&Value::Null);
    let generation = &policy["metadata"]["generation"];
    let is_same = held["status"] == status
        && held["reason"] == reason
        && held["message"] == message
        && held["observedGeneration"] == *generation;
    let since = if held["status"] == status { held["lastTransitionTime"].as_str() } else { None };
    let condition = json!({
        "type": CONDITION, "status": status, "reason": reason, "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": since.map_or_else(now, str::to_owned),
    });
    (!is_same).then_some(condition)
}

fn event(me: &str, key: &Key, policy: &Value, verdict: &Verdict) -> Value {
    let reason = match verdict.enforced {
        _ if key.kind == Kind::Namespace => "UnknownLabel",
        Enforced::Not => "PolicyRefused",
        Enforced::Fully | Enforced::Partly => "PolicyPartlyEnforced",
    };
    let note = cut(&verdict.reasons.join("; "), LONGEST_NOTE);
    let uid = &policy["metadata"]["uid"];
    let hash = digest::digest(&digest::SHA256, format!("{uid} {reason} {note}").as_bytes());
    let hash: String = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name: String = key.name.chars().take(200).collect();
    let name = name.trim_end_matches(['-', '.']);
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {
            "name": format!("{name}.{hash}"), "namespace": place(key), "labels": {MANAGED_BY: MANAGER},
        },
        "type": "Warning", "reason": reason, "action": "Enforce", "note": note, "eventTime": now(),
        "reportingController": format!("ztunnel.io/{MANAGER}"), "reportingInstance": me,
        "regarding": {
            "apiVersion": if key.kind == Kind::Namespace { "v1".to_owned() } else { format!("{GROUP}/v1") }, "kind": key.kind.as_str(),
            "name": &*key.name, "namespace": &*key.namespace, "uid": uid,
        },
    })
}

/// By bytes, at the boundary of a character.
fn cut(text: &str, longest: usize) -> String {
    let mut end = longest.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests;
