//! `ztunnelctl workloads`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::proxies::{Proxy, text, texts};
use super::{Row, known_to};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Workload {
    namespace: String,
    name: String,
    uid: String,
    addresses: Vec<String>,
    node: String,
    protocol: String,
    service_account: String,
    status: String,
    services: Vec<String>,
    authorization_policies: Vec<String>,
    /// Nodes whose proxies know it in this form.
    nodes: Vec<String>,
    known_to: String,
}

impl Row for Workload {
    const COLUMNS: &'static [&'static str] =
        &["NAMESPACE", "NAME", "ADDRESSES", "NODE", "PROTOCOL", "ACCOUNT", "STATUS", "POLICIES", "KNOWN TO"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.namespace.clone(),
            if self.name.is_empty() { self.uid.clone() } else { self.name.clone() },
            self.addresses.join(","),
            self.node.clone(),
            self.protocol.clone(),
            self.service_account.clone(),
            self.status.clone(),
            self.authorization_policies.join(","),
            self.known_to.clone(),
        ]
    }
}

pub(super) fn rows(proxies: &[Proxy], in_scope: impl Fn(&str) -> bool) -> Vec<Workload> {
    let mut found: BTreeMap<(String, String, String), (&Value, Vec<String>)> = BTreeMap::new();
    for proxy in proxies {
        for record in proxy.list("workloads").filter(|record| in_scope(&text(record, "namespace"))) {
            // In another form it is another line: a node that is behind must be seen.
            let key = (text(record, "namespace"), text(record, "uid"), record.to_string());
            found.entry(key).or_insert((record, Vec::new())).1.push(proxy.node.clone());
        }
    }
    found.into_values().map(|(record, nodes)| row(record, nodes, proxies)).collect()
}

fn row(record: &Value, nodes: Vec<String>, proxies: &[Proxy]) -> Workload {
    Workload {
        namespace: text(record, "namespace"),
        name: text(record, "name"),
        uid: text(record, "uid"),
        addresses: texts(record, "workloadIps"),
        node: text(record, "node"),
        protocol: text(record, "protocol"),
        service_account: text(record, "serviceAccount"),
        status: text(record, "status"),
        services: texts(record, "services"),
        authorization_policies: texts(record, "authorizationPolicies"),
        known_to: known_to(&nodes, proxies),
        nodes,
    }
}
