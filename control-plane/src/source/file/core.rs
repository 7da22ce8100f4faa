//! Objects of Kubernetes itself from their manifests. Fields that are not read here are passed over: Kubernetes has many.

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use ztunnel_model::codec::located::{Mistake, Place};
use ztunnel_model::service::IpFamilies;
use ztunnel_model::workload::Locality;

use super::text::{
    self, AddressType, Container, EndpointAddress, Family, InternalTrafficPolicy, Meta, Phase, Protocol,
    ServiceType,
};
use crate::object::{
    Endpoint, EndpointSlice, Name, Namespace, Node, Owner, Pod, Port, Service, Target, TrafficDistribution,
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
const REDIRECTION: &str = "ambient.istio.io/redirection";

pub(super) fn namespace(name: Name, meta: &Meta) -> Namespace {
    Namespace { name: name.name, labels: meta.labels.clone().unwrap_or_default() }
}

pub(super) fn node(name: Name, meta: &Meta) -> Node {
    let label =
        |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key)).cloned().unwrap_or_default();
    let locality = Locality {
        region: label("topology.kubernetes.io/region").into(),
        zone: label("topology.kubernetes.io/zone").into(),
        subzone: label("topology.istio.io/subzone").into(),
    };
    Node { name: name.name, locality }
}

pub(super) fn pod(root: &Place<'_>, name: Name, meta: &Meta, mistakes: &mut Vec<Mistake>) -> Option<Pod> {
    let spec: Option<text::PodSpec> = part(root, "spec", mistakes);
    let status: Option<text::PodStatus> = part(root, "status", mistakes);
    let (spec, status) = (spec?, status?);
    let mut addresses: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|one| one.ip.0).collect();
    if addresses.is_empty() {
        addresses.extend(status.pod_ip.and_then(|ip| ip.0));
    }
    let ready = status.conditions.iter().flatten().any(|one| one.r#type == "Ready" && one.status == "True");
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    Some(Pod {
        name,
        labels: meta.labels.clone().unwrap_or_default(),
        node: spec.node_name.unwrap_or_default().as_str().into(),
        service_account: spec.service_account_name.unwrap_or_default(),
        host_network: spec.host_network.unwrap_or(false),
        redirected: meta
            .annotations
            .as_ref()
            .is_some_and(|all| all.get(REDIRECTION).is_some_and(|value| value == "enabled")),
        sidecar: meta.annotations.as_ref().is_some_and(|all| all.contains_key(SIDECAR_STATUS)),
        addresses,
        finished: matches!(status.phase, Some(Phase::Succeeded | Phase::Failed)),
        ready: ready && meta.deletion_timestamp.is_none(),
        owner: owner.map(|owner| Owner { kind: owner.kind.clone(), name: owner.name.clone() }),
        ports: spec.containers.iter().flatten().chain(sidecars).flat_map(named_ports).collect(),
    })
}

