//! Keeps every index of the snapshot in step when one record is replaced by another.

use std::net::IpAddr;
use std::sync::Arc;

use ztunnel_model::policy::{Policy, PolicyKey, Scope};
use ztunnel_model::service::Vip;
use ztunnel_model::{NamespacedHostname, Service, Text, Workload};

use super::Turn;
use crate::state::snapshot::{Backends, Endpoint, Hasher, Scoped, Snapshot, indexed_by_address};
use crate::state::table::Table;

/// Whether a workload may be the own one of a pod here.
pub(super) fn is_local(node: Option<&str>, workload: &Workload) -> bool {
    node.is_none_or(|node| workload.node == *node)
}

pub(super) fn workload(snapshot: &mut Snapshot, node: Option<&str>, (before, after): &Turn<Workload>) {
    let Snapshot { hasher, workloads, workloads_by_address, workloads_by_hostname, local_workloads, .. } =
        snapshot;
    let hasher: &Hasher = hasher;
    let by_uid = |workload: &Workload| vec![hasher.text(workload.uid.as_str())];
    reindex(workloads, before, after, by_uid);
    reindex(workloads_by_address, before, after, |workload| addresses(hasher, workload));
    reindex(workloads_by_hostname, before, after, |workload| {
        let named = !workload.hostname.is_empty();
        if named { vec![hasher.text(&workload.hostname)] } else { Vec::new() }
    });
    reindex(local_workloads, before, after, |workload| {
        let local = is_local(node, workload);
        if local { vec![hasher.pair(&workload.namespace, &workload.name)] } else { Vec::new() }
    });
    endpoints(snapshot, before.as_ref(), after.as_ref());
}

pub(super) fn service(snapshot: &mut Snapshot, (before, after): &Turn<Service>) {
    let Snapshot { hasher, services, services_by_hostname, exact_vips, prefix_vips, .. } = snapshot;
    let by_key = |service: &Service| hasher.service(&service.key);
    let by_hostname = |service: &Service| hasher.text(&service.key.hostname);
    if let Some(before) = before {
        let kept = |vip: &Vip| after.as_ref().is_some_and(|after| after.vips.contains(vip));
        for vip in before.vips.iter().filter(|vip| !kept(vip)) {
            match vip.is_exact() {
                true => exact_vips.remove(hasher, vip, before),
                false => prefix_vips.remove(hasher, vip, before),
            }
        }
        if after.is_none() {
            services.remove(by_key(before), |other| other.key == before.key);
            services_by_hostname.remove(by_hostname(before), |other| other.key == before.key);
        }
    }
    if let Some(after) = after {
        services.put(by_key(after), after.clone(), |other| other.key == after.key);
        services_by_hostname.put(by_hostname(after), after.clone(), |other| other.key == after.key);
        for vip in &after.vips {
            match vip.is_exact() {
                true => exact_vips.put(hasher, vip, after),
                false => prefix_vips.put(hasher, vip, after),
            }
        }
    }
}

pub(super) fn policy_of<'a>(snapshot: &'a Snapshot, key: &PolicyKey) -> Option<&'a Arc<Policy>> {
    snapshot.policies.get(snapshot.hasher.pair(&key.namespace, &key.name), |policy| policy.key == *key)
}

pub(super) fn policy(snapshot: &mut Snapshot, (before, after): &Turn<Policy>) {
    if let Some(before) = before {
        let hash = snapshot.hasher.pair(&before.key.namespace, &before.key.name);
        snapshot.policies.remove(hash, |other| other.key == before.key);
        scoped(snapshot, before, |policies| drop(policies.remove(&before.key)));
    }
    if let Some(after) = after {
        let hash = snapshot.hasher.pair(&after.key.namespace, &after.key.name);
        snapshot.policies.insert(hash, after.clone());
        scoped(snapshot, after, |policies| drop(policies.insert(after.key.clone(), after.clone())));
    }
}

/// Changes the policies of the scope that one of them has.
fn scoped(snapshot: &mut Snapshot, policy: &Policy, change: impl FnOnce(&mut Scoped)) {
    match policy.scope {
        Scope::WorkloadSelector => {}
        Scope::Global => change(Arc::make_mut(&mut snapshot.global_policies)),
        Scope::Namespace => {
            let namespace = &policy.key.namespace;
            let hash = snapshot.hasher.text(namespace);
            let groups = &mut snapshot.namespace_policies;
            let is = |(of, _): &(Text, Arc<Scoped>)| of == namespace;
            if groups.get(hash, is).is_none() {
                groups.insert(hash, (namespace.into(), Arc::default()));
            }
            let (_, group) = groups.get_mut(hash, is).expect("invariant: it was just put there");
            change(Arc::make_mut(group));
            if group.is_empty() {
                groups.remove(hash, is);
            }
        }
    }
}

