//! Says on each pod that it is captured and served, as istio-cni does: a controller lets others open tunnels to it only then.
//!
//! It is said once a proxy serves the pod, and unsaid once the pod is no member any more. In between it stays, whatever becomes
//! of the proxy: a captured pod is not to be reached in plaintext because nobody serves it just now.

use std::collections::HashMap;
use std::time::Duration;

use reflector::{Client, Trouble};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::cluster::Cluster;
use super::members::Members;
use super::object::{ENABLED, REDIRECTION, Seen};
use crate::retry::Retry;
use crate::source::Served;

const MANAGER: &str = "ztunnel-redirect";
const ANSWER: Duration = Duration::from_secs(5);
/// Requests at a time.
const MOST: usize = 16;
/// What was written and did not come back by the watch is written again.
const UNHEARD: Duration = Duration::from_secs(10);

pub(super) struct Marks {
    client: Client,
    served: watch::Receiver<Served>,
    tried: HashMap<String, Tried>,
    work: JoinSet<(String, Result<(), Trouble>)>,
}

#[derive(Debug)]
struct Tried {
    marked: bool,
    in_flight: bool,
    /// When it is tried again, unless the watch tells meanwhile that it is so.
    again: Instant,
    failed: Option<Retry>,
}

impl Marks {
    pub(super) fn new(client: Client, served: watch::Receiver<Served>) -> Self {
        Self { client, served, tried: HashMap::new(), work: JoinSet::new() }
    }

    /// Waits until there may be something to do. Nothing is lost when the waiting is given up.
    pub(super) async fn wait(&mut self) {
        let waiting = self.tried.values().filter(|tried| !tried.in_flight);
        // While as many are asked for as may be, one that is due has to wait for an answer.
        let due = waiting.map(|tried| tried.again).min().filter(|_| self.work.len() < MOST);
        tokio::select! {
            Ok(()) = self.served.changed() => {}
            Some(done) = self.work.join_next() => if let Ok((uid, outcome)) = done {
                self.done(&uid, outcome);
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            else => std::future::pending().await,
        }
    }

    fn done(&mut self, uid: &str, outcome: Result<(), Trouble>) {
        let Some(tried) = self.tried.get_mut(uid) else { return };
        tried.in_flight = false;
        match outcome {
            Ok(()) => (tried.again, tried.failed) = (Instant::now() + UNHEARD, None),
            Err(error) => {
                tracing::warn!(pod = uid, %error, "annotation {REDIRECTION} not written, tried again");
                let retry = Retry::after(tried.failed);
                (tried.again, tried.failed) = (retry.due(), Some(retry));
            }
        }
    }

    /// Writes what is not as it should be.
    pub(super) fn reconcile(&mut self, cluster: &Cluster, members: &Members) {
        let Self { client, served, tried, work } = self;
        let served = served.borrow_and_update();
        tried.retain(|uid, _| cluster.pod(uid).is_some());
        for pod in cluster.pods() {
            let wanted = if members.contains(&pod.uid) {
                pod.marked || served.contains(&pod.uid)
            } else {
                // Who is no member is not known before everything was heard of.
                pod.marked && !cluster.is_complete()
            };
            let before = tried.get(&pod.uid);
            if before.is_some_and(|before| before.in_flight) {
                continue;
            }
            if wanted == pod.marked || pod.finished || pod.leaving {
                tried.remove(&pod.uid);
                continue;
            }
            let due = before.is_none_or(|before| before.marked != wanted || before.again <= Instant::now());
            if due && work.len() < MOST {
                let failed = before.and_then(|before| before.failed);
                let again = Tried { marked: wanted, in_flight: true, again: Instant::now(), failed };
                tried.insert(pod.uid.clone(), again);
                work.spawn(write(client.clone(), pod.clone(), wanted));
            }
        }
    }
}

/// The uid keeps a successor of the same name from being meant.
async fn write(client: Client, pod: Seen, marked: bool) -> (String, Result<(), Trouble>) {
    let Seen { uid, namespace, name, .. } = pod;
    let value = marked.then_some(ENABLED);
    let patch = json!({"metadata": {"uid": uid, "annotations": {REDIRECTION: value}}});
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
    let outcome = reflector::merge(&client, &path, &patch, MANAGER, ANSWER).await;
    (uid, outcome)
}
