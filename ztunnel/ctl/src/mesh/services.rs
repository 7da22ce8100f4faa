//! `ztunnelctl services`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::proxies::{Proxy, text, texts};
use super::{Row, known_to};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Service {
    namespace: String,
    name: String,
    hostname: String,
    vips: Vec<String>,
    /// Service port to target port; 0 if the endpoint says it.
    ports: BTreeMap<String, u64>,
    healthy_endpoints: usize,
    endpoints: usize,
    /// Nodes whose proxies know it in this form.
    nodes: Vec<String>,
    known_to: String,
}

impl Row for Service {
    const COLUMNS: &'static [&'static str] =
        &["NAMESPACE", "NAME", "HOSTNAME", "ADDRESSES", "PORTS", "ENDPOINTS", "KNOWN TO"];

    fn cells(&self) -> Vec<String> {
        let ports: Vec<String> = self.ports.iter().map(|(port, target)| format!("{port}:{target}")).collect();
        vec![
            self.namespace.clone(),
            self.name.clone(),
            self.hostname.clone(),
            self.vips.join(","),
            ports.join(","),
            format!("{}/{}", self.healthy_endpoints, self.endpoints),
            self.known_to.clone(),
        ]
    }
}

pub(super) fn rows(proxies: &[Proxy], in_scope: impl Fn(&str) -> bool) -> Vec<Service> {
    let mut found: BTreeMap<(String, String, String), (&Value, Vec<String>)> = BTreeMap::new();
    for proxy in proxies {
        for record in proxy.list("services").filter(|record| in_scope(&text(record, "namespace"))) {
            let key = (text(record, "namespace"), text(record, "hostname"), record.to_string());
            found.entry(key).or_insert((record, Vec::new())).1.push(proxy.node.clone());
        }
    }
    found.into_values().map(|(record, nodes)| row(record, nodes, proxies)).collect()
}

fn row(record: &Value, nodes: Vec<String>, proxies: &[Proxy]) -> Service {
    let ports = record["ports"].as_object().into_iter().flatten();
    let endpoints: Vec<&Value> =
        record["endpoints"].as_object().into_iter().flat_map(|map| map.values()).collect();
    let prefixes = record["cidrVips"].as_array().into_iter().flatten();
    let prefixes = prefixes.map(|vip| format!("{}/{}", text(vip, "network"), text(vip, "cidr")));
    Service {
        namespace: text(record, "namespace"),
        name: text(record, "name"),
        hostname: text(record, "hostname"),
        vips: texts(record, "vips").into_iter().chain(prefixes).collect(),
        ports: ports.map(|(port, target)| (port.clone(), target.as_u64().unwrap_or_default())).collect(),
        healthy_endpoints: endpoints.iter().filter(|endpoint| endpoint["status"] == "Healthy").count(),
        endpoints: endpoints.len(),
        known_to: known_to(&nodes, proxies),
        nodes,
    }
}
