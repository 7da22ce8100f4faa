//! Services between written form and model.

use std::net::IpAddr;

use ipnet::IpNet;

use super::document::{BalancerText, GatewayText, ServiceText, WeightedText};
use super::workload::{choice, gateway, ports_of, word};
use crate::codec::fields::canonical_prefix;
use crate::codec::located::{Mistake, Place};
use crate::service::{
    HealthPolicy, IpFamilies, LoadBalancerMode, LoadBalancing, NamespacedHostname, Scope, Service, Vip,
    Visibility, WeightedWaypoint,
};

const SCOPES: [(&str, Scope); 6] = [
    ("Region", Scope::Region),
    ("Zone", Scope::Zone),
    ("Subzone", Scope::Subzone),
    ("Node", Scope::Node),
    ("Cluster", Scope::Cluster),
    ("Network", Scope::Network),
];
const MODES: [(&str, LoadBalancerMode); 4] = [
    ("Standard", LoadBalancerMode::Standard),
    ("Strict", LoadBalancerMode::Strict),
    ("Failover", LoadBalancerMode::Failover),
    ("Passthrough", LoadBalancerMode::Passthrough),
];
const HEALTH: [(&str, HealthPolicy); 2] =
    [("OnlyHealthy", HealthPolicy::OnlyHealthy), ("AllowAll", HealthPolicy::AllowAll)];
const FAMILIES: [(&str, IpFamilies); 3] =
    [("IPv4", IpFamilies::Ipv4Only), ("IPv6", IpFamilies::Ipv6Only), ("Dual", IpFamilies::Dual)];
const VISIBILITIES: [(&str, Visibility); 2] =
    [("Public", Visibility::Public), ("Namespace", Visibility::Namespace)];

pub(super) fn read(place: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Option<Service> {
    let text: ServiceText = place.decode(mistakes)?;
    let before = mistakes.len();
    let key = format!("{}/{}", text.namespace, text.hostname)
        .parse::<NamespacedHostname>()
        .map_err(|error| mistakes.push(place.mistake(error)))
        .ok();
    let vips = vips(&text.vips, &place.key("vips"), mistakes);
    let weighted = text.weighted_waypoints.iter().enumerate().filter_map(|(index, waypoint)| {
        let place = place.key("weightedWaypoints").index(index);
        let destination = gateway(Some(&waypoint.destination), &place, mistakes)?;
        Some(WeightedWaypoint { destination, weight: waypoint.weight })
    });
    let weighted_waypoints = weighted.collect();
    // All are read before any is missed: the first mistake must not hide the next.
    let waypoint = gateway(text.waypoint.as_ref(), &place.key("waypoint"), mistakes);
    let load_balancing =
        text.load_balancer.as_ref().and_then(|text| balancing(text, &place.key("loadBalancer"), mistakes));
    let ip_families = match &text.ip_families {
        None => Some(IpFamilies::Automatic),
        Some(text) => choice(&FAMILIES, text, &place.key("ipFamilies"), mistakes),
    };
    let visibility = choice(&VISIBILITIES, &text.visibility, &place.key("visibility"), mistakes);
    let service = Service {
        key: key?,
        vips,
        ports: ports_of(&text.ports),
        subject_alt_names: text.subject_alt_names,
        waypoint,
        weighted_waypoints,
        load_balancing,
        ip_families: ip_families?,
        canonical: text.canonical,
        visibility: visibility?,
        name: text.name,
    };
    (mistakes.len() == before).then_some(service)
}

fn balancing(text: &BalancerText, place: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Option<LoadBalancing> {
    let list = place.key("routingPreferences");
    let scopes: Vec<Option<Scope>> = text
        .routing_preferences
        .iter()
        .enumerate()
        .map(|(index, scope)| choice(&SCOPES, scope, &list.index(index), mistakes))
        .collect();
    let mode = choice(&MODES, &text.mode, &place.key("mode"), mistakes);
    let health_policy = choice(&HEALTH, &text.health_policy, &place.key("healthPolicy"), mistakes);
    Some(LoadBalancing {
        routing_preferences: scopes.into_iter().collect::<Option<_>>()?,
        mode: mode?,
        health_policy: health_policy?,
    })
}

fn vips(texts: &[String], place: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Vec<Vip> {
    let mut vips = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match vip(text) {
            Some(vip) => vips.push(vip),
            None => {
                let reason =
                    format!("\"{text}\" is not a virtual address (expected NETWORK/IP or NETWORK/IP/LENGTH)");
                mistakes.push(place.index(index).mistake(reason));
            }
        }
    }
    vips
}

fn vip(text: &str) -> Option<Vip> {
    let (network, address) = text.split_once('/')?;
    let prefix = match address.parse::<IpAddr>() {
        Ok(ip) => IpNet::from(ip.to_canonical()),
        Err(_) => canonical_prefix(address.parse().ok()?).trunc(),
    };
    Some(Vip { network: network.into(), prefix })
}

impl From<&Service> for ServiceText {
    fn from(service: &Service) -> Self {
        Self {
            name: service.name.clone(),
            namespace: service.key.namespace.clone(),
            hostname: service.key.hostname.clone(),
            vips: service.vips.iter().map(vip_text).collect(),
            ports: service.ports.iter().map(|port| (port.service_port, port.target_port)).collect(),
            subject_alt_names: service.subject_alt_names.clone(),
            waypoint: service.waypoint.as_ref().map(GatewayText::from),
            weighted_waypoints: service
                .weighted_waypoints
                .iter()
                .map(|waypoint| WeightedText {
                    destination: (&waypoint.destination).into(),
                    weight: waypoint.weight,
                })
                .collect(),
            load_balancer: service.load_balancing.as_ref().map(|block| BalancerText {
                routing_preferences: block
                    .routing_preferences
                    .iter()
                    .map(|&scope| word(&SCOPES, scope))
                    .collect(),
                mode: word(&MODES, block.mode),
                health_policy: word(&HEALTH, block.health_policy),
            }),
            ip_families: (service.ip_families != IpFamilies::Automatic)
                .then(|| word(&FAMILIES, service.ip_families)),
            canonical: service.canonical,
            visibility: word(&VISIBILITIES, service.visibility),
        }
    }
}

pub(super) fn vip_text(vip: &Vip) -> String {
    if vip.is_exact() {
        format!("{}/{}", vip.network, vip.prefix.addr())
    } else {
        format!("{}/{}", vip.network, vip.prefix)
    }
}
