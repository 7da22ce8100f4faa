//! Pods and bare endpoints as workloads.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ztunnel_model::service::ServicePort;
use ztunnel_model::workload::{HealthStatus, Locality, NetworkMode, TunnelProtocol, WorkloadType};
use ztunnel_model::{Identity, Network, Text, Workload};

use super::Config;
use super::service::key;
use crate::object::{Endpoint, EndpointSlice, Labels, Owner, Pod, Service, Target};

const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
const CANONICAL_NAMES: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
const CANONICAL_REVISIONS: [&str; 3] =
    ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
/// The service account of a pod that names none, and of what is no pod.
const DEFAULT_ACCOUNT: &str = "default";

/// What a pod's workload takes from other objects.
pub(super) struct Surroundings<'a> {
    /// It takes tunnels.
    pub tunnelled: bool,
    pub locality: Locality,
    pub services: Vec<&'a Service>,
    pub policies: Vec<String>,
}

/// Whether labels ask for the mesh.
pub(super) fn asks_for_mesh(labels: &Labels) -> bool {
    labels.get(DATAPLANE_MODE).is_some_and(|mode| mode == "ambient")
}

/// A label that says neither yes nor no.
pub(super) fn unknown_mode(labels: &Labels) -> Option<&str> {
    let mode = labels.get(DATAPLANE_MODE).map(String::as_str);
    mode.filter(|mode| !["ambient", "none"].contains(mode))
}

pub(super) fn misread(mode: &str) -> String {
    format!(
        "metadata.labels[{DATAPLANE_MODE}]: {mode:?} is unknown, and the namespace is not in the mesh; write ambient or none"
    )
}

/// Whether a pod is meshed: its own label decides where it says `ambient` or `none`, or else its namespace's. A pod in
/// its node's network, or one with a sidecar, never is.
pub(super) fn is_meshed(pod: &Pod, namespace_asks: bool) -> bool {
    let asks = match pod.labels.get(DATAPLANE_MODE).map(String::as_str) {
        Some("ambient") => true,
        Some("none") => false,
        _ => namespace_asks,
    };
    asks && !pod.host_network && !pod.sidecar
}

pub(super) fn identity(config: &Config, pod: &Pod) -> Option<Identity> {
    let account = if pod.service_account.is_empty() { DEFAULT_ACCOUNT } else { &pod.service_account };
    Identity::new(&config.trust_domain, &pod.name.namespace, account)
        .inspect_err(|error| tracing::warn!(pod = %pod.name, %error, "pod left out"))
        .ok()
}

fn pod_uid(config: &Config, pod: &crate::object::Name) -> String {
    format!("{}//Pod/{}/{}", config.cluster_id, pod.namespace, pod.name)
}

/// `None` for a pod that has ended, or has no address yet.
pub(super) fn of_pod(config: &Config, pod: &Pod, around: Surroundings<'_>) -> Option<Workload> {
    if pod.finished || pod.addresses.is_empty() {
        return None;
    }
    let (workload_type, workload_name) = kind_and_name(pod);
    let label = |names: &[&str]| names.iter().find_map(|name| pod.labels.get(*name)).cloned();
    Some(Workload {
        uid: pod_uid(config, &pod.name).as_str().into(),
        name: pod.name.name.clone().into(),
        namespace: pod.name.namespace.clone().into(),
        identity: identity(config, pod)?,
        addresses: pod.addresses.iter().map(IpAddr::to_canonical).collect(),
        hostname: Text::default(),
        network: Network::from(config.network.as_str()),
        protocol: if around.tunnelled { TunnelProtocol::Hbone } else { TunnelProtocol::Tcp },
        network_mode: if pod.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard },
        node: pod.node.clone().into(),
        workload_type,
        canonical_name: label(&CANONICAL_NAMES).unwrap_or_else(|| workload_name.clone()).into(),
        canonical_revision: label(&CANONICAL_REVISIONS).unwrap_or_else(|| "latest".to_owned()).into(),
        workload_name: workload_name.into(),
        cluster_id: config.cluster_id.as_str().into(),
        locality: around.locality.into(),
        status: health(pod.ready),
        capacity: 1,
        native_tunnel: false,
        application_tunnel: None,
        waypoint: None,
        network_gateway: None,
        authorization_policies: around.policies.into_iter().map(Text::from).collect(),
        services: Arc::new(
            around
                .services
                .into_iter()
                .map(|service| (key(&service.name), ports(pod, service).into()))
                .collect(),
        ),
    })
}

