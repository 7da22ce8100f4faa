//! Where the agent learns which pods to capture. A source yields the whole set each time something changed.
//!
//! Knows names, addresses and namespace files; must not know rules or sockets.

pub mod file;
pub mod kube;
pub mod zds;

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::netns::Place;

/// A pod that must be captured.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    /// Its network namespace.
    pub netns: Place,
    pub addresses: Vec<IpAddr>,
    /// Its TCP is dropped rather than passed while it is not sure to be captured.
    #[serde(default = "strict")]
    pub strict: bool,
}

fn strict() -> bool {
    true
}

/// A pod that must be captured, and whose network namespace is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlocated {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub addresses: Vec<IpAddr>,
    pub strict: bool,
    /// Why it is not found; nothing for one that is only being looked for, that starts, or that ends.
    pub reason: Option<String>,
}

/// What a source tells.
#[derive(Default)]
pub struct Update {
    /// All that it knows.
    pub pods: Vec<Pod>,
    /// Pods that must be captured too, and whose namespace is not known: rules that are there already stay.
    pub unlocated: Vec<Unlocated>,
    /// Whether there are no others; a source that is still being told its pods cannot say, and nothing of what an earlier
    /// agent captured is let go.
    pub complete: bool,
    pub ask: Option<Ask>,
}

/// A question what becomes of one pod.
pub struct Ask {
    pub uid: String,
    /// Answered once a proxy serves the pod, or cannot; at once for a pod that is not wanted or cannot be captured.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// Something about a pod that whoever looks at the pod should see.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Notice {
    pub uid: String,
    pub warning: bool,
    /// One word, as Kubernetes has it.
    pub reason: &'static str,
    pub message: String,
}

/// Uids of the pods that are captured and served by a proxy.
pub type Served = BTreeSet<String>;

/// Takes notices, to a source that has somebody to tell; never waits, and drops them otherwise.
#[derive(Debug, Clone)]
pub struct Notices(mpsc::Sender<Notice>);

/// A burst of all pods of a node.
const MOST_NOTICES: usize = 512;

impl Notices {
    pub fn channel() -> (Self, mpsc::Receiver<Notice>) {
        let (tell, told) = mpsc::channel(MOST_NOTICES);
        (Self(tell), told)
    }

    pub fn tell(&self, notice: Notice) {
        if let Err(mpsc::error::TrySendError::Full(notice)) = self.0.try_send(notice) {
            tracing::debug!(pod = notice.uid, reason = notice.reason, "too many notices, one dropped");
        }
    }
}
