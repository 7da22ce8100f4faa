//! One immutable view of the mesh, indexed for the questions that a connection asks.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use ztunnel_model::policy::{Policy, PolicyKey, Scope};
use ztunnel_model::service::{ServicePort, Visibility};
use ztunnel_model::workload::{NetworkMode, TunnelProtocol};
use ztunnel_model::{NamespacedHostname, Network, NetworkAddress, Service, Workload, WorkloadUid};

/// A workload behind a service, with its own port map.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    pub ports: Vec<ServicePort>,
}

/// What an address belongs to.
#[derive(Clone, Debug)]
pub enum Owner {
    Workload(Arc<Workload>),
    Service(Arc<Service>),
}

#[derive(Default)]
pub struct Snapshot {
    pub(super) workloads: BTreeMap<WorkloadUid, Arc<Workload>>,
    pub(super) workloads_by_address: HashMap<NetworkAddress, Vec<Arc<Workload>>>,
    pub(super) workloads_by_name: HashMap<(String, String), Vec<Arc<Workload>>>,
    pub(super) services: BTreeMap<NamespacedHostname, Arc<Service>>,
    pub(super) exact_vips: HashMap<NetworkAddress, Vec<Arc<Service>>>,
    pub(super) prefix_vips: PrefixVips,
    pub(super) endpoints: HashMap<NamespacedHostname, Vec<Endpoint>>,
    pub(super) policies: BTreeMap<PolicyKey, Arc<Policy>>,
    pub(super) global_policies: Vec<Arc<Policy>>,
    pub(super) namespace_policies: HashMap<String, Vec<Arc<Policy>>>,
}

impl Snapshot {
    /// The workload of a pod on this node: by name, namespace and service account.
    pub fn local_workload(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
        node: Option<&str>,
    ) -> Option<&Arc<Workload>> {
        self.workloads_by_name.get(&(namespace.to_owned(), name.to_owned()))?.iter().find(|workload| {
            workload.identity.service_account() == service_account
                && node.is_none_or(|node| workload.node == node)
        })
    }

    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that owns an address: pods before others, then HBONE, then the last one inserted (interop.md
    /// section 4.7).
    pub fn workload_by_address(&self, network: &Network, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_address
            .get(&NetworkAddress::new(network.clone(), ip))?
            .iter()
            .max_by_key(|workload| (workload.uid.is_pod(), workload.protocol == TunnelProtocol::Hbone))
    }

    /// The service behind a virtual address as a client of `namespace` sees it (interop.md section 8.5): an exact
    /// address before a prefix; own namespace, then canonical, then first.
    pub fn service_by_vip(&self, network: &Network, ip: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let visible = |service: &&Arc<Service>| {
            service.visibility == Visibility::Public || service.key.namespace == namespace
        };
        let rank = |service: &Arc<Service>| (service.key.namespace == namespace, service.canonical);
        let exact = self.exact_vips.get(&NetworkAddress::new(network.clone(), ip));
        exact
            .into_iter()
            .flatten()
            .filter(visible)
            .rev()
            .max_by_key(|service| rank(service))
            .or_else(|| self.prefix_vips.best(network, ip, namespace, visible))
    }

    /// Workloads before services (interop.md section 8.1, step 3).
    pub fn owner(&self, network: &Network, ip: IpAddr, namespace: &str) -> Option<Owner> {
        if let Some(workload) = self.workload_by_address(network, ip) {
            return Some(Owner::Workload(workload.clone()));
        }
        self.service_by_vip(network, ip, namespace).cloned().map(Owner::Service)
    }

    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    pub fn endpoints(&self, key: &NamespacedHostname) -> &[Endpoint] {
        self.endpoints.get(key).map_or(&[], Vec::as_slice)
    }

    /// The policies that apply to a destination (interop.md section 9.1).
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Policy> + Clone {
        let named = workload.authorization_policies.iter().filter_map(|name| self.selector_policy(name));
        self.global_policies
            .iter()
            .chain(self.namespace_policies.get(&workload.namespace).into_iter().flatten())
            .chain(named)
            .map(Arc::as_ref)
    }

    /// A policy that the workload names but that has not arrived. Skipping it would open what it closes, so whoever
    /// asks must refuse.
    pub fn missing_policy<'a>(&self, workload: &'a Workload) -> Option<&'a str> {
        workload
            .authorization_policies
            .iter()
            .map(String::as_str)
            .find(|name| self.named_policy(name).is_none())
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// Endpoints whose service is not known.
    pub fn staged(&self) -> impl Iterator<Item = (&NamespacedHostname, &[Endpoint])> {
        self.endpoints
            .iter()
            .filter(|(key, _)| !self.services.contains_key(*key))
            .map(|(key, endpoints)| (key, endpoints.as_slice()))
    }

    fn named_policy(&self, name: &str) -> Option<&Arc<Policy>> {
        let (namespace, name) = name.split_once('/')?;
        self.policies.get(&PolicyKey { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Only selector-scoped policies apply by name; the others apply by their scope and must not count twice.
    fn selector_policy(&self, name: &str) -> Option<&Arc<Policy>> {
        self.named_policy(name).filter(|policy| policy.scope == Scope::WorkloadSelector)
    }
}

/// Whether a workload is found by its addresses.
pub(super) fn indexed_by_address(workload: &Workload) -> bool {
    workload.network_mode == NetworkMode::Standard
}

/// Virtual prefixes by length: one hash look-up for each length in use, longest first, instead of a scan.
#[derive(Default)]
pub(super) struct PrefixVips {
    lengths: Vec<u8>,
    services: HashMap<(Network, IpNet), Vec<Arc<Service>>>,
}

impl PrefixVips {
    pub(super) fn insert(&mut self, network: Network, prefix: IpNet, service: Arc<Service>) {
        let length = prefix.prefix_len();
        if let Err(place) = self.lengths.binary_search_by(|other| length.cmp(other)) {
            self.lengths.insert(place, length);
        }
        self.services.entry((network, prefix.trunc())).or_default().push(service);
    }

    /// The best by (own namespace, prefix length, canonical); the first inserted wins a tie.
    fn best<'a>(
        &'a self,
        network: &Network,
        ip: IpAddr,
        namespace: &str,
        visible: impl Fn(&&Arc<Service>) -> bool,
    ) -> Option<&'a Arc<Service>> {
        let mut best: Option<&Arc<Service>> = None;
        let mut best_rank = None;
        for &length in &self.lengths {
            let Ok(prefix) = IpNet::new(ip, length) else { continue };
            let found = self.services.get(&(network.clone(), prefix.trunc()));
            for service in found.into_iter().flatten().filter(&visible) {
                let rank = Some((service.key.namespace == namespace, length, service.canonical));
                if rank > best_rank {
                    (best, best_rank) = (Some(service), rank);
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests;
