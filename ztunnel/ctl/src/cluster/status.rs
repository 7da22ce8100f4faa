//! `ztunnelctl status --cluster`: what the agent of each node says of its pods, through the API server.

use std::process::ExitCode;

use reflector::{Client, Keep};
use serde::Serialize;
use serde_json::Value;

use super::manifests::SYSTEM;
use super::{ANSWER, Error, of};
use crate::mesh::{Output, json, table::Table};

/// Where the agent is asked.
const PORT: u16 = 15022;
const PODS: Keep = Keep::Only(&[(
    "items",
    Keep::Only(&[
        ("metadata", Keep::Only(&[("name", Keep::All)])),
        ("spec", Keep::Only(&[("nodeName", Keep::All)])),
    ]),
)]);

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    node: String,
    /// `answers`, or why it does not.
    agent: String,
    pods: usize,
    /// Captured for sure, and served by a proxy.
    served: usize,
    /// The others.
    troubled: Vec<Troubled>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Troubled {
    pod: String,
    state: String,
    reason: String,
}

/// A success only where every pod of the mesh is captured and served.
pub(super) async fn run(client: &Client, output: Output) -> Result<ExitCode, Error> {
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods");
    let list = format!("{path}?labelSelector=app.kubernetes.io%2Fname%3Dztunnel");
    let agents = of("the node pods", reflector::get(client, &list, PODS, ANSWER).await)?.unwrap_or_default();
    let mut nodes = Vec::new();
    for agent in agents["items"].as_array().into_iter().flatten() {
        let name = agent["metadata"]["name"].as_str().unwrap_or_default();
        let asked =
            reflector::get(client, &format!("{path}/{name}:{PORT}/proxy/pods"), Keep::All, ANSWER).await;
        let answer = match asked {
            Ok(Some(pods)) => Ok(pods),
            Ok(None) => Err("its pod is gone".to_owned()),
            Err(trouble) => Err(trouble.to_string()),
        };
        nodes.push(node(agent["spec"]["nodeName"].as_str().unwrap_or_default(), answer));
    }
    if nodes.is_empty() {
        return Err(Error::NotInstalled);
    }
    nodes.sort_by(|one, other| one.node.cmp(&other.node));
    match output {
        Output::Json => println!("{}", json(&nodes)),
        Output::Table => print!("{}", table(&nodes)),
    }
    let well = nodes.iter().all(|node| node.agent == ANSWERS && node.troubled.is_empty());
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const ANSWERS: &str = "answers";

fn node(name: &str, answer: Result<Value, String>) -> Node {
    let nothing = Vec::new();
    let (agent, pods) = match &answer {
        Ok(pods) => (ANSWERS.to_owned(), pods.as_array().unwrap_or(&nothing)),
        Err(reason) => (reason.clone(), &nothing),
    };
    let troubled: Vec<Troubled> = pods.iter().filter_map(trouble).collect();
    Node { node: name.to_owned(), agent, pods: pods.len(), served: pods.len() - troubled.len(), troubled }
}

fn trouble(pod: &Value) -> Option<Troubled> {
    let text = |key: &str| pod[key].as_str().unwrap_or_default();
    let is_served = pod["proxies"].as_array().is_some_and(|proxies| !proxies.is_empty());
    let reason = match text("reason") {
        _ if text("state") == "captured" && is_served => return None,
        "" if !is_served => "no proxy serves it".to_owned(),
        reason => reason.to_owned(),
    };
    let pod = format!("{}/{}", text("namespace"), text("name"));
    Some(Troubled { pod, state: text("state").to_owned(), reason })
}

fn table(nodes: &[Node]) -> Table {
    let mut table = Table::new(&["NODE", "AGENT", "PODS"]);
    for node in nodes {
        table.add(vec![node.node.clone(), node.agent.clone(), format!("{}/{}", node.served, node.pods)]);
        for Troubled { pod, state, reason } in &node.troubled {
            table.note(&format!("{pod}: {state}: {reason}"));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_that_are_not_surely_captured_or_not_served_are_named() {
        let pod = |name: &str, state: &str, reason: Value, proxies: &[u64]| json!({"namespace": "shop", "name": name, "state": state, "reason": reason, "proxies": proxies});
        let said = json!([
            pod("good", "captured", Value::Null, &[1]),
            pod("alone", "captured", Value::Null, &[]),
            pod("bad", "quarantined", json!("the listener did not hear of it"), &[1]),
        ]);
        let nodes = [node("n1", Ok(said)), node("n2", Err("no answer".to_owned()))];
        assert_eq!((nodes[0].pods, nodes[0].served), (3, 1));
        let shown = table(&nodes).to_string();
        for part in [
            "1/3",
            "shop/alone: captured: no proxy serves it",
            "shop/bad: quarantined: the listener did not hear of it",
            "no answer",
        ] {
            assert!(shown.contains(part), "{shown}");
        }
    }
}