/// Moves a workload from the places that it had in a table to those that it has; where they are the same it keeps its
/// rank among others of the same key.
fn reindex(
    table: &mut Table<Arc<Workload>>,
    before: &Option<Arc<Workload>>,
    after: &Option<Arc<Workload>>,
    places: impl Fn(&Workload) -> Vec<u64>,
) {
    let old = before.as_ref().map(|workload| places(workload)).unwrap_or_default();
    let new = after.as_ref().map(|workload| places(workload)).unwrap_or_default();
    if let Some(before) = before {
        for &hash in old.iter().filter(|hash| !new.contains(hash)) {
            table.remove(hash, |other| other.uid == before.uid);
        }
    }
    if let Some(after) = after {
        for &hash in &new {
            match old.contains(&hash) {
                true => table.put(hash, after.clone(), |other| other.uid == after.uid),
                false => table.insert(hash, after.clone()),
            }
        }
    }
}

fn addresses(hasher: &Hasher, workload: &Workload) -> Vec<u64> {
    if !indexed_by_address(workload) {
        return Vec::new();
    }
    let hash = |ip: &IpAddr| hasher.address(&workload.network, *ip);
    let mut places: Vec<u64> = workload.addresses.iter().map(hash).collect();
    places.sort_unstable();
    places.dedup();
    places
}

fn endpoints(snapshot: &mut Snapshot, before: Option<&Arc<Workload>>, after: Option<&Arc<Workload>>) {
    if let Some(before) = before {
        let kept = |key: &NamespacedHostname| after.is_some_and(|after| after.services.contains_key(key));
        for key in before.services.keys().filter(|key| !kept(key)) {
            remove_endpoint(snapshot, key, before);
        }
    }
    let Some(after) = after else { return };
    for (key, ports) in after.services.iter() {
        let endpoint = Endpoint { workload: after.clone(), ports: ports.clone() };
        let before = before.filter(|before| before.services.contains_key(key));
        let hash = snapshot.hasher.service(key);
        let Some(shared) = snapshot.backends.get_mut(hash, |backends| backends.service == *key) else {
            let backends =
                Backends { service: key.clone(), heaviest: after.capacity, endpoints: vec![endpoint] };
            snapshot.backends.insert(hash, Arc::new(backends));
            continue;
        };
        let backends = own(shared);
        backends.heaviest = backends.heaviest.max(after.capacity);
        match before.and_then(|before| place(backends, before)) {
            Some(index) => backends.endpoints[index] = endpoint,
            None => backends.endpoints.push(endpoint),
        }
    }
}

fn remove_endpoint(snapshot: &mut Snapshot, key: &NamespacedHostname, workload: &Arc<Workload>) {
    let hash = snapshot.hasher.service(key);
    let is = |backends: &Arc<Backends>| backends.service == *key;
    let Some(shared) = snapshot.backends.get_mut(hash, is) else { return };
    let backends = own(shared);
    if let Some(index) = place(backends, workload) {
        backends.endpoints.swap_remove(index);
    }
    if backends.endpoints.is_empty() {
        snapshot.backends.remove(hash, is);
    }
}

/// By the record itself: no name is compared, however many endpoints there are.
fn place(backends: &Backends, workload: &Arc<Workload>) -> Option<usize> {
    backends.endpoints.iter().position(|endpoint| Arc::ptr_eq(&endpoint.workload, workload))
}

/// A service's endpoints are copied once in a batch; that is the time to see anew who is heaviest.
fn own(shared: &mut Arc<Backends>) -> &mut Backends {
    if Arc::get_mut(shared).is_none() {
        let heaviest = shared.endpoints.iter().map(|endpoint| endpoint.workload.capacity).max();
        let mut endpoints = Vec::with_capacity(shared.endpoints.len() + 1);
        endpoints.extend_from_slice(&shared.endpoints);
        let service = shared.service.clone();
        *shared = Arc::new(Backends { service, endpoints, heaviest: heaviest.unwrap_or(0) });
    }
    Arc::get_mut(shared).expect("invariant: it was just made, and nobody has a weak reference")
}
