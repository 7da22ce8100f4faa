//! Manifests of a small mesh, written by code: what a test or a benchmark brings up.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::manifests::{EXTERNAL, PROXY_ANNOTATION};

const MODE: &str = "istio.io/dataplane-mode";

/// A mesh in the making. Each namespace is meshed, nodes are those that pods are put on.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    nodes: BTreeSet<String>,
    external: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    pods: Vec<(String, Value)>,
    files: Vec<(String, String)>,
}

impl Mesh {
    pub fn new() -> Self {
        Self::default()
    }

    /// A meshed pod, `namespace/name`; its service account has the pod's name.
    pub fn pod(self, node: &str, path: &str) -> Self {
        self.labelled(node, path, &[])
    }

    /// A pod that is not in the mesh.
    pub fn outside(self, node: &str, path: &str) -> Self {
        self.labelled(node, path, &[(MODE, "none")])
    }

    /// A pod with labels besides `app`, which is its name.
    pub fn labelled(mut self, node: &str, path: &str, labels: &[(&str, &str)]) -> Self {
        let (namespace, name) = path.split_once('/').unwrap_or(("default", path));
        self.nodes.insert(node.to_owned());
        self.namespaces.insert(namespace.to_owned());
        self.pods.push((format!("pod-{namespace}-{name}.json"), pod(node, path, labels)));
        self
    }

    /// The lab starts no proxy on this node.
    pub fn external(mut self, node: &str) -> Self {
        self.nodes.insert(node.to_owned());
        self.external.insert(node.to_owned());
        self
    }

    /// A file of its own.
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// File names and texts: each pod is a file, `pod-NAMESPACE-NAME.json`.
    pub fn files(&self) -> Vec<(String, String)> {
        let nodes = self.nodes.iter().map(|name| {
            let annotations = match self.external.contains(name) {
                true => json!({ PROXY_ANNOTATION: EXTERNAL }),
                false => json!({}),
            };
            json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": { "name": name, "annotations": annotations },
            })
        });
        let namespaces = self.namespaces.iter().map(|name| {
            json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": { "name": name, "labels": { MODE: "ambient" } },
            })
        });
        let list =
            |items: Vec<Value>| json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
        let fixed = [
            ("nodes.json".to_owned(), list(nodes.collect())),
            ("namespaces.json".to_owned(), list(namespaces.collect())),
        ];
        let pods = self.pods.iter().map(|(name, pod)| (name.clone(), pod.to_string()));
        fixed.into_iter().chain(pods).chain(self.files.iter().cloned()).collect()
    }
}

/// The manifest of a pod, `namespace/name`, whose service account and label `app` have its name.
pub fn pod(node: &str, path: &str, labels: &[(&str, &str)]) -> Value {
    let (namespace, name) = path.split_once('/').unwrap_or(("default", path));
    let mut all = json!({ "app": name });
    for (key, value) in labels {
        all[*key] = (*value).into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": all },
        "spec": { "nodeName": node, "serviceAccountName": name },
    })
}
