//! Services: names and virtual addresses in front of workloads (interop.md section 4.6, `Service`).

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use crate::address::{Network, NetworkAddress};

/// Key of a service: written `namespace/hostname`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    pub namespace: String,
    pub hostname: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a service key (expected NAMESPACE/HOSTNAME)")]
pub struct KeyError(String);

impl FromStr for NamespacedHostname {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text.split_once('/') {
            Some((namespace, hostname))
                if !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/') =>
            {
                Ok(Self { namespace: namespace.to_owned(), hostname: hostname.to_owned() })
            }
            _ => Err(KeyError(text.to_owned())),
        }
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A port of a service or of an endpoint; `target_port` 0 means that the endpoint's own map says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePort {
    pub service_port: u16,
    pub target_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    Hostname(NamespacedHostname),
    Address(NetworkAddress),
}

/// A reference to a waypoint or a network gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    pub destination: GatewayDestination,
    pub hbone_mtls_port: u16,
}

/// A virtual address: a prefix on a network. A full-length prefix is an exact address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vip {
    pub network: Network,
    pub prefix: IpNet,
}

impl Vip {
    /// Whether it is one address.
    pub fn is_exact(&self) -> bool {
        self.prefix.prefix_len() == self.prefix.max_prefix_len()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LoadBalancerMode {
    #[default]
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LoadBalancing {
    pub routing_preferences: Vec<Scope>,
    pub mode: LoadBalancerMode,
    pub health_policy: HealthPolicy,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IpFamilies {
    #[default]
    Automatic,
    Ipv4Only,
    Ipv6Only,
    Dual,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Visibility {
    #[default]
    Public,
    /// Seen only by clients of the service's own namespace.
    Namespace,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedWaypoint {
    pub destination: GatewayAddress,
    pub weight: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub key: NamespacedHostname,
    pub vips: Vec<Vip>,
    pub ports: Vec<ServicePort>,
    /// Extra identities that endpoints may present; those that are no SPIFFE identity are kept but never match.
    pub subject_alt_names: Vec<String>,
    pub waypoint: Option<GatewayAddress>,
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// `None` when the control plane sent no such block.
    pub load_balancing: Option<LoadBalancing>,
    pub ip_families: IpFamilies,
    pub canonical: bool,
    pub visibility: Visibility,
}
