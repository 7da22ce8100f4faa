//! Choosing an endpoint of a service (interop.md section 8.4).

use std::sync::Arc;

use rand::RngExt;
use ztunnel_model::service::{HealthPolicy, LoadBalancerMode, LoadBalancing, Scope, Service};
use ztunnel_model::workload::HealthStatus;
use ztunnel_model::{Workload, WorkloadUid};

use crate::state::{Endpoint, Snapshot};

/// An endpoint that was chosen, and the port that its application listens on.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub workload: Arc<Workload>,
    pub port: u16,
}

/// Chooses an endpoint for a port of a service, none of `tried`. `None` when no endpoint can serve it.
pub fn choose(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    from: &Workload,
    tried: &[WorkloadUid],
) -> Option<Chosen> {
    let load_balancing = service.load_balancing.as_ref();
    let health = load_balancing.map_or(HealthPolicy::default(), |block| block.health_policy);
    let candidates = snapshot.endpoints(&service.key).iter().filter_map(|endpoint| {
        let usable = !tried.contains(&endpoint.workload.uid)
            && !endpoint.workload.addresses.is_empty()
            && endpoint.workload.network == from.network
            && (health == HealthPolicy::AllowAll || endpoint.workload.status == HealthStatus::Healthy);
        let port = target_port(service, endpoint, port)?;
        usable.then(|| Chosen { workload: endpoint.workload.clone(), port })
    });
    let ranked = best_ranked(candidates, load_balancing, from);
    weighted(ranked)
}

/// Endpoint's own map, then the service's target port (interop.md section 8.4). The service must list the port.
fn target_port(service: &Service, endpoint: &Endpoint, port: u16) -> Option<u16> {
    let listed = service.ports.iter().find(|known| known.service_port == port)?;
    endpoint
        .ports
        .iter()
        .find(|known| known.service_port == port)
        .map(|known| known.target_port)
        .or(Some(listed.target_port))
        .filter(|&target| target != 0)
}

fn best_ranked(
    candidates: impl Iterator<Item = Chosen>,
    load_balancing: Option<&LoadBalancing>,
    from: &Workload,
) -> Vec<Chosen> {
    let Some(block) = load_balancing else { return candidates.collect() };
    if matches!(block.mode, LoadBalancerMode::Standard | LoadBalancerMode::Passthrough) {
        return candidates.collect();
    }
    let mut best = Vec::new();
    let mut best_rank = 0;
    for candidate in candidates {
        let (rank, all) = rank(&block.routing_preferences, from, &candidate.workload);
        if block.mode == LoadBalancerMode::Strict && !all {
            continue;
        }
        if rank > best_rank {
            best.clear();
            best_rank = rank;
        }
        if rank == best_rank {
            best.push(candidate);
        }
    }
    best
}

/// Number of leading preferences that match, and whether all do. NETWORK in the first place is worth more than all
/// that follow: its match adds a bonus, its mismatch does not stop the count.
fn rank(preferences: &[Scope], from: &Workload, to: &Workload) -> (usize, bool) {
    let mut count = 0;
    let mut bonus = 0;
    for (index, &scope) in preferences.iter().enumerate() {
        let matches = same(scope, from, to);
        if index == 0 && scope == Scope::Network {
            if matches {
                count += 1;
                bonus = preferences.len() - 1;
            }
        } else if matches {
            count += 1;
        } else {
            break;
        }
    }
    (count + bonus, count == preferences.len())
}

fn same(scope: Scope, from: &Workload, to: &Workload) -> bool {
    match scope {
        Scope::Region => from.locality.region == to.locality.region,
        Scope::Zone => from.locality.zone == to.locality.zone,
        Scope::Subzone => from.locality.subzone == to.locality.subzone,
        Scope::Node => from.node == to.node,
        Scope::Cluster => from.cluster_id == to.cluster_id,
        Scope::Network => from.network == to.network,
    }
}

