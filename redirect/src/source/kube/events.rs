//! Notices as Kubernetes Events on the pods that they are about. The same is said again only after a pause that grows, few are
//! said in a second, and what cannot be said is dropped: a log line says it too.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use reflector::Client;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::cluster::Cluster;
use super::object::Seen;
use crate::source::Notice;

const COMPONENT: &str = "ztunnel-redirect";
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// What was said and is remembered; beyond it nothing new is said.
const MOST_SAID: usize = 4096;
/// That wait to be posted.
const QUEUE: usize = 64;
const BETWEEN_POSTS: Duration = Duration::from_millis(100);
const ANSWER: Duration = Duration::from_secs(10);
/// The API server takes no longer one.
const LONGEST_MESSAGE: usize = 1024;

pub(super) struct Events {
    node: String,
    said: HashMap<Notice, Said>,
    posts: mpsc::Sender<(String, Value)>,
    dropped: u64,
}

struct Said {
    again: Instant,
    pause: Duration,
}

impl Events {
    pub(super) fn new(client: Client, node: String) -> Self {
        let (posts, queue) = mpsc::channel(QUEUE);
        tokio::spawn(post(client, queue));
        Self { node, said: HashMap::new(), posts, dropped: 0 }
    }

    /// Returns whether it is new, or was not said for long.
    pub(super) fn say(&mut self, notice: Notice, pod: &Seen) -> bool {
        let now = Instant::now();
        let pause = match self.said.get(&notice) {
            Some(said) if said.again > now => return false,
            Some(said) => (said.pause * 2).min(LONGEST_PAUSE),
            None if self.said.len() >= MOST_SAID => return false,
            None => FIRST_PAUSE,
        };
        if self.posts.try_send((pod.namespace.clone(), self.event(&notice, pod))).is_err() {
            self.dropped += 1;
            tracing::debug!(pod = pod.uid, reason = notice.reason, dropped = self.dropped, "too many events");
        }
        self.said.insert(notice, Said { again: now + pause, pause });
        true
    }

    /// Of pods that are gone nothing is remembered.
    pub(super) fn forget_others(&mut self, cluster: &Cluster) {
        if self.said.is_empty() {
            return;
        }
        let there: HashSet<&str> = cluster.pods().map(|pod| pod.uid.as_str()).collect();
        self.said.retain(|notice, _| there.contains(notice.uid.as_str()));
    }

    fn event(&self, notice: &Notice, pod: &Seen) -> Value {
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let now = now.format(&Rfc3339).unwrap_or_default();
        let message = &notice.message[..notice.message.floor_char_boundary(LONGEST_MESSAGE)];
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"generateName": format!("{}.", pod.name), "namespace": pod.namespace},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod",
                "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
            },
            "type": if notice.warning { "Warning" } else { "Normal" },
            "reason": notice.reason, "message": message, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": COMPONENT, "host": self.node},
            "reportingComponent": COMPONENT, "reportingInstance": self.node,
        })
    }
}

/// Ends with the source.
async fn post(client: Client, mut queue: mpsc::Receiver<(String, Value)>) {
    while let Some((namespace, event)) = queue.recv().await {
        let path = format!("/api/v1/namespaces/{namespace}/events");
        if let Err(error) = reflector::post(&client, &path, &event, ANSWER).await {
            tracing::debug!(reason = %event["reason"], %error, "event not posted");
        }
        sleep(BETWEEN_POSTS).await;
    }
}
