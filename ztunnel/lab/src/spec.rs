//! What a lab consists of: one YAML file of nodes, pods, services and policies.

mod addresses;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::Deserialize;
use ztunnel_model::codec::located::{Document, Mistake, Place};
use ztunnel_model::codec::static_config::{self, StaticConfig};
use ztunnel_model::policy::Policy;
use ztunnel_model::service::{Service, ServicePort};
use ztunnel_model::workload::{HealthStatus, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadType};
use ztunnel_model::{Identity, NamespacedHostname, Network};

use crate::lab::{CA_FOLDER, UNDERLAY};
pub use addresses::{node_addresses, pod_addresses};

/// The built-in lab.
pub const DEFAULT: &str = include_str!("default.yaml");

const KEYS: [&str; 4] = ["nodes", "pods", "services", "policies"];
const MOST_NODES: usize = 200;
pub(crate) const LONGEST_NAME: usize = 40;

#[derive(Clone, Debug, Default)]
pub struct Spec {
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    pub services: Vec<Service>,
    pub policies: Vec<Policy>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    pub name: String,
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub node: String,
    /// Whether the pod is enrolled.
    pub mesh: bool,
    pub addresses: Vec<IpAddr>,
    pub services: BTreeMap<NamespacedHostname, Vec<ServicePort>>,
    pub authorization_policies: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodText {
    name: String,
    #[serde(default = "default_name")]
    namespace: String,
    #[serde(default = "default_name")]
    service_account: String,
    node: String,
    #[serde(default = "yes")]
    mesh: bool,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    services: BTreeMap<String, BTreeMap<u16, u16>>,
    #[serde(default)]
    authorization_policies: Vec<String>,
}

impl Spec {
    /// Reads a lab file; all mistakes at once.
    pub fn parse(text: &str, file: &str) -> Result<Self, Vec<Mistake>> {
        let document = Document::parse(text, file).map_err(|mistake| vec![mistake])?;
        let mut mistakes = Vec::new();
        document.only_keys(&KEYS, &mut mistakes);
        let nodes = nodes(&document, &mut mistakes);
        let pods = pods(&document, &nodes, &mut mistakes);
        let StaticConfig { services, policies, .. } = static_config::read(&document, &mut mistakes);
        if mistakes.is_empty() { Ok(Self { nodes, pods, services, policies }) } else { Err(mistakes) }
    }

    /// What every proxy of the lab knows.
    pub fn static_config(&self) -> StaticConfig {
        StaticConfig {
            workloads: self.pods.iter().map(Pod::workload).collect(),
            services: self.services.clone(),
            policies: self.policies.clone(),
        }
    }

    pub fn pod(&self, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.name == name)
    }

    /// The number of a node, from 1; its addresses follow from it.
    pub fn node_number(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name).map(|index| index + 1)
    }
}

impl Pod {
    pub fn uid(&self) -> String {
        format!("lab//Pod/{}/{}", self.namespace, self.name)
    }

    /// The names were checked when the file was read.
    pub fn identity(&self) -> Identity {
        Identity::new("cluster.local", &self.namespace, &self.service_account)
            .expect("invariant: names without '/' make an identity")
    }

    fn workload(&self) -> Workload {
        Workload {
            uid: self.uid().as_str().into(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            identity: self.identity(),
            addresses: self.addresses.clone(),
            hostname: String::new(),
            network: Network::default(),
            protocol: if self.mesh { TunnelProtocol::Hbone } else { TunnelProtocol::Tcp },
            network_mode: NetworkMode::Standard,
            node: self.node.clone(),
            workload_type: WorkloadType::Pod,
            workload_name: self.name.clone(),
            canonical_name: self.name.clone(),
            canonical_revision: "v1".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            locality: Locality::default(),
            status: HealthStatus::Healthy,
            capacity: 1,
            native_tunnel: false,
            application_tunnel: None,
            waypoint: None,
            network_gateway: None,
            authorization_policies: self.authorization_policies.clone(),
            services: self.services.clone(),
        }
    }
}

fn nodes(document: &Document, mistakes: &mut Vec<Mistake>) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for place in document.items("nodes", mistakes) {
        let Some(node) = place.decode::<Node>(mistakes) else { continue };
        check_name(&node.name, &place.key("name"), mistakes);
        check_free(&node.name, &[UNDERLAY, CA_FOLDER], &place.key("name"), mistakes);
        if nodes.iter().any(|known| known.name == node.name) {
            mistakes.push(place.mistake(format!("node {} is listed twice", node.name)));
        }
        nodes.push(node);
    }
    if nodes.len() > MOST_NODES
        && let Some(place) = document.field("nodes")
    {
        mistakes.push(place.mistake(format!("at most {MOST_NODES} nodes fit")));
    }
    nodes
}

