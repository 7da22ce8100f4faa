//! Workloads between written form and model.

use std::net::IpAddr;
use std::sync::Arc;

use super::document::{GatewayText, LocalityText, TunnelText, WorkloadText};
use crate::address::NetworkAddress;
use crate::codec::located::{Mistake, Place};
use crate::identity::Identity;
use crate::service::ServicePort;
use crate::service::{GatewayAddress, GatewayDestination};
use crate::text::Text;
use crate::workload::{
    ApplicationProtocol, ApplicationTunnel, HealthStatus, Locality, NetworkMode, TunnelProtocol, Workload,
    WorkloadType,
};

const PROTOCOLS: [(&str, TunnelProtocol); 2] =
    [("TCP", TunnelProtocol::Tcp), ("HBONE", TunnelProtocol::Hbone)];
const MODES: [(&str, NetworkMode); 2] =
    [("Standard", NetworkMode::Standard), ("HostNetwork", NetworkMode::HostNetwork)];
const TYPES: [(&str, WorkloadType); 4] = [
    ("deployment", WorkloadType::Deployment),
    ("cronjob", WorkloadType::CronJob),
    ("pod", WorkloadType::Pod),
    ("job", WorkloadType::Job),
];
const STATUSES: [(&str, HealthStatus); 2] =
    [("Healthy", HealthStatus::Healthy), ("Unhealthy", HealthStatus::Unhealthy)];
const TUNNELS: [(&str, ApplicationProtocol); 2] =
    [("NONE", ApplicationProtocol::None), ("PROXY", ApplicationProtocol::Proxy)];

pub(super) fn read(place: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Option<Workload> {
    let text: WorkloadText = place.decode(mistakes)?;
    let before = mistakes.len();
    let identity = Identity::new(&text.trust_domain, &text.namespace, &text.service_account)
        .map_err(|error| mistakes.push(place.mistake(error)))
        .ok();
    if text.uid.is_empty() {
        mistakes.push(place.key("uid").mistake("a uid must not be empty"));
    }
    let addresses = addresses(&text.workload_ips, &place.key("workloadIps"), mistakes);
    let mut services = std::collections::BTreeMap::new();
    for (key, ports) in &text.services {
        match key.parse() {
            Ok(parsed) => drop(services.insert(parsed, ports_of(ports).into())),
            Err(error) => mistakes.push(place.key("services").key(key).mistake(error)),
        }
    }
    for (index, name) in text.authorization_policies.iter().enumerate() {
        if !name.split_once('/').is_some_and(|(namespace, name)| !namespace.is_empty() && !name.is_empty()) {
            let place = place.key("authorizationPolicies").index(index);
            mistakes
                .push(place.mistake(format!("\"{name}\" is not a policy name (expected NAMESPACE/NAME)")));
        }
    }
    // All are read before any is missed: the first mistake must not hide the next.
    let protocol = choice(&PROTOCOLS, &text.protocol, &place.key("protocol"), mistakes);
    let network_mode = choice(&MODES, &text.network_mode, &place.key("networkMode"), mistakes);
    let workload_type = choice(&TYPES, &text.workload_type, &place.key("workloadType"), mistakes);
    let status = choice(&STATUSES, &text.status, &place.key("status"), mistakes);
    let application_tunnel = text.application_tunnel.as_ref().and_then(|tunnel| {
        let place = place.key("applicationTunnel").key("protocol");
        let protocol = choice(&TUNNELS, &tunnel.protocol, &place, mistakes)?;
        Some(ApplicationTunnel { protocol, port: tunnel.port })
    });
    let waypoint = gateway(text.waypoint.as_ref(), &place.key("waypoint"), mistakes);
    let network_gateway = gateway(text.network_gateway.as_ref(), &place.key("networkGateway"), mistakes);
    let workload = Workload {
        protocol: protocol?,
        network_mode: network_mode?,
        workload_type: workload_type?,
        status: status?,
        application_tunnel,
        waypoint: waypoint.map(Arc::new),
        network_gateway: network_gateway.map(Arc::new),
        identity: identity?,
        uid: text.uid.as_str().into(),
        name: text.name.into(),
        namespace: text.namespace.into(),
        addresses,
        hostname: text.hostname.into(),
        network: text.network.as_str().into(),
        node: text.node.into(),
        workload_name: text.workload_name.into(),
        canonical_name: text.canonical_name.into(),
        canonical_revision: text.canonical_revision.into(),
        cluster_id: text.cluster_id.into(),
        locality: Arc::new(Locality {
            region: text.locality.region.into(),
            zone: text.locality.zone.into(),
            subzone: text.locality.subzone.into(),
        }),
        capacity: text.capacity,
        native_tunnel: text.native_tunnel,
        authorization_policies: text.authorization_policies.into_iter().map(Text::from).collect(),
        services: Arc::new(services),
    };
    (mistakes.len() == before).then_some(workload)
}

fn addresses(texts: &[String], place: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse::<IpAddr>() {
            Ok(ip) => addresses.push(ip.to_canonical()),
            Err(_) => mistakes.push(place.index(index).mistake(format!("\"{text}\" is not an IP address"))),
        }
    }
    addresses
}

