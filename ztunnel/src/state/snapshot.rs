//! One immutable view of the mesh, indexed for the questions that a connection asks.
//!
//! It is made of persistent tables: a copy costs a few references, and what a batch changes is all that the next
//! snapshot does not share with this one.

mod vips;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::DefaultHashBuilder;
use ztunnel_model::policy::{Policy, PolicyKey, Scope};
use ztunnel_model::service::{ServicePort, Visibility};
use ztunnel_model::workload::{NetworkMode, TunnelProtocol};
use ztunnel_model::{NamespacedHostname, Network, Service, Text, Workload, WorkloadUid};

use super::table::Table;
pub(super) use vips::{ExactVips, PrefixVips};

/// A workload behind a service, with its own port map.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    pub ports: Arc<[ServicePort]>,
}

/// All endpoints of a service, whatever their health: who uses them knows what the service's policy is by then.
#[derive(Clone, Debug)]
pub struct Backends {
    pub(super) service: NamespacedHostname,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) heaviest: u32,
}

/// What an address belongs to.
#[derive(Clone, Debug)]
pub enum Owner {
    Workload(Arc<Workload>),
    Service(Arc<Service>),
}

/// The policies of one scope.
pub(super) type Scoped = BTreeMap<PolicyKey, Arc<Policy>>;

#[derive(Clone, Default)]
pub struct Snapshot {
    pub(super) hasher: Hasher,
    pub(super) workloads: Table<Arc<Workload>>,
    pub(super) workloads_by_address: Table<Arc<Workload>>,
    pub(super) workloads_by_hostname: Table<Arc<Workload>>,
    /// Those of this node, by namespace and name.
    pub(super) local_workloads: Table<Arc<Workload>>,
    pub(super) services: Table<Arc<Service>>,
    pub(super) services_by_hostname: Table<Arc<Service>>,
    pub(super) exact_vips: ExactVips,
    pub(super) prefix_vips: PrefixVips,
    pub(super) backends: Table<Arc<Backends>>,
    pub(super) policies: Table<Arc<Policy>>,
    pub(super) global_policies: Arc<Scoped>,
    pub(super) namespace_policies: Table<(Text, Arc<Scoped>)>,
    pub(super) policy_generation: u64,
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
        self.local_workloads.get(self.hasher.pair(namespace, name), |workload| {
            workload.name == *name
                && workload.namespace == *namespace
                && workload.identity.service_account() == service_account
                && node.is_none_or(|node| workload.node == *node)
        })
    }

    /// Any workload of a node.
    pub fn neighbour(&self, node: &str) -> Option<&Arc<Workload>> {
        self.local_workloads.iter().find(|workload| workload.node == *node)
    }

    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(self.hasher.text(uid.as_str()), |workload| workload.uid == *uid)
    }

    /// The workload that owns an address: pods before others, then HBONE, then the last that took it (interop.md
    /// section 4.7).
    pub fn workload_by_address(&self, network: &Network, ip: IpAddr) -> Option<&Arc<Workload>> {
        let ip = ip.to_canonical();
        let mut owners = self.workloads_by_address.all(self.hasher.address(network, ip), |workload| {
            workload.network == *network && workload.addresses.contains(&ip)
        });
        let first = owners.next()?;
        // Nearly always there is one, and its uid need not be fetched from memory.
        let Some(second) = owners.next() else { return Some(first) };
        [first, second]
            .into_iter()
            .chain(owners)
            .max_by_key(|workload| (workload.uid.is_pod(), workload.protocol == TunnelProtocol::Hbone))
    }

    /// The workload that a reference by host name means.
    pub fn workload_by_hostname(&self, key: &NamespacedHostname) -> Option<&Arc<Workload>> {
        self.workloads_by_hostname.get(self.hasher.text(&key.hostname), |workload| {
            workload.hostname == key.hostname && workload.namespace == key.namespace
        })
    }

    /// The service behind a virtual address as a client of `namespace` sees it (interop.md section 8.5): an exact
    /// address before a prefix; own namespace, then canonical, then first.
    pub fn service_by_vip(&self, network: &Network, ip: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let ip = ip.to_canonical();
        let exact = self.exact_vips.services(&self.hasher, network, ip);
        best(exact, namespace).or_else(|| self.prefix_vips.best(&self.hasher, network, ip, namespace))
    }

    /// The service of a host name as a client of `namespace` sees it; ranked as by an exact address.
    pub fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let named = self
            .services_by_hostname
            .all(self.hasher.text(hostname), |service: &Arc<Service>| service.key.hostname == hostname);
        best(named, namespace)
    }

    /// Workloads before services (interop.md section 8.1, step 3).
    pub fn owner(&self, network: &Network, ip: IpAddr, namespace: &str) -> Option<Owner> {
        if let Some(workload) = self.workload_by_address(network, ip) {
            return Some(Owner::Workload(workload.clone()));
        }
        self.service_by_vip(network, ip, namespace).cloned().map(Owner::Service)
    }

    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(self.hasher.service(key), |service| service.key == *key)
    }

    pub fn endpoints(&self, key: &NamespacedHostname) -> &[Endpoint] {
        self.backends(key).map_or(&[], Backends::endpoints)
    }

    /// The endpoints with what is known of all of them; `None` when there are none.
    pub fn backends(&self, key: &NamespacedHostname) -> Option<&Backends> {
        self.backends.get(self.hasher.service(key), |backends| backends.service == *key).map(Arc::as_ref)
    }

    /// The policies that apply to a destination (interop.md section 9.1).
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Policy> + Clone {
        let namespace = &workload.namespace;
        let group = self.namespace_policies.get(self.hasher.text(namespace), |(of, _)| of == namespace);
        let named = workload.authorization_policies.iter().filter_map(|name| self.selector_policy(name));
        self.global_policies
            .values()
            .chain(group.into_iter().flat_map(|(_, policies)| policies.values()))
            .chain(named)
            .map(Arc::as_ref)
    }

    /// A policy that the workload names but that has not arrived. Skipping it would open what it closes, so whoever
    /// asks must refuse.
    pub fn missing_policy<'a>(&self, workload: &'a Workload) -> Option<&'a str> {
        self.missing_policies(workload).next().map(Text::as_str)
    }

    pub(super) fn missing_policies<'a>(&self, workload: &'a Workload) -> impl Iterator<Item = &'a Text> {
        workload.authorization_policies.iter().filter(|name| self.named_policy(name).is_none())
    }

    /// Changes whenever a policy does: what was decided under another number must be decided again.
    pub fn policy_generation(&self) -> u64 {
        self.policy_generation
    }

    /// All workloads, in order of their uid; for whoever shows them.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        sorted(self.workloads.iter(), |workload| &workload.uid)
    }

    /// All services, in order of their key; for whoever shows them.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        sorted(self.services.iter(), |service| &service.key)
    }

    /// All policies, in order of their key; for whoever shows them.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        sorted(self.policies.iter(), |policy| &policy.key)
    }

    /// Endpoints whose service is not known.
    pub fn staged(&self) -> impl Iterator<Item = (&NamespacedHostname, &[Endpoint])> {
        self.backends
            .iter()
            .filter(|backends| self.service(&backends.service).is_none())
            .map(|backends| (&backends.service, backends.endpoints()))
    }

    fn named_policy(&self, name: &str) -> Option<&Arc<Policy>> {
        let (namespace, name) = name.split_once('/')?;
        self.policies.get(self.hasher.pair(namespace, name), |policy| {
            policy.key.name == name && policy.key.namespace == namespace
        })
    }

    /// Only selector-scoped policies apply by name; the others apply by their scope and must not count twice.
    fn selector_policy(&self, name: &str) -> Option<&Arc<Policy>> {
        self.named_policy(name).filter(|policy| policy.scope == Scope::WorkloadSelector)
    }
}

