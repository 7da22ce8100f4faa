//! Objects of Kubernetes itself.

use std::net::IpAddr;
use std::sync::Arc;

use ztunnel_model::service::IpFamilies;
use ztunnel_model::workload::Locality;

use super::{Labels, Name};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: Arc<str>,
    pub labels: Labels,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    pub locality: Locality,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    pub name: Name,
}

/// The object that controls a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub kind: String,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: Name,
    pub labels: Labels,
    /// Empty until the pod is scheduled.
    pub node: Arc<str>,
    pub service_account: String,
    pub host_network: bool,
    /// A sidecar serves the pod already, so it is not meshed a second time.
    pub sidecar: bool,
    /// Its node says that it is captured and takes tunnels.
    pub redirected: bool,
    pub addresses: Vec<IpAddr>,
    /// In a phase that it never leaves: Succeeded or Failed.
    pub finished: bool,
    /// The condition Ready holds and the pod is not being deleted.
    pub ready: bool,
    pub owner: Option<Owner>,
    /// Named TCP ports of the containers.
    pub ports: Vec<(String, u16)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Number(u16),
    /// The port of this name in each pod.
    Name(String),
}

/// A TCP port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub port: u16,
    pub target: Target,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDistribution {
    SameZone,
    SameNode,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: Name,
    /// Another DNS name and nothing else: no address, no endpoint.
    pub external_name: bool,
    /// Cluster addresses and those of load balancers; none of a headless service.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<Port>,
    /// An empty one selects nothing.
    pub selector: Labels,
    pub publish_not_ready: bool,
    pub traffic_distribution: Option<TrafficDistribution>,
    /// `internalTrafficPolicy: Local`.
    pub local_only: bool,
    pub ip_families: IpFamilies,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    /// The pod behind it; it says more than the slice does.
    pub pod: Option<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: Name,
    /// From the label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    pub endpoints: Vec<Endpoint>,
    /// TCP ports: the service port's name and the port of the endpoints.
    pub ports: Vec<(String, u16)>,
}
