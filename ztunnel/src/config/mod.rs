//! What the operator wrote (`raw`, `mesh`) → what this host has (`host`) → one Config per component (`resolve`).
//!
//! Owns every default and every rule of interop.md sections 1.3 and 1.4 for the features that exist. `raw` is the only
//! file that reads the environment. Must not know the components that take the values: each gets a plain struct, and
//! only `app` sees the whole. Secrets are kept out of `Debug` and of the configuration dump.

mod host;
mod memory;
mod mesh;
mod quantity;
mod raw;
mod resolve;
mod workers;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::Value;
use ztunnel_model::codec::located;

pub use host::Host;
pub use memory::MemoryRule;
pub use raw::Environment;
pub use workers::WorkerRule;

/// The effective configuration; serialized into `/config_dump`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub telemetry: Telemetry,
    pub admin: Admin,
    /// At start.
    pub workers: usize,
    #[serde(skip)]
    pub worker_rule: WorkerRule,
    pub memory: MemoryRule,
    pub io_backend: IoBackend,
    pub node: Node,
    pub hbone: Hbone,
    pub sockets: Sockets,
    pub xds: Xds,
    pub identity: Identity,
    pub drain: Drain,
    pub static_config: Option<StaticSource>,
    pub redirect_socket: PathBuf,
    /// No agent was named.
    pub alone: bool,
    /// Where istio-cni listens, for the agent that is started then.
    pub inpod_uds: PathBuf,
    pub response_baggage: bool,
    /// Run although the process still has capabilities.
    pub allow_privileges: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    pub rust_log: String,
    pub json: bool,
    /// Policy decisions are logged at info instead of debug.
    pub policy_info: bool,
    /// Label `tag` of `istio_build`.
    pub build_tag: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Admin {
    pub admin_port: u16,
    pub stats_port: u16,
    pub readiness_port: u16,
    /// Whether the wildcard listeners are dual-stack.
    pub ipv6: bool,
    /// Whether the loopback listener is also opened on `::1`.
    pub ipv6_loopback: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub name: Option<String>,
    pub network: String,
    pub cluster_id: String,
    pub trust_domain: String,
    pub ipv6: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hbone {
    pub stream_window: u32,
    pub connection_window: u32,
    pub frame_size: u32,
    pub max_streams: u32,
    pub unused_release: Duration,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sockets {
    pub keepalive: Option<Keepalive>,
    pub user_timeout: Option<Duration>,
    /// The application sees the address of the original client.
    pub original_source: bool,
    pub same_node: SameNode,
    /// Congestion control between an application and this proxy.
    pub local_congestion: Option<String>,
}

/// By what applications' sockets are read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IoBackend {
    /// What was measured to be the better one (`io::backend`).
    #[default]
    Auto,
    Epoll,
    Uring,
}

/// How a connection goes whose two ends are pods of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SameNode {
    /// As any other: through a tunnel, encrypted. What an auditor asks for, and what the name of mutual TLS promises, so it is
    /// what nobody has to ask for.
    #[default]
    Mtls,
    /// From one application's socket to the other's, with no TLS between: it never leaves the two pods' loopback and this
    /// process, which holds the keys of both and checks both certificates, revocation and policy as for a tunnel.
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keepalive {
    pub time: Duration,
    pub interval: Duration,
    pub retries: u32,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// URI of the CA; `None` when the operator wrote an empty address.
    pub ca_address: Option<String>,
    pub ca_root: RootSource,
    /// Another name that the CA's certificate may carry.
    pub alt_hostname: Option<String>,
    /// Extra request metadata; the values may be secrets.
    pub headers: Vec<(String, Secret)>,
    pub token: Option<TokenSource>,
    pub cluster_id: String,
    pub secret_ttl: Duration,
    /// File of CRLs; read when it appears and whenever it changes.
    pub crl_path: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Xds {
    /// URI of the xDS server; `None` when the operator wrote an empty address.
    pub address: Option<String>,
    pub root: RootSource,
    /// Another name that the server's certificate may carry.
    pub alt_hostname: Option<String>,
    /// Extra request metadata; the values may be secrets.
    pub headers: Vec<(String, Secret)>,
    pub token: Option<TokenSource>,
    pub cluster_id: String,
    /// Addresses are asked for when they are needed, instead of all at once.
    pub on_demand: bool,
    /// CRLs come over the same stream; our own control plane has them.
    pub revocations: bool,
    pub node: XdsNode,
}

/// What the server is told about this proxy (interop.md section 4.2).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct XdsNode {
    pub instance_ip: String,
    pub pod_name: String,
    pub pod_namespace: String,
    pub node_name: String,
    pub metadata: BTreeMap<String, String>,
    pub json_metadata: BTreeMap<String, Value>,
}

/// Where the roots that a control-plane server's own certificate is checked against come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RootSource {
    /// Read when it is needed, so that it may be mounted or renewed later.
    File(PathBuf),
    System,
    /// The PEM text itself.
    Inline(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenSource {
    /// Read for every request, because the kubelet renews it.
    File(PathBuf),
    Literal(Secret),
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    pub deadline: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum StaticSource {
    Path(PathBuf),
    Inline(String),
}

/// A text that no log and no dump shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("REDACTED")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("REDACTED")
    }
}

/// Everything that is wrong with the configuration, so that one start shows it all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(pub Vec<Mistake>);

/// One thing that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mistake {
    /// Where a value stands, what it says, what was expected there.
    Value { place: String, value: String, expected: String },
    /// In a document.
    Written(located::Mistake),
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { place, value, expected } => write!(f, "{place}={value:?}: expected {expected}"),
            Self::Written(mistake) => mistake.fmt(f),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Error {}

/// The configuration of this process: its environment and its mesh file, on this host.
pub fn load() -> Result<Config, Error> {
    let (file, mut mistakes) = match mesh::read() {
        Ok(text) => (text, Vec::new()),
        Err(mistake) => (None, vec![mistake]),
    };
    let config = evaluate(&Environment::process(), file.as_deref(), &Host::discover(), &mut mistakes);
    if mistakes.is_empty() { Ok(config) } else { Err(Error(mistakes)) }
}

/// The same from given inputs; `mesh_file` is the text of the mesh configuration.
pub fn from(environment: &Environment, mesh_file: Option<&str>, host: &Host) -> Result<Config, Error> {
    let mut mistakes = Vec::new();
    let config = evaluate(environment, mesh_file, host, &mut mistakes);
    if mistakes.is_empty() { Ok(config) } else { Err(Error(mistakes)) }
}

fn evaluate(env: &Environment, mesh_file: Option<&str>, host: &Host, mistakes: &mut Vec<Mistake>) -> Config {
    let raw = raw::Raw::read(env, mistakes);
    let file = mesh_file.map(|text| mesh::parse(mesh::FILE, text, Some("defaultConfig"), mistakes));
    let inline = raw.proxy_config.as_deref().map(|text| mesh::parse("PROXY_CONFIG", text, None, mistakes));
    let proxy_config = file.unwrap_or_default().overlaid_with(inline.unwrap_or_default());
    resolve::resolve(raw, proxy_config, host, mistakes)
}

#[cfg(test)]
mod tests;
