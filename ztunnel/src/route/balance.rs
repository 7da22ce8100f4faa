//! Choosing an endpoint of a service (interop.md section 8.4).

use std::sync::Arc;

use rand::RngExt;
use ztunnel_model::service::{HealthPolicy, LoadBalancerMode, Scope, Service, ServicePort};
use ztunnel_model::workload::HealthStatus;
use ztunnel_model::{Workload, WorkloadUid};

use crate::state::{Backends, Endpoint, Snapshot};

/// An endpoint that was chosen, and the port that its application listens on.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub workload: Arc<Workload>,
    pub port: u16,
}

/// Draws before all endpoints are looked at. One is enough where all are alike and can be used.
const DRAWS: usize = 16;

/// Chooses an endpoint for a port of a service, none of `tried`. `None` when no endpoint can serve it.
pub fn choose(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    from: &Workload,
    tried: &[WorkloadUid],
) -> Option<Chosen> {
    let backends = snapshot.backends(&service.key)?;
    let listed = service.ports.iter().find(|known| known.service_port == port)?;
    let load_balancing = service.load_balancing.as_ref();
    let health = load_balancing.map_or(HealthPolicy::default(), |block| block.health_policy);
    let usable = |endpoint: &Endpoint| {
        let workload = &endpoint.workload;
        let usable = !tried.contains(&workload.uid)
            && !workload.addresses.is_empty()
            && workload.network == from.network
            && (health == HealthPolicy::AllowAll || workload.status == HealthStatus::Healthy);
        target_port(listed, endpoint).filter(|_| usable)
    };
    let preferring = load_balancing
        .filter(|block| matches!(block.mode, LoadBalancerMode::Failover | LoadBalancerMode::Strict));
    match preferring {
        None => {
            drawn(backends, usable).or_else(|| scanned(backends, |endpoint| Some((usable(endpoint)?, 0))))
        }
        Some(block) => scanned(backends, |endpoint| {
            let port = usable(endpoint)?;
            let (rank, all) = rank(&block.routing_preferences, from, &endpoint.workload);
            (all || block.mode != LoadBalancerMode::Strict).then_some((port, rank))
        }),
    }
}

/// Endpoint's own map, then the service's target port (interop.md section 8.4).
fn target_port(listed: &ServicePort, endpoint: &Endpoint) -> Option<u16> {
    let own = endpoint.ports.iter().find(|known| known.service_port == listed.service_port);
    Some(own.unwrap_or(listed).target_port).filter(|&target| target != 0)
}

/// Draws endpoints until one can be used, each as often as its capacity says; so no other need be looked at.
fn drawn(backends: &Backends, usable: impl Fn(&Endpoint) -> Option<u16>) -> Option<Chosen> {
    let (endpoints, heaviest) = (backends.endpoints(), backends.heaviest());
    if endpoints.is_empty() || heaviest == 0 {
        return None;
    }
    let mut rng = rand::rng();
    (0..DRAWS).find_map(|_| {
        let endpoint = &endpoints[rng.random_range(0..endpoints.len())];
        let port = usable(endpoint)?;
        let kept = rng.random_range(0..heaviest) < endpoint.workload.capacity;
        kept.then(|| Chosen { workload: endpoint.workload.clone(), port })
    })
}

/// Looks at all endpoints, twice: for the best rank and what those who have it weigh, then for the one that is chosen.
fn scanned(backends: &Backends, ranked: impl Fn(&Endpoint) -> Option<(u16, usize)>) -> Option<Chosen> {
    let weight = |endpoint: &Endpoint| u64::from(endpoint.workload.capacity);
    let (mut best, mut total) = (0, 0);
    for endpoint in backends.endpoints() {
        let Some((_, rank)) = ranked(endpoint) else { continue };
        if rank > best {
            (best, total) = (rank, 0);
        }
        if rank == best {
            total += weight(endpoint);
        }
    }
    let mut ticket = if total > 0 { rand::rng().random_range(0..total) } else { return None };
    backends.endpoints().iter().find_map(|endpoint| {
        let (port, _) = ranked(endpoint).filter(|(_, rank)| *rank == best)?;
        if ticket < weight(endpoint) {
            return Some(Chosen { workload: endpoint.workload.clone(), port });
        }
        ticket -= weight(endpoint);
        None
    })
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
            .map(|chosen| (chosen.workload.name.to_string(), chosen.port))
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
    fn each_endpoint_is_chosen_as_often_as_its_capacity_says() {
        let light = "- {uid: heavy, name: heavy, namespace: n, workloadIps: [10.0.0.3], capacity: 2, services: {n/s: {}}}";
        // The many that cannot be used make most choices look at all.
        let ill = (0..200).map(|index| {
            format!("- {{uid: i{index}, name: i{index}, namespace: n, workloadIps: [10.0.1.{index}], status: Unhealthy, services: {{n/s: {{}}}}}}\n")
        });
        for extra in [light.to_owned(), ill.collect::<String>() + light] {
            let state = snapshot("Standard", &extra);
            let mut counts = std::collections::BTreeMap::new();
            for _ in 0..8_000 {
                *counts.entry(chosen(&state, 80, &[]).expect("three can serve").0).or_insert(0) += 1;
            }
            let [far, heavy, near] = ["far", "heavy", "near"].map(|name| counts[name]);
            assert_eq!(counts.len(), 3);
            // Six standard deviations of 8,000 draws are 240.
            assert!((far - 2_000_i32).abs() < 240 && (near - 2_000_i32).abs() < 240, "{counts:?}");
            assert!((heavy - 4_000_i32).abs() < 280, "{counts:?}");
        }
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
