//! What `lab status` shows.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::Lab;
use crate::node::NodeHandle;
use crate::process::Process;
use crate::processes::FOLLOWER_LOG;

const NOT_RUNNING: &str = "not running";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    name: String,
    manifests: String,
    controller: &'static str,
    /// Whether edits of the folder are live for pods and services; policies are the controller's.
    follower: &'static str,
    follower_log: String,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    mistakes: Vec<String>,
    /// Kinds that are not read, and how many objects there are of each.
    unread: BTreeMap<String, usize>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    name: String,
    network_namespace: String,
    proxy: &'static str,
    agent: &'static str,
    log: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    external: Option<External>,
}

/// What another proxy needs to serve a node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct External {
    /// The network namespace that it must run in, as a path.
    enter: String,
    /// By names of the environment that Istio's ztunnel reads, and REDIRECT_SOCKET for a proxy of this project.
    environment: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    name: String,
    namespace: String,
    node: String,
    identity: Option<String>,
    network_namespace: String,
    addresses: Vec<String>,
}

impl Lab {
    pub fn status(&self) -> Status {
        let pods = self.pods().iter().map(|pod| Pod {
            name: pod.name().to_owned(),
            namespace: pod.spec().namespace.clone(),
            node: pod.spec().node.clone(),
            identity: pod.spec().mesh.then(|| pod.spec().identity().to_string()),
            network_namespace: pod.namespace().to_owned(),
            addresses: pod.spec().addresses.iter().map(ToString::to_string).collect(),
        });
        Status {
            name: self.name().to_owned(),
            manifests: self.manifests().display().to_string(),
            controller: running(self.controller.as_ref()),
            follower: running(self.follower.as_ref()),
            follower_log: self.folder().join(FOLLOWER_LOG).display().to_string(),
            nodes: self.nodes().iter().map(|node| self.node_status(node)).collect(),
            pods: pods.collect(),
            mistakes: self.record.mistakes.clone(),
            unread: self.record.unread.clone(),
        }
    }

    fn node_status(&self, node: &NodeHandle) -> Node {
        let proxy = match node.proxy() {
            _ if node.external() => "external",
            Some(proxy) if proxy.runs() && node.is_ready() => "ready",
            Some(proxy) if proxy.runs() => "not ready",
            _ => NOT_RUNNING,
        };
        let external = node.external().then(|| External {
            enter: crate::namespace::path(node.namespace()).display().to_string(),
            environment: self.external_environment(node.name()),
        });
        Node {
            name: node.name().to_owned(),
            network_namespace: node.namespace().to_owned(),
            proxy,
            agent: running(node.agent()),
            log: node.log_path().display().to_string(),
            external,
        }
    }
}

fn running(process: Option<&Process>) -> &'static str {
    if process.is_some_and(Process::runs) { "running" } else { NOT_RUNNING }
}

impl Status {
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("invariant: texts are JSON")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, manifests, controller, follower, .. } = self;
        writeln!(f, "lab \"{name}\" of {manifests}; controller {controller}, follower {follower}\n")?;
        if *follower == NOT_RUNNING {
            writeln!(
                f,
                "The follower has ended: pods and services no longer follow the folder. Its last words are in {}; start it \
                 again with: ztunnelctl lab --name {name} follow\n",
                self.follower_log
            )?;
        }
        writeln!(f, "{:<12} {:<12} {:<12} {:<20} LOG", "NODE", "PROXY", "AGENT", "NETNS")?;
        for node in &self.nodes {
            writeln!(
                f,
                "{:<12} {:<12} {:<12} {:<20} {}",
                node.name, node.proxy, node.agent, node.network_namespace, node.log
            )?;
        }
        writeln!(
            f,
            "\n{:<12} {:<10} {:<8} {:<46} {:<18} ADDRESSES",
            "POD", "NAMESPACE", "NODE", "IDENTITY", "NETNS"
        )?;
        for pod in &self.pods {
            let identity = pod.identity.as_deref().unwrap_or("not in the mesh");
            let addresses = pod.addresses.join(" ");
            let (name, namespace, node, netns) =
                (&pod.name, &pod.namespace, &pod.node, &pod.network_namespace);
            writeln!(f, "{name:<12} {namespace:<10} {node:<8} {identity:<46} {netns:<18} {addresses}")?;
        }
        for node in &self.nodes {
            let Some(External { enter, environment }) = &node.external else { continue };
            writeln!(f, "\nA proxy for {} runs in the network namespace {enter} with", node.name)?;
            environment.iter().try_for_each(|(key, value)| writeln!(f, "  {key}={value}"))?;
        }
        if !self.unread.is_empty() {
            let kinds = self.unread.iter().map(|(kind, count)| format!("{kind} ({count})"));
            writeln!(f, "\nNot read here: {}", kinds.collect::<Vec<_>>().join(", "))?;
        }
        if !self.mistakes.is_empty() {
            writeln!(f, "\n{} mistake(s); what worked before them stays:", self.mistakes.len())?;
            self.mistakes.iter().try_for_each(|mistake| writeln!(f, "  {mistake}"))?;
        }
        Ok(())
    }
}
