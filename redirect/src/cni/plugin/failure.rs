//! Why a call fails, and how that is told to the runtime: codes below 100 are those of the spec.

use std::io;
use std::path::PathBuf;

use super::VERSIONS;
use super::agent::Away;
use super::invocation::{LONGEST_TIMEOUT, MAX_STDIN};

/// A failed call.
#[derive(Debug)]
pub(super) struct Failure {
    /// In which the runtime speaks.
    pub(super) version: &'static str,
    pub(super) cause: Cause,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    #[error("CNI version {0:?} is not supported; set cniVersion to one of {VERSIONS:?}")]
    Version(String),
    #[error("environment variable {name} {problem}; the container runtime must set it")]
    Environment { name: &'static str, problem: String },
    #[error("network configuration on stdin: {0}")]
    Stdin(io::Error),
    #[error("network configuration on stdin has more than {MAX_STDIN} bytes")]
    TooLong,
    #[error("network configuration on stdin is not valid: {0}")]
    Undecodable(serde_json::Error),
    #[error(
        "network configuration: timeoutSeconds is {seconds}, must be 1 to {}; correct the entry of ztunnel-cni in the CNI folder",
        LONGEST_TIMEOUT.as_secs()
    )]
    Timeout { seconds: u64 },
    #[error(
        "no prevResult: ztunnel-cni must follow another plugin; make it the last of \"plugins\" in a conflist"
    )]
    NotChained,
    #[error("prevResult is not valid: {0}")]
    Previous(String),
    #[error("pod {pod} is kept out of the mesh: {reason}")]
    Refused { pod: String, reason: String },
    #[error(
        "pod {pod}: namespace {namespace} is enrolled in the mesh, and the node agent is away ({away} at {}); see \
         that ztunnel-redirect runs on this node, the pod is then tried again",
        socket.display()
    )]
    Away { pod: String, namespace: String, socket: PathBuf, away: Away },
    #[error(
        "pod {pod}: {} cannot be read ({error}), so its namespace may be enrolled, and the node agent is away ({away} \
         at {}); see that ztunnel-redirect runs on this node, it writes the file anew",
        file.display(), socket.display()
    )]
    Unknown { pod: String, file: PathBuf, error: io::Error, socket: PathBuf, away: Away },
}

impl Cause {
    fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Environment { .. } => 4,
            Self::Stdin(_) => 5,
            Self::TooLong | Self::Undecodable(_) | Self::Previous(_) => 6,
            Self::Timeout { .. } | Self::NotChained => 7,
            Self::Away { .. } | Self::Unknown { .. } => 11,
            Self::Refused { .. } => 100,
        }
    }

    fn details(&self) -> &'static str {
        match self {
            Self::Refused { .. } | Self::Away { .. } | Self::Unknown { .. } => {
                "The pod is not started, because it would run outside the mesh, in plaintext."
            }
            _ => "",
        }
    }
}

impl Failure {
    pub(super) fn to_json(&self) -> String {
        serde_json::json!({
            "cniVersion": self.version,
            "code": self.cause.code(),
            "msg": self.cause.to_string(),
            "details": self.cause.details(),
        })
        .to_string()
    }
}
