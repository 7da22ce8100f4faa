//! A folder of Kubernetes manifests as a lab reads it, and what a cluster would have added to it.
//!
//! `folder` reads the files and holds what it last understood of each object; `controller` makes the pods of a Deployment
//! and its like; `plan` decides where pods run and which addresses pods and services have; `meshed` asks the controller's
//! own index which pods are meshed. All of it is pure but the reading of files: nothing here knows a network namespace or
//! a process.
//!
//! Of the user's folder the lab itself reads Namespaces, Nodes, Pods, Services and what makes pods. Policies, endpoint
//! slices and service accounts go straight to the controller, which reads the same folder.

mod controller;
pub mod default;
mod folder;
mod meshed;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use ztunnel_model::Identity;
use ztunnel_model::codec::DEFAULT_CLUSTER;

pub use control_plane::source::file::Mistake;
pub use folder::Folder;
pub(crate) use meshed::meshed;
pub(crate) use plan::{Plan, plan};

/// Annotation of a Node. Its one value is [`EXTERNAL`].
pub const PROXY_ANNOTATION: &str = "lab.ztunnel/proxy";
/// The lab starts an agent on the node but no proxy: somebody else runs one there.
pub const EXTERNAL: &str = "external";

/// What a lab consists of at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// In the order of their names; the position gives a node its number, and that its addresses.
    pub nodes: Vec<Node>,
    /// In the order of namespace and name.
    pub pods: Vec<Pod>,
    /// Numbers of the services whose addresses the lab chose, by `namespace/name`.
    pub services: BTreeMap<String, u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    /// No proxy is started here.
    pub external: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub node: String,
    /// Its number in its node's network, from 10 to 250.
    pub host: usize,
    /// IPv4, then IPv6.
    pub addresses: Vec<IpAddr>,
    /// Name of its network namespace, without the lab's.
    pub netns: String,
    /// Whether the pod is enrolled, as the controller decides it.
    pub mesh: bool,
}

impl Cluster {
    /// A pod by `name` or `namespace/name`, or by the name of its network namespace; of several with one name the first.
    pub fn pod(&self, name: &str) -> Option<&Pod> {
        let find = |matches: fn(&Pod, &str) -> bool| self.pods.iter().find(|pod| matches(pod, name));
        find(|pod, name| pod.netns == name)
            .or_else(|| find(|pod, name| pod.path() == name))
            .or_else(|| find(|pod, name| pod.name == name))
    }

    /// The number of a node, from 1; its addresses follow from it.
    pub fn node_number(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name).map(|index| index + 1)
    }
}

impl Pod {
    /// The uid of its workload.
    pub fn uid(&self) -> String {
        format!("{DEFAULT_CLUSTER}//Pod/{}/{}", self.namespace, self.name)
    }

    /// `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The names were checked when the manifest was read.
    pub fn identity(&self) -> Identity {
        Identity::new("cluster.local", &self.namespace, &self.service_account)
            .expect("invariant: names without '/' make an identity")
    }

    /// Whether the other is the same pod in the same place: what else differs can change while it runs.
    pub(crate) fn is_same_instance(&self, other: &Self) -> bool {
        let place = |pod: &Self| (pod.node.clone(), pod.host, pod.netns.clone(), pod.service_account.clone());
        self.path() == other.path() && place(self) == place(other)
    }
}

/// As somebody meets them who reads the files, and each once: the controller's reading finds some that the lab's finds.
pub(crate) fn in_order(mut mistakes: Vec<Mistake>) -> Vec<Mistake> {
    fn key(mistake: &Mistake) -> (&str, usize, usize, usize, &str) {
        let Mistake { document, at, .. } = mistake;
        (&at.file, *document, at.line, at.column, &at.reason)
    }
    mistakes.sort_by(|a, b| key(a).cmp(&key(b)));
    mistakes.dedup_by(|a, b| key(a) == key(b));
    mistakes
}
