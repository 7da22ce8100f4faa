//! Where the agent learns which pods to capture. A source yields the whole set each time something changed.
//!
//! Knows names, addresses and namespace files; must not know rules or sockets.

pub mod file;
pub mod zds;

use std::net::IpAddr;

use serde::Deserialize;
use tokio::sync::oneshot;

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
}

/// What a source tells.
pub struct Update {
    /// All that it knows.
    pub pods: Vec<Pod>,
    /// Whether there are no others; a source that is still being told its pods cannot say.
    pub complete: bool,
    pub ask: Option<Ask>,
}

/// A question what becomes of one pod.
pub struct Ask {
    pub uid: String,
    /// Answered once a proxy serves the pod, or cannot; at once for a pod that is not wanted or cannot be captured.
    pub answer: oneshot::Sender<Result<(), String>>,
}