/// The endpoints of a slice that no pod stands behind. Nothing is known of them but their address, which others may
/// have as well: they are reached as endpoints only, in plaintext.
pub(super) fn of_slice(config: &Config, slice: &EndpointSlice, service: &Service) -> Vec<Workload> {
    let named = |name: &str| service.ports.iter().find(|port| port.name == name);
    let ports = slice.ports.iter().filter_map(|(name, target)| {
        named(name).map(|port| ServicePort { service_port: port.port, target_port: *target })
    });
    let services = Arc::new(BTreeMap::from([(key(&service.name), ports.collect())]));
    let mut found: BTreeMap<IpAddr, &Endpoint> = BTreeMap::new();
    for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.pod.is_none()) {
        if let Some(address) = endpoint.addresses.first() {
            found.entry(address.to_canonical()).or_insert(endpoint);
        }
    }
    let name = &slice.name;
    let workload = |(address, endpoint): (IpAddr, &Endpoint)| {
        let uid = format!("{}/discovery.k8s.io/EndpointSlice/{name}/{address}", config.cluster_id);
        let identity = Identity::new(&config.trust_domain, &name.namespace, DEFAULT_ACCOUNT)
            .inspect_err(|error| tracing::warn!(slice = %name, %error, "endpoint left out"))
            .ok()?;
        Some(Workload {
            uid: uid.as_str().into(),
            name: name.name.clone().into(),
            namespace: name.namespace.clone().into(),
            identity,
            addresses: endpoint.addresses.iter().map(IpAddr::to_canonical).collect(),
            hostname: Text::default(),
            network: Network::from(config.network.as_str()),
            protocol: TunnelProtocol::Tcp,
            network_mode: NetworkMode::HostNetwork,
            node: Text::default(),
            workload_type: WorkloadType::Deployment,
            workload_name: Text::default(),
            canonical_name: Text::default(),
            canonical_revision: Text::default(),
            cluster_id: config.cluster_id.as_str().into(),
            locality: Arc::default(),
            status: health(endpoint.ready),
            capacity: 1,
            native_tunnel: false,
            application_tunnel: None,
            waypoint: None,
            network_gateway: None,
            authorization_policies: [].into(),
            services: services.clone(),
        })
    };
    found.into_iter().filter_map(workload).collect()
}

fn health(ready: bool) -> HealthStatus {
    if ready { HealthStatus::Healthy } else { HealthStatus::Unhealthy }
}

/// A port with a name that this pod does not have is not served by it.
fn ports(pod: &Pod, service: &Service) -> Vec<ServicePort> {
    let target = |target: &Target| match target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => pod.ports.iter().find(|(known, _)| known == name).map(|(_, port)| *port),
    };
    let ports = service
        .ports
        .iter()
        .filter_map(|port| Some(ServicePort { service_port: port.port, target_port: target(&port.target)? }));
    ports.collect()
}

fn kind_and_name(pod: &Pod) -> (WorkloadType, String) {
    let (workload_type, name) = match &pod.owner {
        Some(owner) => by_owner(owner, &pod.labels),
        None => (WorkloadType::Pod, pod.name.name.to_string()),
    };
    (workload_type, pod.labels.get(WORKLOAD_NAME).cloned().unwrap_or(name))
}

fn by_owner(owner: &Owner, labels: &Labels) -> (WorkloadType, String) {
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash = labels.get("pod-template-hash").filter(|hash| !hash.is_empty());
            let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
            match deployment {
                Some(name) if !name.is_empty() => (WorkloadType::Deployment, name.to_owned()),
                _ => (WorkloadType::Pod, owner.name.clone()),
            }
        }
        "Deployment" => (WorkloadType::Deployment, owner.name.clone()),
        "CronJob" => (WorkloadType::CronJob, owner.name.clone()),
        // A cron job names its jobs after the minute they run in, in eight to ten digits.
        "Job" => match owner.name.rsplit_once('-') {
            Some((name, minute))
                if (8..=10).contains(&minute.len())
                    && minute.bytes().all(|byte| byte.is_ascii_digit())
                    && !name.is_empty() =>
            {
                (WorkloadType::CronJob, name.to_owned())
            }
            _ => (WorkloadType::Job, owner.name.clone()),
        },
        _ => (WorkloadType::Pod, owner.name.clone()),
    }
}

/// The names under which somebody may ask for a workload by address.
pub(super) fn aliases(workload: &Workload) -> Vec<String> {
    match workload.network_mode {
        NetworkMode::HostNetwork => Vec::new(),
        NetworkMode::Standard => {
            workload.addresses.iter().map(|address| format!("{}/{address}", workload.network)).collect()
        }
    }
}
