//! Workloads: the pods and hosts that send and receive traffic (interop.md section 4.6, `Workload`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::address::Network;
use crate::identity::Identity;
use crate::service::{GatewayAddress, NamespacedHostname, ServicePort};
use crate::text::Text;

/// Primary key of a workload, for example `cluster//v1/Pod/namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(Arc<str>);

impl From<&str> for WorkloadUid {
    fn from(uid: &str) -> Self {
        Self(uid.into())
    }
}

impl WorkloadUid {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Pods win over other owners of the same address (interop.md section 4.7).
    pub fn is_pod(&self) -> bool {
        self.0.contains("//Pod/")
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// Plain TCP.
    #[default]
    Tcp,
    Hbone,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WorkloadType {
    #[default]
    Deployment,
    CronJob,
    Pod,
    Job,
}

impl WorkloadType {
    /// The word used in baggage keys and in the configuration dump.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HealthStatus {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    #[default]
    Standard,
    /// Shares its node's address, so it is reachable as a service endpoint only and never looked up by IP.
    HostNetwork,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    pub region: Text,
    pub zone: Text,
    pub subzone: Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApplicationProtocol {
    None,
    Proxy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    pub protocol: ApplicationProtocol,
    pub port: Option<u16>,
}

/// The services of an endpoint, with its own port map for each.
pub type Memberships = BTreeMap<NamespacedHostname, Arc<[ServicePort]>>;

/// One workload as the control plane describes it. Defaults (trust domain `cluster.local`, service account `default`,
/// cluster `Kubernetes`, capacity 1) are filled in by the codec, so that nobody behind it meets an empty text.
///
/// A proxy holds one for each pod of the mesh, up to millions: what workloads have in common they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub uid: WorkloadUid,
    pub name: Text,
    pub namespace: Text,
    /// Who this workload is; from trust domain, namespace and service account.
    pub identity: Identity,
    pub addresses: Vec<IpAddr>,
    /// Only for workloads without addresses: resolved on demand.
    pub hostname: Text,
    pub network: Network,
    pub protocol: TunnelProtocol,
    pub network_mode: NetworkMode,
    pub node: Text,
    pub workload_type: WorkloadType,
    pub workload_name: Text,
    pub canonical_name: Text,
    pub canonical_revision: Text,
    pub cluster_id: Text,
    pub locality: Arc<Locality>,
    pub status: HealthStatus,
    /// Load-balancing weight; 0 is never chosen.
    pub capacity: u32,
    pub native_tunnel: bool,
    pub application_tunnel: Option<ApplicationTunnel>,
    pub waypoint: Option<Arc<GatewayAddress>>,
    pub network_gateway: Option<Arc<GatewayAddress>>,
    /// Names (`namespace/name`) of the selector-scoped policies that apply here.
    pub authorization_policies: Arc<[Text]>,
    /// Services that this workload is an endpoint of.
    pub services: Arc<Memberships>,
}
