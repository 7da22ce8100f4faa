//! `ztunnelctl policies`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::proxies::{Proxy, text};
use super::{Row, known_to};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Policy {
    namespace: String,
    name: String,
    action: String,
    scope: String,
    rules: usize,
    dry_run: bool,
    /// Workloads that name it; of a policy without a selector, those that it applies to by its scope.
    workloads: usize,
    /// Nodes whose proxies know it in this form.
    nodes: Vec<String>,
    known_to: String,
}

impl Row for Policy {
    const COLUMNS: &'static [&'static str] =
        &["NAMESPACE", "NAME", "ACTION", "SCOPE", "RULES", "DRY RUN", "WORKLOADS", "KNOWN TO"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.namespace.clone(),
            self.name.clone(),
            self.action.clone(),
            self.scope.clone(),
            self.rules.to_string(),
            if self.dry_run { "yes" } else { "no" }.to_owned(),
            self.workloads.to_string(),
            self.known_to.clone(),
        ]
    }
}

pub(super) fn rows(proxies: &[Proxy], in_scope: impl Fn(&str) -> bool) -> Vec<Policy> {
    let mut found: BTreeMap<(String, String, String), (&Value, Vec<&Proxy>)> = BTreeMap::new();
    for proxy in proxies {
        for record in proxy.list("policies").filter(|record| in_scope(&text(record, "namespace"))) {
            let key = (text(record, "namespace"), text(record, "name"), record.to_string());
            found.entry(key).or_insert((record, Vec::new())).1.push(proxy);
        }
    }
    found.into_values().map(|(record, by)| row(record, &by, proxies)).collect()
}

fn row(record: &Value, by: &[&Proxy], proxies: &[Proxy]) -> Policy {
    let nodes: Vec<String> = by.iter().map(|proxy| proxy.node.clone()).collect();
    Policy {
        namespace: text(record, "namespace"),
        name: text(record, "name"),
        action: text(record, "action"),
        scope: text(record, "scope"),
        rules: record["rules"].as_array().map_or(0, Vec::len),
        dry_run: record["dryRun"].as_bool().unwrap_or_default(),
        workloads: by
            .first()
            .map_or(0, |proxy| proxy.list("workloads").filter(|one| applies(record, one)).count()),
        known_to: known_to(&nodes, proxies),
        nodes,
    }
}

/// Interop.md section 9.1.
fn applies(policy: &Value, workload: &Value) -> bool {
    match policy["scope"].as_str() {
        Some("Global") => true,
        Some("Namespace") => policy["namespace"] == workload["namespace"],
        _ => {
            let name = format!("{}/{}", text(policy, "namespace"), text(policy, "name"));
            super::proxies::texts(workload, "authorizationPolicies").contains(&name)
        }
    }
}
