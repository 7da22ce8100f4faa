//! From resources to a snapshot. Pure: the caller publishes.

use std::sync::Arc;

use ztunnel_model::codec::static_config::StaticConfig;
use ztunnel_model::policy::Scope;
use ztunnel_model::{NetworkAddress, Service, Workload};

use super::snapshot::{Endpoint, Snapshot, indexed_by_address};

/// Builds the whole view of a configuration.
pub fn build(config: &StaticConfig) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for workload in &config.workloads {
        insert_workload(&mut snapshot, Arc::new(workload.clone()));
    }
    for service in &config.services {
        insert_service(&mut snapshot, Arc::new(service.clone()));
    }
    for policy in &config.policies {
        let policy = Arc::new(policy.clone());
        snapshot.policies.insert(policy.key.clone(), policy.clone());
        match policy.scope {
            Scope::Global => snapshot.global_policies.push(policy),
            Scope::Namespace => {
                snapshot.namespace_policies.entry(policy.key.namespace.clone()).or_default().push(policy);
            }
            Scope::WorkloadSelector => {}
        }
    }
    snapshot
}

fn insert_workload(snapshot: &mut Snapshot, workload: Arc<Workload>) {
    if indexed_by_address(&workload) {
        for &ip in &workload.addresses {
            let address = NetworkAddress::new(workload.network.clone(), ip);
            snapshot.workloads_by_address.entry(address).or_default().push(workload.clone());
        }
    }
    let name = (workload.namespace.clone(), workload.name.clone());
    snapshot.workloads_by_name.entry(name).or_default().push(workload.clone());
    for (service, ports) in &workload.services {
        let endpoint = Endpoint { workload: workload.clone(), ports: ports.clone() };
        snapshot.endpoints.entry(service.clone()).or_default().push(endpoint);
    }
    snapshot.workloads.insert(workload.uid.clone(), workload);
}

fn insert_service(snapshot: &mut Snapshot, service: Arc<Service>) {
    for vip in &service.vips {
        if vip.is_exact() {
            let address = NetworkAddress::new(vip.network.clone(), vip.prefix.addr());
            snapshot.exact_vips.entry(address).or_default().push(service.clone());
        } else {
            snapshot.prefix_vips.insert(vip.network.clone(), vip.prefix, service.clone());
        }
    }
    snapshot.services.insert(service.key.clone(), service);
}
