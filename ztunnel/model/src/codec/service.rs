//! `istio.workload.Service` and the model's `Service`.

use super::proto::workload as proto;
use super::proto::workload::load_balancing as balancing;
use super::{Error, fields};
use crate::address::Network;
use crate::service::{
    HealthPolicy, IpFamilies, LoadBalancerMode, LoadBalancing, Scope, Service, Vip, Visibility,
    WeightedWaypoint,
};

pub fn from_proto(message: proto::Service) -> Result<Service, Error> {
    let key = fields::service_key(&message.namespace, &message.hostname)
        .map_err(|error| error.within("hostname"))?;
    Ok(Service {
        name: message.name,
        key,
        vips: fields::list("addresses", message.addresses, vip)?,
        ports: fields::list("ports", message.ports, fields::service_port)?,
        subject_alt_names: message.subject_alt_names,
        waypoint: message
            .waypoint
            .map(fields::gateway)
            .transpose()
            .map_err(|error| error.within("waypoint"))?,
        weighted_waypoints: fields::list(
            "weighted_waypoints",
            message.weighted_waypoints,
            weighted_waypoint,
        )?,
        load_balancing: message
            .load_balancing
            .map(load_balancing)
            .transpose()
            .map_err(|error| error.within("load_balancing"))?,
        ip_families: fields::enumeration("ip_families", message.ip_families, |value| match value {
            proto::IpFamilies::Automatic => Some(IpFamilies::Automatic),
            proto::IpFamilies::Ipv4Only => Some(IpFamilies::Ipv4Only),
            proto::IpFamilies::Ipv6Only => Some(IpFamilies::Ipv6Only),
            proto::IpFamilies::Dual => Some(IpFamilies::Dual),
        })?,
        canonical: message.canonical,
        visibility: fields::enumeration("visibility", message.visibility, |value| match value {
            proto::ServiceVisibility::Public => Some(Visibility::Public),
            proto::ServiceVisibility::Namespace => Some(Visibility::Namespace),
        })?,
    })
}

pub fn to_proto(service: &Service) -> proto::Service {
    proto::Service {
        name: service.name.clone(),
        namespace: service.key.namespace.clone(),
        hostname: service.key.hostname.clone(),
        addresses: service.vips.iter().map(vip_proto).collect(),
        ports: service.ports.iter().map(fields::service_port_proto).collect(),
        subject_alt_names: service.subject_alt_names.clone(),
        waypoint: service.waypoint.as_ref().map(fields::gateway_proto),
        load_balancing: service.load_balancing.as_ref().map(load_balancing_proto),
        ip_families: match service.ip_families {
            IpFamilies::Automatic => proto::IpFamilies::Automatic,
            IpFamilies::Ipv4Only => proto::IpFamilies::Ipv4Only,
            IpFamilies::Ipv6Only => proto::IpFamilies::Ipv6Only,
            IpFamilies::Dual => proto::IpFamilies::Dual,
        }
        .into(),
        extensions: Vec::new(),
        canonical: service.canonical,
        ingress_use_waypoint: false,
        weighted_waypoints: service.weighted_waypoints.iter().map(weighted_waypoint_proto).collect(),
        visibility: match service.visibility {
            Visibility::Public => proto::ServiceVisibility::Public,
            Visibility::Namespace => proto::ServiceVisibility::Namespace,
        }
        .into(),
    }
}

fn vip(message: proto::NetworkAddress) -> Result<Vip, Error> {
    let full = u32::try_from(message.address.len().saturating_mul(8)).unwrap_or(u32::MAX);
    let prefix = fields::prefix(&message.address, message.length.unwrap_or(full))?;
    Ok(Vip { network: Network::from(message.network.as_str()), prefix: prefix.trunc() })
}

fn vip_proto(vip: &Vip) -> proto::NetworkAddress {
    proto::NetworkAddress {
        network: vip.network.to_string(),
        address: fields::ip_bytes(vip.prefix.addr()),
        length: (!vip.is_exact()).then(|| vip.prefix.prefix_len().into()),
    }
}

fn weighted_waypoint(message: proto::WeightedWaypoint) -> Result<WeightedWaypoint, Error> {
    let destination = message
        .destination
        .ok_or_else(|| Error::new("destination", "absent", "a weighted waypoint has a destination"))?;
    let destination = fields::gateway(destination).map_err(|error| error.within("destination"))?;
    Ok(WeightedWaypoint { destination, weight: message.weight })
}

fn weighted_waypoint_proto(waypoint: &WeightedWaypoint) -> proto::WeightedWaypoint {
    proto::WeightedWaypoint {
        destination: Some(fields::gateway_proto(&waypoint.destination)),
        weight: waypoint.weight,
    }
}

fn load_balancing(message: proto::LoadBalancing) -> Result<LoadBalancing, Error> {
    Ok(LoadBalancing {
        routing_preferences: fields::list("routing_preference", message.routing_preference, |number| {
            fields::enumeration("", number, scope)
        })?,
        mode: fields::enumeration("mode", message.mode, |value| match value {
            balancing::Mode::UnspecifiedMode => Some(LoadBalancerMode::Standard),
            balancing::Mode::Strict => Some(LoadBalancerMode::Strict),
            balancing::Mode::Failover => Some(LoadBalancerMode::Failover),
            balancing::Mode::Passthrough => Some(LoadBalancerMode::Passthrough),
        })?,
        health_policy: fields::enumeration("health_policy", message.health_policy, |value| match value {
            balancing::HealthPolicy::OnlyHealthy => Some(HealthPolicy::OnlyHealthy),
            balancing::HealthPolicy::AllowAll => Some(HealthPolicy::AllowAll),
        })?,
    })
}

fn load_balancing_proto(load_balancing: &LoadBalancing) -> proto::LoadBalancing {
    proto::LoadBalancing {
        routing_preference: load_balancing
            .routing_preferences
            .iter()
            .map(|s| scope_proto(*s).into())
            .collect(),
        mode: match load_balancing.mode {
            LoadBalancerMode::Standard => balancing::Mode::UnspecifiedMode,
            LoadBalancerMode::Strict => balancing::Mode::Strict,
            LoadBalancerMode::Failover => balancing::Mode::Failover,
            LoadBalancerMode::Passthrough => balancing::Mode::Passthrough,
        }
        .into(),
        health_policy: match load_balancing.health_policy {
            HealthPolicy::OnlyHealthy => balancing::HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll => balancing::HealthPolicy::AllowAll,
        }
        .into(),
    }
}

fn scope(value: balancing::Scope) -> Option<Scope> {
    match value {
        balancing::Scope::UnspecifiedScope => None,
        balancing::Scope::Region => Some(Scope::Region),
        balancing::Scope::Zone => Some(Scope::Zone),
        balancing::Scope::Subzone => Some(Scope::Subzone),
        balancing::Scope::Node => Some(Scope::Node),
        balancing::Scope::Cluster => Some(Scope::Cluster),
        balancing::Scope::Network => Some(Scope::Network),
    }
}

fn scope_proto(scope: Scope) -> balancing::Scope {
    match scope {
        Scope::Region => balancing::Scope::Region,
        Scope::Zone => balancing::Scope::Zone,
        Scope::Subzone => balancing::Scope::Subzone,
        Scope::Node => balancing::Scope::Node,
        Scope::Cluster => balancing::Scope::Cluster,
        Scope::Network => balancing::Scope::Network,
    }
}
