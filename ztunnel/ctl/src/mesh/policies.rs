//! `ztunnelctl policies`: what became of each policy object, by the controller, and which proxies hold what it became.
//!
//! The join goes over the names of resources. A resource may stand for several objects (all strict workloads share one),
//! and an object may have several, or none: then proxies need nothing to enforce it, or nobody enforces it, which the
//! status tells. What proxies hold and the controller does not name has a line of its own.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::controller::{Controller, Mistake};
use super::known_to;
use super::proxies::{Proxy, text, texts};
use super::table::Table;

const COLUMNS: [&str; 12] = [
    "KIND",
    "NAMESPACE",
    "NAME",
    "STATUS",
    "RESOURCE",
    "ACTION",
    "SCOPE",
    "RULES",
    "DRY RUN",
    "WORKLOADS",
    "KNOWN TO",
    "MISSING ON",
];
const UNKNOWN: &str = "unknown to the controller";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// Why there is nothing from the controller.
    controller_error: Option<String>,
    policies: Vec<Policy>,
    mistakes: Vec<Mistake>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    /// None of a resource that the controller does not name; then the names are the resource's.
    kind: Option<String>,
    namespace: String,
    name: String,
    /// `enforced`, `partly enforced`, `not enforced`, or that the controller does not know it; none if it was not heard.
    status: Option<String>,
    reasons: Vec<String>,
    /// By the controller; of what it does not name, by the first proxy that holds it.
    workloads: usize,
    resources: Vec<Resource>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Resource {
    name: String,
    /// More than one if a node is behind.
    forms: Vec<Form>,
    /// Nodes whose proxies answered and do not hold it.
    missing_on: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Form {
    action: String,
    scope: String,
    rules: usize,
    dry_run: bool,
    /// Nodes whose proxies hold it in this form.
    nodes: Vec<String>,
    known_to: String,
}

/// What the proxies hold: by name, by form.
type Held<'a> = BTreeMap<String, BTreeMap<String, (&'a Value, Vec<&'a Proxy>)>>;

pub(super) fn report(
    controller: Result<Controller, String>,
    proxies: &[Proxy],
    in_scope: impl Fn(&str) -> bool,
) -> Report {
    let mut held: Held<'_> = BTreeMap::new();
    for proxy in proxies {
        for record in proxy.list("policies") {
            let forms = held.entry(name(record)).or_default();
            forms.entry(record.to_string()).or_insert((record, Vec::new())).1.push(proxy);
        }
    }
    let (controller, controller_error) = match controller {
        Ok(controller) => (controller, None),
        Err(error) => (Controller::default(), Some(error)),
    };
    let named: BTreeSet<String> =
        controller.policies.iter().flat_map(|policy| policy.resources.iter().cloned()).collect();
    let written = controller.policies.into_iter().filter(|policy| in_scope(&policy.namespace));
    let written = written.map(|policy| Policy {
        resources: policy.resources.iter().map(|name| resource(name, &held, proxies)).collect(),
        kind: Some(policy.kind),
        namespace: policy.namespace,
        name: policy.name,
        status: Some(policy.status),
        reasons: policy.reasons,
        workloads: policy.workloads,
    });
    let status = controller_error.is_none().then(|| UNKNOWN.to_owned());
    let unnamed = held.iter().filter(|(name, _)| !named.contains(*name)).filter_map(|(name, forms)| {
        let (record, by) = forms.values().next()?;
        let workloads = by.first()?.list("workloads").filter(|one| applies(record, one)).count();
        let (namespace, own) = (text(record, "namespace"), text(record, "name"));
        in_scope(&namespace).then(|| Policy {
            kind: None,
            namespace,
            name: own,
            status: status.clone(),
            reasons: Vec::new(),
            workloads,
            resources: vec![resource(name, &held, proxies)],
        })
    });
    let policies = written.chain(unnamed).collect();
    let mistakes = controller.mistakes.into_iter().filter(|one| one.may_be_of_policy(&in_scope)).collect();
    Report { controller_error, policies, mistakes }
}

fn name(record: &Value) -> String {
    format!("{}/{}", text(record, "namespace"), text(record, "name"))
}

fn resource(name: &str, held: &Held<'_>, proxies: &[Proxy]) -> Resource {
    let forms = held.get(name).into_iter().flat_map(BTreeMap::values).map(|(record, by)| {
        let nodes: Vec<String> = by.iter().map(|proxy| proxy.node.clone()).collect();
        Form {
            action: text(record, "action"),
            scope: text(record, "scope"),
            rules: record["rules"].as_array().map_or(0, Vec::len),
            dry_run: record["dryRun"].as_bool().unwrap_or_default(),
            known_to: known_to(&nodes, proxies),
            nodes,
        }
    });
    let forms: Vec<Form> = forms.collect();
    let holds = |node: &String| forms.iter().any(|form| form.nodes.contains(node));
    let answered = proxies.iter().filter(|proxy| proxy.dump.is_some()).map(|proxy| &proxy.node);
    let missing_on = answered.filter(|node| !holds(node)).cloned().collect();
    Resource { name: name.to_owned(), forms, missing_on }
}

/// Interop.md section 9.1.
fn applies(policy: &Value, workload: &Value) -> bool {
    match policy["scope"].as_str() {
        Some("Global") => true,
        Some("Namespace") => policy["namespace"] == workload["namespace"],
        _ => texts(workload, "authorizationPolicies").contains(&name(policy)),
    }
}

impl Report {
    /// Each form of each resource on a line, each reason on one below.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new(&COLUMNS);
        for policy in &self.policies {
            policy.lines().into_iter().for_each(|line| table.add(line));
            policy.reasons.iter().for_each(|reason| table.note(reason));
        }
        table
    }

    pub(super) fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

impl Policy {
    fn lines(&self) -> Vec<Vec<String>> {
        let line = |resource: [String; 5], known_to: String, missing_on: String| {
            let kind = self.kind.clone().unwrap_or_default();
            let status = self.status.clone().unwrap_or_default();
            let mut line = vec![kind, self.namespace.clone(), self.name.clone(), status];
            line.extend(resource);
            line.extend([self.workloads.to_string(), known_to, missing_on]);
            line
        };
        if self.resources.is_empty() {
            return vec![line(Default::default(), String::new(), String::new())];
        }
        let mut lines = Vec::new();
        for resource in &self.resources {
            let missing_on = resource.missing_on.join(",");
            for form in &resource.forms {
                let dry_run = if form.dry_run { "yes" } else { "no" }.to_owned();
                let (action, scope) = (form.action.clone(), form.scope.clone());
                let cells = [resource.name.clone(), action, scope, form.rules.to_string(), dry_run];
                lines.push(line(cells, form.known_to.clone(), missing_on.clone()));
            }
            if resource.forms.is_empty() {
                let mut cells: [String; 5] = Default::default();
                cells[0].clone_from(&resource.name);
                lines.push(line(cells, String::new(), missing_on));
            }
        }
        lines
    }
}
