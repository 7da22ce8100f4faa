//! The static configuration (interop.md section 4.8): top-level lists `workloads`, `services`, `policies`.
//!
//! Two defaults differ from the peer's, where an omitted key means an empty text: `serviceAccount` is `default` and
//! `trustDomain` is `cluster.local`, as over xDS. The keys that `/config_dump` shows beside the peer's are read too.

mod document;
mod policy;
mod service;
mod vips;
mod workload;

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;

use self::vips::Vips;
use super::located::{self, Document, Mistake, Place};
use crate::policy::Policy;
use crate::service::Service;
use crate::workload::Workload;

pub use document::{EndpointView, PolicyView, ServiceView, WorkloadView, to_json};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaticConfig {
    pub workloads: Vec<Workload>,
    pub services: Vec<Service>,
    pub policies: Vec<Policy>,
}

/// The keys of the document.
pub const KEYS: [&str; 3] = ["workloads", "services", "policies"];

/// Reads YAML or JSON; `file` names it in mistakes, all of which are found at once.
pub fn parse(text: &str, file: &str) -> Result<StaticConfig, Vec<Mistake>> {
    let document = Document::parse(text, file).map_err(|mistake| vec![mistake])?;
    let mut mistakes = Vec::new();
    document.only_keys(&KEYS, &mut mistakes);
    let config = read(&document, &mut mistakes);
    located::sort(&mut mistakes);
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
}

/// Reads the lists of a document that may have other keys too.
pub fn read(document: &Document, mistakes: &mut Vec<Mistake>) -> StaticConfig {
    let mut config = StaticConfig::default();
    let mut seen = HashMap::new();
    for place in document.items("workloads", mistakes) {
        if let Some(workload) = workload::read(&place, mistakes) {
            unique(&mut seen, workload.uid.clone(), "workload uid", &place.key("uid"), mistakes);
            config.workloads.push(workload);
        }
    }
    let (mut keys, mut vips) = (HashMap::new(), Vips::new(&config.workloads));
    for place in document.items("services", mistakes) {
        if let Some(service) = service::read(&place, mistakes) {
            unique(&mut keys, service.key.clone(), "service", &place.key("hostname"), mistakes);
            for (index, vip) in service.vips.iter().enumerate() {
                vips.add(&service, vip, &place.key("vips").index(index));
            }
            config.services.push(service);
        }
    }
    vips.check(mistakes);
    let mut seen = HashMap::new();
    for place in document.items("policies", mistakes) {
        if let Some(policy) = policy::read(&place, mistakes) {
            unique(&mut seen, policy.key.clone(), "policy", &place.key("name"), mistakes);
            config.policies.push(policy);
        }
    }
    config
}

fn unique<K: Hash + Eq + Display>(
    seen: &mut HashMap<K, usize>,
    key: K,
    what: &str,
    place: &Place<'_>,
    mistakes: &mut Vec<Mistake>,
) {
    let mistake = place.mistake("");
    if let Some(first) = seen.get(&key) {
        mistakes
            .push(Mistake { reason: format!("{what} {key} is already taken on line {first}"), ..mistake });
    } else {
        seen.insert(key, mistake.line);
    }
}

#[cfg(test)]
mod tests;