fn weighted(mut candidates: Vec<Chosen>) -> Option<Chosen> {
    let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.workload.capacity)).sum();
    if total == 0 {
        return None;
    }
    let mut ticket = rand::rng().random_range(0..total);
    let index = candidates.iter().position(|candidate| {
        let weight = u64::from(candidate.workload.capacity);
        let chosen = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        chosen
    })?;
    Some(candidates.swap_remove(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::apply::build;
    use ztunnel_model::codec::static_config::parse;

    fn snapshot(mode: &str, extra: &str) -> Snapshot {
        let text = format!(
            "workloads:
- {{uid: c, name: c, namespace: n, workloadIps: [10.0.0.9], node: n1, locality: {{region: r, zone: z}}, services: {{}}}}
- {{uid: near, name: near, namespace: n, workloadIps: [10.0.0.1], node: n1, locality: {{region: r, zone: z}}, services: {{n/s: {{80: 81}}}}}}
- {{uid: far, name: far, namespace: n, workloadIps: [10.0.0.2], node: n2, locality: {{region: r, zone: y}}, services: {{n/s: {{}}}}}}
{extra}
services:
- name: s
  namespace: n
  hostname: s
  vips: [/10.1.0.1]
  ports: {{80: 8080, 90: 0}}
  loadBalancer: {{routingPreferences: [Region, Zone], mode: {mode}, healthPolicy: OnlyHealthy}}
"
        );
        build(&parse(&text, "test.yaml").expect("the test's configuration is valid"))
    }

    fn chosen(snapshot: &Snapshot, port: u16, tried: &[WorkloadUid]) -> Option<(String, u16)> {
        let service = snapshot.services().next().expect("one service").clone();
        let from = snapshot.workload(&"c".into()).expect("the client").clone();
        choose(snapshot, &service, port, &from, tried)
            .map(|chosen| (chosen.workload.name.clone(), chosen.port))
    }

    #[test]
    fn failover_prefers_near_and_falls_back_to_far() {
        let state = snapshot("Failover", "");
        for _ in 0..20 {
            assert_eq!(chosen(&state, 80, &[]), Some(("near".into(), 81)));
        }
        assert_eq!(chosen(&state, 80, &["near".into()]), Some(("far".into(), 8080)));
        assert_eq!(chosen(&state, 80, &["near".into(), "far".into()]), None);
    }

    #[test]
    fn strict_never_leaves_the_preferences() {
        assert_eq!(chosen(&snapshot("Strict", ""), 80, &["near".into()]), None);
    }

    #[test]
    fn ports_that_nobody_serves_have_no_endpoint() {
        let state = snapshot("Standard", "");
        assert_eq!(chosen(&state, 81, &[]), None, "not a port of the service");
        assert_eq!(chosen(&state, 90, &[]), None, "no endpoint maps the named port");
    }

    #[test]
    fn unhealthy_and_weightless_endpoints_are_not_chosen() {
        let extra = "- {uid: ill, name: ill, namespace: n, workloadIps: [10.0.0.3], status: Unhealthy, services: {n/s: {}}}
- {uid: off, name: off, namespace: n, workloadIps: [10.0.0.4], capacity: 0, services: {n/s: {}}}";
        let state = snapshot("Standard", extra);
        for _ in 0..50 {
            let (name, _) = chosen(&state, 80, &[]).expect("two endpoints remain");
            assert!(name == "near" || name == "far");
        }
        assert_eq!(chosen(&state, 80, &["near".into(), "far".into()]), None);
    }

    #[test]
    fn a_leading_network_preference_outweighs_the_rest() {
        let state = snapshot("Standard", "");
        let client = state.workload(&"c".into()).expect("the client");
        let near = state.workload(&"near".into()).expect("near");
        let preferences = [Scope::Network, Scope::Region, Scope::Zone];
        assert_eq!(rank(&preferences, client, near), (5, true));
        let mut remote = Workload::clone(near);
        remote.network = "other".into();
        assert_eq!(rank(&preferences, client, &remote), (2, false));
        let far = state.workload(&"far".into()).expect("far");
        assert_eq!(rank(&preferences, client, far), (4, false));
    }
}