impl Backends {
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// No endpoint has a greater capacity.
    pub fn heaviest(&self) -> u32 {
        self.heaviest
    }
}

/// The hashes by which the tables are asked. Its seed is the process's own: who names things cannot make them collide.
#[derive(Clone, Default)]
pub(super) struct Hasher(DefaultHashBuilder);

impl Hasher {
    pub(super) fn text(&self, text: &str) -> u64 {
        self.of(text)
    }

    pub(super) fn pair(&self, namespace: &str, name: &str) -> u64 {
        self.of((namespace, name))
    }

    pub(super) fn service(&self, key: &NamespacedHostname) -> u64 {
        self.pair(&key.namespace, &key.hostname)
    }

    pub(super) fn address(&self, network: &Network, ip: IpAddr) -> u64 {
        self.of((network.as_str(), ip))
    }

    pub(super) fn of(&self, value: impl Hash) -> u64 {
        self.0.hash_one(value)
    }
}

/// Whether a workload is found by its addresses.
pub(super) fn indexed_by_address(workload: &Workload) -> bool {
    workload.network_mode == NetworkMode::Standard
}

fn visible(service: &Service, namespace: &str) -> bool {
    service.visibility == Visibility::Public || service.key.namespace == namespace
}

/// Own namespace, then canonical, then first, of those that are visible.
fn best<'a>(
    services: impl DoubleEndedIterator<Item = &'a Arc<Service>>,
    namespace: &str,
) -> Option<&'a Arc<Service>> {
    services
        .filter(|service| visible(service, namespace))
        .rev()
        .max_by_key(|service| (service.key.namespace == namespace, service.canonical))
}

fn sorted<'a, T: 'a, K: Ord>(
    entries: impl Iterator<Item = &'a Arc<T>>,
    key: impl Fn(&'a T) -> K,
) -> impl Iterator<Item = &'a Arc<T>> {
    let mut all: Vec<_> = entries.collect();
    all.sort_unstable_by_key(|entry| key(entry));
    all.into_iter()
}

#[cfg(test)]
mod tests;
