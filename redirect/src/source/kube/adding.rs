//! Sandboxes that wait for an answer: the plugin asks before a pod's containers start.
//!
//! ```text
//! asked ─▶ namespace known? ─▶ pod known? ─▶ meshed? ─▶ namespace proven ─▶ served by a proxy ─▶ Ok
//!               │ ask for it       │ ask for it   └ no: Ok      └ Err            └ or the reason
//! ```
//!
//! What the API server does not say is decided by what is known: a pod whose namespace is enrolled is not started in plaintext
//! because nobody could say who it is, and any other is not kept waiting.

use std::time::Duration;

use reflector::Trouble;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::enrolment::{Verdict, verdict};
use super::object::{Mode, Seen};
use crate::cni::Sandbox;
use crate::retry::Retry;

/// Less than anybody waits for a sandbox.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) type Answer = oneshot::Sender<Result<(), String>>;

pub(super) struct Adding {
    pub sandbox: Sandbox,
    pub answer: Answer,
    /// It is answered by then.
    pub deadline: Instant,
    /// Until then what failed is tried again also for a pod whose namespace is not enrolled: it may have a label of its own.
    patience: Instant,
    /// Something was started for it that has not ended.
    pub busy: bool,
    /// After something that failed.
    retry: Option<Retry>,
    /// What it waits for.
    cause: Option<String>,
    /// It must not start before the cause is gone.
    held: bool,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The pod is not meshed.
    Pass,
    Fail(String),
    AskNamespace,
    AskPod,
    /// By this uid.
    Capture(String),
    Wait,
}

impl Adding {
    pub(super) fn new(sandbox: Sandbox, answer: Answer, deadline: Instant) -> Self {
        let patience = deadline.min(Instant::now() + PATIENCE);
        Self { sandbox, answer, deadline, patience, busy: false, retry: None, cause: None, held: false }
    }

    pub(super) fn next(&self, cluster: &Cluster) -> Next {
        let Sandbox { namespace, name, uid, .. } = &self.sandbox;
        let ask = match cluster.namespace(namespace) {
            None => Next::AskNamespace,
            Some(mode) => match cluster.pod_named(namespace, name, uid.as_deref()) {
                Some(pod) if verdict(pod, mode) == Verdict::Meshed => return Next::Capture(pod.uid.clone()),
                Some(_) => return Next::Pass,
                None => Next::AskPod,
            },
        };
        match &self.cause {
            Some(_) if !self.held && self.patience <= Instant::now() => Next::Pass,
            cause if self.deadline <= Instant::now() => {
                let cause = cause.as_deref().unwrap_or("the Kubernetes API has not answered");
                Next::Fail(format!(
                    "it cannot be told whether and as whom pod {namespace}/{name} is meshed: {cause}"
                ))
            }
            _ if self.retry.is_some_and(|retry| !retry.is_due()) => Next::Wait,
            _ => ask,
        }
    }

    /// When there is something to be done that nothing else tells of.
    pub(super) fn due(&self) -> Instant {
        let soonest = |retry: Retry| retry.due().min(self.deadline);
        match self.retry {
            Some(retry) if !self.held => soonest(retry).min(self.patience.max(Instant::now())),
            retry => retry.map_or(self.deadline, soonest),
        }
    }

    /// The API server has answered about the namespace, or not; `enrolled` is what an earlier answer was.
    pub(super) fn heard_of_namespace(
        &mut self,
        outcome: Result<Option<Value>, Trouble>,
        enrolled: bool,
        cluster: &mut Cluster,
    ) {
        let namespace = &self.sandbox.namespace;
        match outcome {
            Ok(Some(object)) if object["metadata"]["name"] == namespace.as_str() => {
                cluster.learn_namespace(namespace, &object);
            }
            Ok(Some(_)) => self.failed("the Kubernetes API answers with another object".to_owned(), enrolled),
            Ok(None) => self.failed("there is no such namespace".to_owned(), enrolled),
            Err(trouble) => self.failed(format!("the Kubernetes API {trouble}"), enrolled),
        }
    }

    pub(super) fn heard_of_pod(&mut self, outcome: Result<Option<Value>, Trouble>, cluster: &mut Cluster) {
        let held = cluster.mode(&self.sandbox.namespace) == Some(&Mode::Ambient);
        match outcome.map(|object| object.as_ref().and_then(Seen::read)) {
            Ok(Some(pod)) if pod.namespace != self.sandbox.namespace || pod.name != self.sandbox.name => {
                self.failed("the Kubernetes API answers with another object".to_owned(), held);
            }
            Ok(Some(pod)) if is(&pod, self.sandbox.uid.as_deref()) => cluster.learn_pod(pod),
            Ok(Some(pod)) => self.failed(format!("the Kubernetes API knows it as {} only", pod.uid), held),
            Ok(None) => self.failed("the Kubernetes API does not know it".to_owned(), held),
            Err(trouble) => self.failed(format!("the Kubernetes API {trouble}"), held),
        }
    }

    fn failed(&mut self, cause: String, held: bool) {
        self.retry = Some(Retry::after(self.retry));
        self.cause = Some(cause);
        self.held = held;
    }
}

/// A sandbox need not say whose it is.
fn is(pod: &Seen, uid: Option<&str>) -> bool {
    uid.is_none_or(|uid| uid == pod.uid || uid == pod.known_as)
}
