//! The pods of a Deployment, StatefulSet, ReplicaSet, DaemonSet or Job: as many as it asks for, from its template.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ztunnel_model::codec::located::{Mistake, Place};

/// So many pods of one object are a mistake, not a wish: a node has room for 241.
const MOST: u16 = 1000;

/// How many pods there are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Number(u16),
    OnEachNode,
}

/// What of such an object is read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Controller {
    pub count: Count,
    /// A pod's manifest without its name.
    pod: Value,
}

#[derive(Deserialize)]
struct Text {
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    replicas: Option<u16>,
    #[serde(default)]
    parallelism: Option<u16>,
    template: Template,
}

#[derive(Deserialize)]
struct Template {
    #[serde(default)]
    metadata: Metadata,
    spec: PodSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

/// What anybody reads of a pod's `spec`.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service_account_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    containers: Option<Vec<Container>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    init_containers: Option<Vec<Container>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restart_policy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    container_port: u16,
    #[serde(default)]
    protocol: Protocol,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

pub(super) fn is_controller(kind: &str) -> bool {
    matches!(kind, "Deployment" | "StatefulSet" | "ReplicaSet" | "DaemonSet" | "Job")
}

/// Reads an object of one of the kinds; its name and namespace are known.
pub(super) fn read(
    root: &Place<'_>,
    kind: &str,
    (namespace, name): (&str, &str),
    mistakes: &mut Vec<Mistake>,
) -> Option<Controller> {
    let Text { spec } = root.decode_known(mistakes)?;
    let written = if kind == "Job" { spec.parallelism } else { spec.replicas };
    let number = written.unwrap_or(1);
    if number > MOST {
        let key = if kind == "Job" { "parallelism" } else { "replicas" };
        mistakes.push(root.key("spec").key(key).mistake(format!("at most {MOST} pods fit")));
        return None;
    }
    let Template { metadata, spec: pod } = spec.template;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "labels": metadata.labels.unwrap_or_default(),
            "annotations": metadata.annotations.unwrap_or_default(),
            "ownerReferences": [{
                "apiVersion": root.get("apiVersion").and_then(|place| place.text()).unwrap_or_default(),
                "kind": kind,
                "name": name,
                "controller": true,
            }],
        },
        "spec": pod,
    });
    let count = if kind == "DaemonSet" { Count::OnEachNode } else { Count::Number(number) };
    Some(Controller { count, pod })
}

impl Controller {
    /// Its pods on these nodes, as name and manifest: `NAME-0`, `NAME-1`, …
    pub(super) fn pods(&self, name: &str, nodes: &[&str]) -> Vec<(String, Value)> {
        let pod = |index: usize, node: Option<&str>| {
            let name = format!("{name}-{index}");
            let mut pod = self.pod.clone();
            pod["metadata"]["name"] = name.as_str().into();
            if let Some(node) = node {
                pod["spec"]["nodeName"] = node.into();
            }
            (name, pod)
        };
        match self.count {
            Count::Number(number) => (0..usize::from(number)).map(|index| pod(index, None)).collect(),
            Count::OnEachNode => {
                nodes.iter().enumerate().map(|(index, node)| pod(index, Some(node))).collect()
            }
        }
    }
}
