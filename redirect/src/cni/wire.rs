//! What the plugin and the agent say to each other: one question and its answer per connection, each a JSON object in one
//! packet of a SOCK_SEQPACKET socket. Keys that are not known are ignored: while the agent is upgraded, the two are of
//! different versions.
//!
//! The agent says at once that it took the question. A plugin that does not hear that knows the agent to be away long
//! before the pod's own deadline, which would hold up pods that have nothing to do with the mesh.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Sandbox;

/// Both ends read no more.
pub(super) const MAX_PACKET: usize = 64 * 1024;
/// A longer reason is cut, so that it fits a packet whatever its characters.
pub(super) const MAX_REASON: usize = MAX_PACKET / 8;
/// For a pod to be served.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(90);

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub(super) enum Question {
    /// The time is what is left of the plugin's.
    Add {
        sandbox: Sandbox,
        timeout_ms: u64,
    },
    Check {
        sandbox: Sandbox,
        timeout_ms: u64,
    },
    Del {
        container_id: String,
        namespace: String,
        name: String,
        uid: Option<String>,
    },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(super) enum Answer {
    /// The first of two; the next one says what became of it.
    Taken,
    Done,
    Refused {
        reason: String,
    },
}
