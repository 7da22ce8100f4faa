//! Istio's security policies from their manifests. Nothing in them is passed over: a misspelt field of a policy would
//! leave open what it was meant to close. A policy with mistakes in its form is read by `salvage`.

mod salvage;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use ztunnel_model::codec::located::{Mistake, Place};

use super::text::{AuthorizationSpec, Meta, PeerSpec, Selector};
use crate::object::{
    self, Action, AuthorizationPolicy, Condition, Labels, Name, Operation, PeerAuthentication, Rule, Source,
};

const DRY_RUN: &str = "istio.io/dry-run";

pub(super) fn authorization(
    root: &Place<'_>,
    name: Name,
    meta: &Meta,
    mistakes: &mut Vec<Mistake>,
) -> AuthorizationPolicy {
    let spec: Option<AuthorizationSpec> = part(root, mistakes);
    for (index, rule) in spec.iter().flat_map(|spec| &spec.rules).enumerate() {
        empty_lists(rule, &root.key("spec").key("rules").index(index), mistakes);
    }
    let unread = salvage::unread(mistakes);
    if let Some(spec) = &spec {
        meaning(spec, &root.key("spec"), mistakes);
    }
    let dry_run = meta.annotations.as_ref().and_then(|all| all.get(DRY_RUN)).cloned();
    let Some(spec) = spec.filter(|_| unread.is_empty()) else {
        return AuthorizationPolicy { dry_run, ..salvage::authorization(root, name, unread) };
    };
    let targets = spec.target_refs.iter().flatten().chain(&spec.target_ref);
    AuthorizationPolicy {
        name,
        targets: targets.map(|target| format!("{}/{}", target.kind, target.name)).collect(),
        selector: spec.selector.map(labels),
        action: spec.action,
        dry_run,
        rules: spec.rules,
        unread,
    }
}

/// Mistakes in what is well formed.
fn meaning(spec: &AuthorizationSpec, place: &Place<'_>, mistakes: &mut Vec<Mistake>) {
    let targets = spec.target_refs.iter().flatten().chain(&spec.target_ref);
    if spec.selector.is_some() && targets.count() > 0 {
        mistakes.push(place.key_mistake("selector", "stands beside targetRefs; keep one of them"));
    }
    if spec.action == Action::Deny && spec.rules.is_empty() {
        let reason = "a DENY policy without rules denies nobody; add the rule {} to deny everybody";
        mistakes.push(place.key_mistake("action", reason));
    }
    for (index, one) in spec.rules.iter().enumerate() {
        rule(one, &place.key("rules").index(index), mistakes);
    }
}

pub(super) fn peer(
    root: &Place<'_>,
    name: Name,
    meta: &Meta,
    mistakes: &mut Vec<Mistake>,
) -> PeerAuthentication {
    let spec: Option<PeerSpec> = part(root, mistakes);
    let ports = root.key("spec").key("portLevelMtls");
    if ports.get("0").is_some() {
        mistakes.push(ports.key_mistake("0", "0 is not a port; write 1 to 65535"));
    }
    let unread = salvage::unread(mistakes);
    let created = meta.creation_timestamp.as_deref().and_then(|text| {
        let parsed = OffsetDateTime::parse(text, &Rfc3339).ok();
        if parsed.is_none() {
            let place = root.key("metadata").key("creationTimestamp");
            mistakes.push(place.mistake(format!("{text:?} is not a time such as 2026-01-31T10:00:00Z")));
        }
        parsed.map(OffsetDateTime::unix_timestamp)
    });
    let Some(spec) = spec.filter(|_| unread.is_empty()) else {
        return PeerAuthentication { created, ..salvage::peer(root, name, unread) };
    };
    let ports = spec.port_level_mtls.unwrap_or_default();
    PeerAuthentication {
        name,
        created,
        selector: spec.selector.map(labels),
        mode: spec.mtls.unwrap_or_default().mode,
        ports: ports.into_iter().map(|(port, mtls)| (port, mtls.mode)).collect::<BTreeMap<_, _>>(),
        unread,
    }
}

