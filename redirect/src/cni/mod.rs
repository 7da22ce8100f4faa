//! The container runtime's side: a new pod waits until it is captured.
//!
//! ```text
//! runtime ─▶ ztunnel-cni ──socket──▶ server ─▶ Request ─▶ source (decides, captures, answers)
//!            ([`plugin`])            ([`server`])              │
//!                 └──reads── enrolled.json ◀──publishes────────┘ ([`Enrolled`])
//!            install: keeps the plugin in the node's CNI folders
//! ```
//!
//! Owns the plugin, the socket between it and the agent, the file that speaks for the agent while it is away, and the
//! plugin's place on the node. Must not know why a pod is to be meshed: that is the source's.
//!
//! While the agent is away, a pod of an enrolled namespace is not started and any other pod is, at once. The one limit: a
//! pod that enrols by its own label in a namespace that is not enrolled is started then, and captured when the agent
//! returns.

mod durable;
mod enrolled;
pub mod install;
pub mod plugin;
pub mod server;
mod wire;

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::listener;
pub use enrolled::Enrolled;
use server::Server;

/// Where the agent listens for plugins.
pub const SOCKET: &str = "/var/run/ztunnel/cni.sock";
/// Where the agent leaves the names of the enrolled namespaces; on a disk that outlives a boot.
pub const ENROLLED: &str = "/var/lib/ztunnel/enrolled.json";
/// What starts even when nobody can tell which namespaces are enrolled.
pub const EXEMPT: &str = "kube-system";

/// A sandbox as the container runtime tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    pub container_id: String,
    /// Older runtimes do not tell it.
    pub uid: Option<String>,
    pub namespace: String,
    pub name: String,
    pub netns: PathBuf,
    pub addresses: Vec<IpAddr>,
}

/// What a runtime wants to know or tells. An answer that is dropped counts as the agent being away.
#[derive(Debug)]
pub enum Request {
    /// Answered Ok once the pod is served by a proxy, or at once when it is not to be meshed; Err names the cause.
    Add {
        sandbox: Sandbox,
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Ok if the pod is captured or is not to be meshed.
    Check {
        sandbox: Sandbox,
        answer: oneshot::Sender<Result<(), String>>,
    },
    Del {
        container_id: String,
        namespace: String,
        name: String,
        uid: Option<String>,
    },
}

/// How the agent serves runtimes.
#[derive(Debug, Clone)]
pub struct Config {
    pub socket: PathBuf,
    /// None where somebody else put the plugin there.
    pub install: Option<install::Config>,
}

const QUEUE: usize = 256;

/// Serves plugins, and then puts the plugin in place, for as long as the runtime lives. What comes back beside the requests
/// is whether it is in place.
pub fn start(config: Config) -> Result<(mpsc::Receiver<Request>, watch::Receiver<bool>), listener::Error> {
    let server = Server::bind(&config.socket)?;
    let (tell, told) = mpsc::channel(QUEUE);
    tracing::info!(socket = %config.socket.display(), "serving the CNI plugin");
    tokio::spawn(server.serve(tell));
    let (place, placed) = watch::channel(config.install.is_none());
    if let Some(install) = config.install {
        tokio::spawn(install::follow(install, place));
    }
    Ok((told, placed))
}
