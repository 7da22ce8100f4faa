//! Kubernetes services as services of the mesh.

use ipnet::IpNet;
use ztunnel_model::service::{
    HealthPolicy, LoadBalancerMode, LoadBalancing, Scope, ServicePort, Vip, Visibility,
};
use ztunnel_model::{NamespacedHostname, Network, Service};

use super::Config;
use crate::object::{self, Target, TrafficDistribution};

const CLUSTER_DOMAIN: &str = "cluster.local";
const SAME_ZONE: [Scope; 3] = [Scope::Network, Scope::Region, Scope::Zone];
const SAME_NODE: [Scope; 5] = [Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node];

pub(super) fn key(service: &object::Name) -> NamespacedHostname {
    NamespacedHostname {
        namespace: service.namespace.to_string(),
        hostname: format!("{}.{}.svc.{CLUSTER_DOMAIN}", service.name, service.namespace),
    }
}

/// `None` for a service that is only another name.
pub(super) fn convert(config: &Config, service: &object::Service) -> Option<Service> {
    if service.external_name {
        return None;
    }
    let network = Network::from(config.network.as_str());
    let vip = |address: &std::net::IpAddr| Vip {
        network: network.clone(),
        prefix: IpNet::from(address.to_canonical()),
    };
    let port = |port: &object::Port| ServicePort {
        service_port: port.port,
        target_port: match port.target {
            Target::Number(number) => number,
            Target::Name(_) => 0,
        },
    };
    Some(Service {
        name: service.name.name.to_string(),
        key: key(&service.name),
        vips: service.addresses.iter().map(vip).collect(),
        ports: service.ports.iter().map(port).collect(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: load_balancing(service),
        ip_families: service.ip_families,
        canonical: true,
        visibility: Visibility::Public,
    })
}

/// The names under which somebody may ask for a service by address.
pub(super) fn aliases(service: &Service) -> Vec<String> {
    service.vips.iter().map(|vip| format!("{}/{}", vip.network, vip.prefix.addr())).collect()
}

fn load_balancing(service: &object::Service) -> Option<LoadBalancing> {
    let health_policy =
        if service.publish_not_ready { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    let (mode, preferences): (_, &[Scope]) = match service.traffic_distribution {
        _ if service.local_only => (LoadBalancerMode::Strict, &[Scope::Node]),
        Some(TrafficDistribution::SameZone) => (LoadBalancerMode::Failover, &SAME_ZONE),
        Some(TrafficDistribution::SameNode) => (LoadBalancerMode::Failover, &SAME_NODE),
        None if service.publish_not_ready => (LoadBalancerMode::Standard, &[]),
        None => return None,
    };
    Some(LoadBalancing { routing_preferences: preferences.to_vec(), mode, health_policy })
}
