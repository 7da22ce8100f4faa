//! Manifests as serde reads them: of each kind the fields that are read here. No rule of the kinds is checked.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Deserialize as Derive;
use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::object::{Action, Labels, Mode, Rule, Target};

#[derive(Default, Derive)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta {
    /// Read before, for its mistakes to be named whatever else is wrong; here only for its absence to be one.
    #[serde(rename = "name")]
    pub _name: String,
    #[serde(rename = "namespace")]
    pub _namespace: Option<String>,
    pub labels: Option<Labels>,
    pub annotations: Option<BTreeMap<String, String>>,
    pub creation_timestamp: Option<String>,
    pub deletion_timestamp: Option<String>,
    pub owner_references: Option<Vec<Owner>>,
}

#[derive(Derive)]
pub(super) struct Owner {
    pub kind: String,
    pub name: String,
    #[serde(default)]
    pub controller: Option<bool>,
}

#[derive(Default, Derive)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub node_name: Option<String>,
    pub service_account_name: Option<String>,
    pub host_network: Option<bool>,
    pub containers: Option<Vec<Container>>,
    pub init_containers: Option<Vec<Container>>,
}

#[derive(Derive)]
#[serde(rename_all = "camelCase")]
pub(super) struct Container {
    #[serde(default)]
    pub ports: Option<Vec<ContainerPort>>,
    #[serde(default)]
    pub restart_policy: Option<String>,
}

#[derive(Derive)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerPort {
    #[serde(default)]
    pub name: Option<String>,
    pub container_port: u16,
    #[serde(default)]
    pub protocol: Option<Protocol>,
}

#[derive(Clone, Copy, PartialEq, Eq, Derive)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Default, Derive)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodStatus {
    pub phase: Option<Phase>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<Ip>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
    pub conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Derive)]
pub(super) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

#[derive(Derive)]
pub(super) struct PodIp {
    pub ip: Ip,
}

#[derive(Derive)]
pub(super) struct Condition {
    pub r#type: String,
    pub status: String,
}

#[derive(Default, Derive)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceSpec {
    pub r#type: Option<ServiceType>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<Ip>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<Ip>>,
    pub ports: Option<Vec<ServicePort>>,
    pub selector: Option<Labels>,
    pub publish_not_ready_addresses: Option<bool>,
    pub traffic_distribution: Option<TrafficDistribution>,
    pub internal_traffic_policy: Option<InternalTrafficPolicy>,
    pub ip_families: Option<Vec<Family>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Derive)]
pub(super) enum ServiceType {
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Clone, Copy, PartialEq, Eq, Derive)]
#[expect(clippy::enum_variant_names, reason = "they are the words of Kubernetes")]
pub(super) enum TrafficDistribution {
    PreferClose,
    PreferSameZone,
    PreferSameNode,
}

#[derive(Clone, Copy, PartialEq, Eq, Derive)]
pub(super) enum InternalTrafficPolicy {
    Cluster,
    Local,
}

#[derive(Clone, Copy, PartialEq, Eq, Derive)]
pub(super) enum Family {
    IPv4,
    IPv6,
}

#[derive(Derive)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServicePort {
    #[serde(default)]
    pub name: Option<String>,
    pub port: u16,
    #[serde(default)]
    pub target_port: Option<TargetPort>,
    #[serde(default)]
    pub protocol: Option<Protocol>,
}

/// A number, or the name of a port.
pub(super) struct TargetPort(pub Target);

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = TargetPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number or the name of a port")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<TargetPort, E> {
                match u16::try_from(number) {
                    Ok(port) if port > 0 => Ok(TargetPort(Target::Number(port))),
                    _ => Err(E::custom(format!("{number} is not a port; write 1 to 65535"))),
                }
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<TargetPort, E> {
                match name.parse() {
                    Ok(number) => self.visit_u64(number),
                    Err(_) if name.is_empty() => Err(E::custom("\"\" is not the name of a port")),
                    Err(_) => Ok(TargetPort(Target::Name(name.to_owned()))),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// An address, or nothing: `None` is how a headless service is written.
pub(super) struct Ip(pub Option<IpAddr>);

impl<'de> Deserialize<'de> for Ip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Ip;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an IP address")
            }

            // Refused here and not behind the visitor, where the place is no longer known.
            fn visit_str<E: Error>(self, text: &str) -> Result<Ip, E> {
                match text {
                    "" | "None" => Ok(Ip(None)),
                    text => text
                        .parse()
                        .map(|ip| Ip(Some(ip)))
                        .map_err(|_| E::custom(format!("{text:?} is not an IP address"))),
                }
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// An address, or a name where the slice is one of names.
pub(super) enum EndpointAddress {
    Ip(IpAddr),
    Other(String),
}

impl<'de> Deserialize<'de> for EndpointAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(text.parse().map_or_else(|_| Self::Other(text), Self::Ip))
    }
}

#[derive(Default, Derive)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceStatus {
    pub load_balancer: Option<LoadBalancer>,
}

#[derive(Default, Derive)]
#[serde(default)]
pub(super) struct LoadBalancer {
    pub ingress: Option<Vec<Ingress>>,
}

#[derive(Derive)]
pub(super) struct Ingress {
    #[serde(default)]
    pub ip: Option<Ip>,
}

#[derive(Derive)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointSlice {
    pub address_type: AddressType,
    #[serde(default)]
    pub endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    pub ports: Option<Vec<SlicePort>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Derive)]
pub(super) enum AddressType {
    IPv4,
    IPv6,
    #[serde(rename = "FQDN")]
    Fqdn,
}

#[derive(Derive)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint {
    pub addresses: Vec<EndpointAddress>,
    #[serde(default)]
    pub conditions: Option<EndpointConditions>,
    #[serde(default)]
    pub target_ref: Option<TargetRef>,
}

#[derive(Derive)]
pub(super) struct EndpointConditions {
    #[serde(default)]
    pub ready: Option<bool>,
}

#[derive(Derive)]
pub(super) struct SlicePort {
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub port: Option<u16>,
    #[serde(default)]
    pub protocol: Option<Protocol>,
}

/// What an endpoint or a policy points at; which of the fields a policy may have, its kind says.
#[derive(Derive)]
#[serde(rename_all = "camelCase")]
pub(super) struct TargetRef {
    pub kind: String,
    pub name: String,
    #[serde(default)]
    pub namespace: Option<String>,
    #[serde(default, rename = "group")]
    pub _group: Option<String>,
    #[serde(default, rename = "sectionName")]
    pub _section_name: Option<String>,
}

#[derive(Default, Derive)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AuthorizationSpec {
    pub selector: Option<Selector>,
    pub target_ref: Option<TargetRef>,
    pub target_refs: Option<Vec<TargetRef>>,
    pub action: Action,
    pub rules: Vec<Rule>,
    #[serde(rename = "provider")]
    pub _provider: Option<Provider>,
}

#[derive(Default, Derive)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Selector {
    pub match_labels: Option<Labels>,
}

#[derive(Derive)]
pub(super) struct Provider {
    #[serde(rename = "name")]
    pub _name: String,
}

#[derive(Default, Derive)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PeerSpec {
    pub selector: Option<Selector>,
    pub mtls: Option<Mtls>,
    pub port_level_mtls: Option<BTreeMap<u16, Mtls>>,
}

#[derive(Default, Derive)]
#[serde(default)]
pub(super) struct Mtls {
    pub mode: Mode,
}