fn pods(document: &Document, nodes: &[Node], mistakes: &mut Vec<Mistake>) -> Vec<Pod> {
    let mut pods: Vec<Pod> = Vec::new();
    let mut taken: HashMap<IpAddr, String> = HashMap::new();
    let mut hosts: HashMap<usize, usize> = HashMap::new();
    for place in document.items("pods", mistakes) {
        let Some(text) = place.decode::<PodText>(mistakes) else { continue };
        for (key, name) in
            [("name", &text.name), ("namespace", &text.namespace), ("serviceAccount", &text.service_account)]
        {
            check_name(name, &place.key(key), mistakes);
        }
        check_free(&text.name, &[UNDERLAY], &place.key("name"), mistakes);
        if pods.iter().any(|known| known.name == text.name) || nodes.iter().any(|node| node.name == text.name)
        {
            mistakes.push(place.key("name").mistake(format!("the name {} is taken", text.name)));
        }
        let Some(number) = nodes.iter().position(|node| node.name == text.node).map(|index| index + 1) else {
            let known: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            let reason = format!("there is no node \"{}\" (nodes: {})", text.node, known.join(", "));
            mistakes.push(place.key("node").mistake(reason));
            continue;
        };
        let host = hosts.entry(number).or_insert(addresses::FIRST_POD);
        let addresses = addresses::of_pod(&text.addresses, number, *host, &place, mistakes);
        *host += 1;
        for address in &addresses {
            if let Some(owner) = taken.insert(*address, text.name.clone()) {
                mistakes.push(place.mistake(format!("address {address} is taken by pod {owner}")));
            }
        }
        pods.push(pod(text, addresses, &place, mistakes));
    }
    pods
}

fn pod(text: PodText, addresses: Vec<IpAddr>, place: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Pod {
    let mut services = BTreeMap::new();
    for (key, ports) in &text.services {
        let ports =
            ports.iter().map(|(&service_port, &target_port)| ServicePort { service_port, target_port });
        match key.parse() {
            Ok(key) => drop(services.insert(key, ports.collect())),
            Err(error) => mistakes.push(place.key("services").mistake(error)),
        }
    }
    Pod {
        name: text.name,
        namespace: text.namespace,
        service_account: text.service_account,
        node: text.node,
        mesh: text.mesh,
        addresses,
        services,
        authorization_policies: text.authorization_policies,
    }
}

/// Names become files, folders, namespaces and SPIFFE pieces, so they are DNS labels (RFC 1123 section 2.1).
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST_NAME
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
}

fn check_name(name: &str, place: &Place<'_>, mistakes: &mut Vec<Mistake>) {
    if !is_name(name) {
        let reason =
            format!("\"{name}\" is not a name (1 to {LONGEST_NAME} of a-z, 0-9 and -, not starting with -)");
        mistakes.push(place.mistake(reason));
    }
}

/// A node's name is a folder and a namespace, a pod's is a namespace; the lab has some of its own.
fn check_free(name: &str, taken: &[&str], place: &Place<'_>, mistakes: &mut Vec<Mistake>) {
    if taken.contains(&name) {
        mistakes.push(place.mistake(format!("the lab itself needs the name {name}")));
    }
}

fn default_name() -> String {
    "default".to_owned()
}

fn yes() -> bool {
    true
}