pub(super) fn service(
    root: &Place<'_>,
    name: Name,
    meta: &Meta,
    mistakes: &mut Vec<Mistake>,
) -> Option<Service> {
    let spec: Option<text::ServiceSpec> = part(root, "spec", mistakes);
    let status: Option<text::ServiceStatus> = part(root, "status", mistakes);
    let (spec, status) = (spec?, status?);
    let place = root.key("spec");
    let ingress = status.load_balancer.iter().flat_map(|one| one.ingress.iter().flatten());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ip in match &spec.cluster_ips {
        Some(all) if !all.is_empty() => all.as_slice(),
        _ => spec.cluster_ip.as_slice(),
    }
    .iter()
    .chain(ingress.filter_map(|one| one.ip.as_ref()))
    .filter_map(|ip| ip.0)
    {
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    let ports = spec.ports.iter().flatten().enumerate();
    let ports =
        ports.filter_map(|(index, port)| service_port(port, &place.key("ports").index(index), mistakes));
    let ports = ports.collect();
    Some(Service {
        name,
        external_name: spec.r#type == Some(ServiceType::ExternalName),
        addresses,
        ports,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        traffic_distribution: traffic_distribution(&spec, meta),
        local_only: spec.internal_traffic_policy == Some(InternalTrafficPolicy::Local),
        ip_families: match spec.ip_families.as_deref() {
            Some([Family::IPv4]) => IpFamilies::Ipv4Only,
            Some([Family::IPv6]) => IpFamilies::Ipv6Only,
            Some([_, _, ..]) => IpFamilies::Dual,
            Some([]) | None => IpFamilies::Automatic,
        },
        selector: spec.selector.unwrap_or_default(),
    })
}

pub(super) fn slice(
    root: &Place<'_>,
    name: Name,
    meta: &Meta,
    mistakes: &mut Vec<Mistake>,
) -> Option<EndpointSlice> {
    let text: text::EndpointSlice = root.decode_known(mistakes)?;
    let mut endpoints = Vec::new();
    // Names instead of addresses are not supported; the slice stands for nothing.
    let written = text.endpoints.iter().flatten().filter(|_| text.address_type != AddressType::Fqdn);
    for (index, endpoint) in written.enumerate() {
        let place = root.key("endpoints").index(index);
        let mut addresses = Vec::new();
        for (index, address) in endpoint.addresses.iter().enumerate() {
            match address {
                EndpointAddress::Ip(ip) => addresses.push(*ip),
                EndpointAddress::Other(text) => {
                    let place = place.key("addresses").index(index);
                    mistakes.push(place.mistake(format!("{text:?} is not an IP address")));
                }
            }
        }
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
        endpoints.push(Endpoint {
            addresses,
            ready: endpoint.conditions.as_ref().and_then(|all| all.ready).unwrap_or(true),
            pod: pod.map(|pod| {
                let namespace = pod.namespace.as_deref().unwrap_or(&name.namespace);
                Name::new(namespace, pod.name.as_str())
            }),
        });
    }
    let ports = text.ports.iter().flatten().filter(|port| is_tcp(port.protocol));
    let ports = ports.filter_map(|port| Some((port.name.clone().unwrap_or_default(), port.port?)));
    let service = meta.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
    Some(EndpointSlice {
        name,
        service: service.map(|service| service.as_str().into()),
        endpoints,
        ports: ports.collect(),
    })
}

/// A part of a manifest; one that is left out is the default.
fn part<T: DeserializeOwned + Default>(
    root: &Place<'_>,
    key: &str,
    mistakes: &mut Vec<Mistake>,
) -> Option<T> {
    match root.get(key) {
        Some(place) if !place.is_null() => place.decode_known(mistakes),
        _ => Some(T::default()),
    }
}

fn is_tcp(protocol: Option<Protocol>) -> bool {
    matches!(protocol, None | Some(Protocol::Tcp))
}

fn named_ports(container: &Container) -> impl Iterator<Item = (String, u16)> {
    let ports = container.ports.iter().flatten().filter(|port| is_tcp(port.protocol));
    ports.filter_map(|port| Some((port.name.clone()?, port.container_port)))
}

fn service_port(port: &text::ServicePort, place: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Option<Port> {
    if port.port == 0 {
        mistakes.push(place.key("port").mistake("0 is not a port; write 1 to 65535"));
    }
    let target = port.target_port.as_ref().map_or(Target::Number(port.port), |target| target.0.clone());
    is_tcp(port.protocol).then(|| Port {
        name: port.name.clone().unwrap_or_default(),
        port: port.port,
        target,
    })
}

/// The field, or Istio's annotation that is older than the field.
fn traffic_distribution(spec: &text::ServiceSpec, meta: &Meta) -> Option<TrafficDistribution> {
    use text::TrafficDistribution as Written;
    let annotation =
        meta.annotations.as_ref().and_then(|all| all.get("networking.istio.io/traffic-distribution"));
    let annotation = match annotation.map(String::as_str) {
        Some("PreferClose" | "PreferSameZone") => Some(Written::PreferSameZone),
        Some("PreferSameNode") => Some(Written::PreferSameNode),
        _ => None,
    };
    spec.traffic_distribution.or(annotation).map(|written| match written {
        Written::PreferClose | Written::PreferSameZone => TrafficDistribution::SameZone,
        Written::PreferSameNode => TrafficDistribution::SameNode,
    })
}