pub(super) fn ports_of(ports: &std::collections::BTreeMap<u16, u16>) -> Vec<ServicePort> {
    ports.iter().map(|(&service_port, &target_port)| ServicePort { service_port, target_port }).collect()
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    words: &[(&str, T)],
    text: &str,
    place: &Place<'_>,
    mistakes: &mut Vec<Mistake>,
) -> Option<T> {
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, value)| *value);
    if found.is_none() {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        mistakes.push(place.mistake(format!("\"{text}\" is unknown (expected one of {})", words.join(", "))));
    }
    found
}

pub(super) fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> String {
    words.iter().find(|(_, known)| *known == value).map_or("", |(word, _)| word).to_owned()
}

pub(super) fn gateway(
    text: Option<&GatewayText>,
    place: &Place<'_>,
    mistakes: &mut Vec<Mistake>,
) -> Option<GatewayAddress> {
    let text = text?;
    match destination(&text.destination) {
        Some(destination) => Some(GatewayAddress { destination, hbone_mtls_port: text.hbone_mtls_port }),
        None => {
            let reason =
                format!("\"{}\" is no gateway (expected NETWORK/IP or NAMESPACE/HOSTNAME)", text.destination);
            mistakes.push(place.key("destination").mistake(reason));
            None
        }
    }
}

fn destination(text: &str) -> Option<GatewayDestination> {
    let (first, last) = text.split_once('/')?;
    if let Ok(ip) = last.parse::<IpAddr>() {
        return Some(GatewayDestination::Address(NetworkAddress::new(first.into(), ip)));
    }
    text.parse().ok().map(GatewayDestination::Hostname)
}

impl From<&GatewayAddress> for GatewayText {
    fn from(gateway: &GatewayAddress) -> Self {
        let destination = match &gateway.destination {
            GatewayDestination::Hostname(name) => name.to_string(),
            GatewayDestination::Address(address) => address.to_string(),
        };
        Self { destination, hbone_mtls_port: gateway.hbone_mtls_port }
    }
}

impl From<&Workload> for WorkloadText {
    fn from(workload: &Workload) -> Self {
        Self {
            uid: workload.uid.to_string(),
            name: workload.name.to_string(),
            namespace: workload.namespace.to_string(),
            service_account: workload.identity.service_account().to_owned(),
            trust_domain: workload.identity.trust_domain().to_owned(),
            workload_ips: workload.addresses.iter().map(ToString::to_string).collect(),
            hostname: workload.hostname.to_string(),
            protocol: word(&PROTOCOLS, workload.protocol),
            network_mode: word(&MODES, workload.network_mode),
            node: workload.node.to_string(),
            network: workload.network.to_string(),
            workload_type: word(&TYPES, workload.workload_type),
            workload_name: workload.workload_name.to_string(),
            canonical_name: workload.canonical_name.to_string(),
            canonical_revision: workload.canonical_revision.to_string(),
            cluster_id: workload.cluster_id.to_string(),
            locality: LocalityText {
                region: workload.locality.region.to_string(),
                zone: workload.locality.zone.to_string(),
                subzone: workload.locality.subzone.to_string(),
            },
            status: word(&STATUSES, workload.status),
            capacity: workload.capacity,
            native_tunnel: workload.native_tunnel,
            application_tunnel: workload
                .application_tunnel
                .as_ref()
                .map(|tunnel| TunnelText { protocol: word(&TUNNELS, tunnel.protocol), port: tunnel.port }),
            waypoint: workload.waypoint.as_deref().map(GatewayText::from),
            network_gateway: workload.network_gateway.as_deref().map(GatewayText::from),
            authorization_policies: workload.authorization_policies.iter().map(Text::to_string).collect(),
            services: workload
                .services
                .iter()
                .map(|(key, ports)| {
                    let ports = ports.iter().map(|port| (port.service_port, port.target_port)).collect();
                    (key.to_string(), ports)
                })
                .collect(),
        }
    }
}
