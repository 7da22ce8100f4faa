//! The written form: what serde reads and writes. No rule of the format is checked here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

use super::StaticConfig;
use super::service::vip_text;
use crate::codec::{DEFAULT_CAPACITY, DEFAULT_CLUSTER, DEFAULT_SERVICE_ACCOUNT, DEFAULT_TRUST_DOMAIN};
use crate::policy::Policy;
use crate::service::{Service, ServicePort, Vip};
use crate::workload::Workload;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkloadText {
    pub uid: String,
    #[serde(default)]
    pub name: String,
    pub namespace: String,
    #[serde(default = "default_account")]
    pub service_account: String,
    #[serde(default = "default_trust_domain")]
    pub trust_domain: String,
    pub workload_ips: Vec<String>,
    #[serde(default)]
    pub hostname: String,
    #[serde(default = "tcp")]
    pub protocol: String,
    #[serde(default = "standard")]
    pub network_mode: String,
    #[serde(default)]
    pub node: String,
    #[serde(default)]
    pub network: String,
    #[serde(default = "deployment")]
    pub workload_type: String,
    #[serde(default)]
    pub workload_name: String,
    #[serde(default)]
    pub canonical_name: String,
    #[serde(default)]
    pub canonical_revision: String,
    #[serde(default = "kubernetes")]
    pub cluster_id: String,
    #[serde(default)]
    pub locality: LocalityText,
    #[serde(default = "healthy")]
    pub status: String,
    #[serde(default = "one")]
    pub capacity: u32,
    #[serde(default)]
    pub native_tunnel: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_tunnel: Option<TunnelText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<GatewayText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_gateway: Option<GatewayText>,
    #[serde(default)]
    pub authorization_policies: Vec<String>,
    pub services: BTreeMap<String, BTreeMap<u16, u16>>,
}

#[derive(Default, Serialize, Deserialize)]
pub(super) struct LocalityText {
    #[serde(default)]
    pub region: String,
    #[serde(default)]
    pub zone: String,
    #[serde(default)]
    pub subzone: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TunnelText {
    pub protocol: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GatewayText {
    pub destination: String,
    pub hbone_mtls_port: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceText {
    pub name: String,
    pub namespace: String,
    pub hostname: String,
    pub vips: Vec<String>,
    pub ports: BTreeMap<u16, u16>,
    #[serde(default)]
    pub subject_alt_names: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<GatewayText>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weighted_waypoints: Vec<WeightedText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<BalancerText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_families: Option<String>,
    #[serde(default)]
    pub canonical: bool,
    #[serde(default = "public")]
    pub visibility: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct WeightedText {
    pub destination: GatewayText,
    pub weight: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BalancerText {
    #[serde(default)]
    pub routing_preferences: Vec<String>,
    pub mode: String,
    #[serde(default = "only_healthy")]
    pub health_policy: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyText {
    pub name: String,
    pub namespace: String,
    pub scope: String,
    pub action: String,
    pub dry_run: bool,
    pub rules: Vec<Vec<Vec<MatchText>>>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MatchText {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<StringText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<StringText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<AccountText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<AccountText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<StringText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<StringText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
}

/// A map of exactly one key; the reader checks that.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct StringText {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence: Option<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AccountText {
    pub namespace: String,
    pub service_account: String,
}

fn default_account() -> String {
    DEFAULT_SERVICE_ACCOUNT.to_owned()
}

fn default_trust_domain() -> String {
    DEFAULT_TRUST_DOMAIN.to_owned()
}

fn tcp() -> String {
    "TCP".to_owned()
}

fn standard() -> String {
    "Standard".to_owned()
}

fn deployment() -> String {
    "deployment".to_owned()
}

fn kubernetes() -> String {
    DEFAULT_CLUSTER.to_owned()
}

fn healthy() -> String {
    "Healthy".to_owned()
}

fn public() -> String {
    "Public".to_owned()
}

fn only_healthy() -> String {
    "OnlyHealthy".to_owned()
}

fn one() -> u32 {
    DEFAULT_CAPACITY
}

/// Writes a configuration so that `parse` reads it back equal.
pub fn to_json(config: &StaticConfig) -> String {
    #[derive(Serialize)]
    struct Text {
        workloads: Vec<WorkloadText>,
        services: Vec<ServiceText>,
        policies: Vec<PolicyText>,
    }
    let text = Text {
        workloads: config.workloads.iter().map(WorkloadText::from).collect(),
        services: config.services.iter().map(ServiceText::from).collect(),
        policies: config.policies.iter().map(PolicyText::from).collect(),
    };
    serde_json::to_string_pretty(&text).expect("invariant: texts, numbers and maps with number keys are JSON")
}

/// A workload as `/config_dump` shows it: as written, but `services` is a list of names (interop.md section 11.5).
pub struct WorkloadView(WorkloadText);

impl Serialize for WorkloadView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = serde_json::to_value(&self.0).map_err(serde::ser::Error::custom)?;
        value["services"] = self.0.services.keys().map(String::as_str).collect();
        value.serialize(serializer)
    }
}

/// A service as `/config_dump` shows it: as written, but prefixes stand apart, and with its endpoints by uid
/// (interop.md section 11.5).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    #[serde(flatten)]
    text: ServiceText,
    cidr_vips: Vec<CidrVip>,
    endpoints: BTreeMap<String, EndpointView>,
}

#[derive(Serialize)]
struct CidrVip {
    network: String,
    cidr: String,
}

/// An endpoint as `/config_dump` shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    workload_uid: String,
    port: BTreeMap<u16, u16>,
    status: String,
}

/// A policy as `/config_dump` shows it.
#[derive(Serialize)]
pub struct PolicyView(PolicyText);

impl From<&Workload> for WorkloadView {
    fn from(workload: &Workload) -> Self {
        Self(workload.into())
    }
}

impl ServiceView {
    pub fn new(service: &Service, endpoints: impl IntoIterator<Item = (String, EndpointView)>) -> Self {
        let (exact, prefixes): (Vec<_>, Vec<_>) = service.vips.iter().partition(|vip| vip.is_exact());
        let cidr = |vip: &Vip| CidrVip { network: vip.network.to_string(), cidr: vip.prefix.to_string() };
        let text = ServiceText { vips: exact.into_iter().map(vip_text).collect(), ..service.into() };
        let cidr_vips = prefixes.into_iter().map(cidr).collect();
        Self { text, cidr_vips, endpoints: endpoints.into_iter().collect() }
    }
}

impl EndpointView {
    pub fn new(workload: &Workload, ports: &[ServicePort]) -> Self {
        Self {
            workload_uid: workload.uid.to_string(),
            port: ports.iter().map(|port| (port.service_port, port.target_port)).collect(),
            status: WorkloadText::from(workload).status,
        }
    }
}

impl From<&Policy> for PolicyView {
    fn from(policy: &Policy) -> Self {
        Self(policy.into())
    }
}