fn part<T: DeserializeOwned + Default>(root: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Option<T> {
    match root.get("spec") {
        Some(place) if !place.is_null() => place.decode(mistakes),
        _ => Some(T::default()),
    }
}

fn labels(selector: Selector) -> Labels {
    selector.match_labels.unwrap_or_default()
}

/// A list that a template left empty is a mistake in the form: read as written it would hold for everyone.
fn empty_lists(rule: &Rule, place: &Place<'_>, mistakes: &mut Vec<Mistake>) {
    for (key, count) in [("from", rule.from.len()), ("to", rule.to.len()), ("when", rule.when.len())] {
        if count == 0 && place.get(key).is_some() {
            mistakes
                .push(place.key_mistake(key, "is empty, and would hold for everyone; leave it out for that"));
        }
    }
}

fn rule(rule: &Rule, place: &Place<'_>, mistakes: &mut Vec<Mistake>) {
    for (index, one) in rule.from.iter().enumerate() {
        source(&one.source, &place.key("from").index(index).key("source"), mistakes);
    }
    for (index, one) in rule.to.iter().enumerate() {
        operation(&one.operation, &place.key("to").index(index).key("operation"), mistakes);
    }
    for (index, one) in rule.when.iter().enumerate() {
        condition(one, &place.key("when").index(index), mistakes);
    }
}

fn source(source: &Source, place: &Place<'_>, mistakes: &mut Vec<Mistake>) {
    if *source == Source::default() {
        mistakes.push(place.mistake("says nothing of the source; leave it out, or name somebody"));
    }
    let identities = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    let accounts = [&source.service_accounts, &source.not_service_accounts];
    if identities.iter().any(|list| !list.is_empty()) && accounts.iter().any(|list| !list.is_empty()) {
        let reason = "serviceAccounts do not stand beside principals or namespaces; keep one of them";
        mistakes.push(place.mistake(reason));
    }
    for (key, list) in [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ] {
        values(list, &place.key(key), object::text, mistakes);
    }
    for (key, list) in
        [("serviceAccounts", &source.service_accounts), ("notServiceAccounts", &source.not_service_accounts)]
    {
        values(list, &place.key(key), object::service_account, mistakes);
    }
    for (key, list) in [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ] {
        values(list, &place.key(key), object::block, mistakes);
    }
}

fn operation(operation: &Operation, place: &Place<'_>, mistakes: &mut Vec<Mistake>) {
    if *operation == Operation::default() {
        mistakes.push(place.mistake("says nothing of the operation; leave it out, or name a port"));
    }
    for (key, list) in [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ] {
        values(list, &place.key(key), object::text, mistakes);
    }
    values(&operation.ports, &place.key("ports"), object::port, mistakes);
    values(&operation.not_ports, &place.key("notPorts"), object::port, mistakes);
}

fn condition(condition: &Condition, place: &Place<'_>, mistakes: &mut Vec<Mistake>) {
    if condition.values.is_empty() && condition.not_values.is_empty() {
        mistakes.push(place.mistake("has neither values nor notValues; add one of them"));
    }
    for (key, list) in [("values", &condition.values), ("notValues", &condition.not_values)] {
        let place = place.key(key);
        match condition.key.as_str() {
            "source.ip" | "destination.ip" | "remote.ip" => values(list, &place, object::block, mistakes),
            "destination.port" => values(list, &place, object::port, mistakes),
            _ => values(list, &place, object::text, mistakes),
        }
    }
}

fn values<'v, T>(
    list: &'v [String],
    place: &Place<'_>,
    read: impl Fn(&'v str) -> Result<T, String>,
    mistakes: &mut Vec<Mistake>,
) {
    let wrong = list
        .iter()
        .enumerate()
        .filter_map(|(index, value)| read(value).err().map(|reason| place.index(index).mistake(reason)));
    mistakes.extend(wrong);
}

#[cfg(test)]
mod tests;
