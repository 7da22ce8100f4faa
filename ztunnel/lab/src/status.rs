//! What `lab status` shows.

use std::fmt;

use serde::Serialize;

use crate::Lab;

#[derive(Debug, Serialize)]
pub struct Status {
    name: String,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
}

#[derive(Debug, Serialize)]
struct Node {
    name: String,
    namespace: String,
    proxy: &'static str,
    agent: &'static str,
    log: String,
}

#[derive(Debug, Serialize)]
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
        let nodes = self.nodes().iter().map(|node| Node {
            name: node.name().to_owned(),
            namespace: node.namespace().to_owned(),
            proxy: match node.proxy() {
                Some(proxy) if proxy.runs() && node.is_ready() => "ready",
                Some(proxy) if proxy.runs() => "not ready",
                _ => "not running",
            },
            agent: if node.agent().is_some_and(|agent| agent.runs()) { "running" } else { "not running" },
            log: node.log_path().display().to_string(),
        });
        let pods = self.pods().iter().map(|pod| Pod {
            name: pod.name().to_owned(),
            namespace: pod.spec().namespace.clone(),
            node: pod.spec().node.clone(),
            identity: pod.spec().mesh.then(|| pod.spec().identity().to_string()),
            network_namespace: pod.namespace().to_owned(),
            addresses: pod.spec().addresses.iter().map(ToString::to_string).collect(),
        });
        Status { name: self.name().to_owned(), nodes: nodes.collect(), pods: pods.collect() }
    }
}

impl Status {
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("invariant: texts are JSON")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "lab \"{}\"\n", self.name)?;
        writeln!(f, "{:<12} {:<12} {:<12} {:<20} LOG", "NODE", "PROXY", "AGENT", "NETNS")?;
        for node in &self.nodes {
            writeln!(
                f,
                "{:<12} {:<12} {:<12} {:<20} {}",
                node.name, node.proxy, node.agent, node.namespace, node.log
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
        Ok(())
    }
}
