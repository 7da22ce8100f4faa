//! `ztunnelctl status`.

use serde::Serialize;
use serde_json::Value;

use super::Row;
use super::proxies::{Proxy, text};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    node: String,
    /// `ready`, `not ready` or `no answer`.
    proxy: &'static str,
    version: String,
    /// How the proxy is fed.
    discovery: String,
    workloads: usize,
    services: usize,
    policies: usize,
    certificates_available: usize,
    certificates: usize,
    pods_served: usize,
    pods: usize,
    connections: usize,
}

impl Row for Status {
    const COLUMNS: &'static [&'static str] = &[
        "NODE",
        "PROXY",
        "VERSION",
        "DISCOVERY",
        "WORKLOADS",
        "SERVICES",
        "POLICIES",
        "CERTIFICATES",
        "PODS",
        "CONNECTIONS",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.node.clone(),
            self.proxy.to_owned(),
            self.version.clone(),
            self.discovery.clone(),
            self.workloads.to_string(),
            self.services.to_string(),
            self.policies.to_string(),
            format!("{}/{}", self.certificates_available, self.certificates),
            format!("{}/{}", self.pods_served, self.pods),
            self.connections.to_string(),
        ]
    }
}

pub(super) fn rows(proxies: &[Proxy]) -> Vec<Status> {
    proxies.iter().map(row).collect()
}

fn row(proxy: &Proxy) -> Status {
    let nothing = Value::Null;
    let dump = proxy.dump.as_ref().unwrap_or(&nothing);
    let pods: Vec<&Value> =
        dump["workloadState"].as_object().into_iter().flat_map(|pods| pods.values()).collect();
    let open = |pod: &Value| {
        ["inbound", "outbound"]
            .map(|way| pod["connections"][way].as_array().map_or(0, Vec::len))
            .iter()
            .sum::<usize>()
    };
    Status {
        node: proxy.node.clone(),
        proxy: match (&proxy.dump, proxy.ready) {
            (None, _) => "no answer",
            (Some(_), true) => "ready",
            (Some(_), false) => "not ready",
        },
        version: text(&dump["version"], "version"),
        discovery: text(&dump["discovery"], "state"),
        workloads: proxy.list("workloads").count(),
        services: proxy.list("services").count(),
        policies: proxy.list("policies").count(),
        certificates_available: proxy.list("certificates").filter(|one| one["state"] == "Available").count(),
        certificates: proxy.list("certificates").count(),
        pods_served: pods.iter().filter(|pod| pod["state"] == "Up").count(),
        pods: pods.len(),
        connections: pods.iter().map(|pod| open(pod)).sum(),
    }
}
