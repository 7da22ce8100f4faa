//! From resources to the next snapshot, in time that grows with the batch and not with the mesh. Pure: the caller
//! publishes, and acts on what changed.
//!
//! Resources have two origins. What discovery says of a key hides what the static configuration says of it; when it is
//! removed there, the static one is visible again. An update takes the place of what it updates wherever an order
//! matters, so that a tie is not decided anew by an unrelated change.

mod index;

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use ztunnel_model::codec::Address;
use ztunnel_model::codec::static_config::StaticConfig;
use ztunnel_model::policy::{Policy, PolicyKey};
use ztunnel_model::{NamespacedHostname, Service, Text, Workload, WorkloadUid};

use super::Snapshot;

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Static,
    Discovery,
}

/// What an origin says at once. Removals come before what is set.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub addresses: Vec<Address>,
    pub policies: Vec<Policy>,
    /// A uid that is known is a workload; else `namespace/hostname` is a service (interop.md section 4.3).
    pub removed_addresses: Vec<String>,
    /// Each `namespace/name`.
    pub removed_policies: Vec<String>,
}

/// What a batch changed, for those whose work depends on it.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub workloads: Vec<WorkloadChange>,
    pub services: Vec<NamespacedHostname>,
    pub policies: Vec<PolicyKey>,
    pub missing: Missing,
}

/// Policies that workloads of this node name but that are not there: until they come, nothing reaches these workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    pub count: usize,
    /// Those of them that were not missing before.
    pub new: Vec<MissingPolicy>,
}

/// One of the two is there, and they differ.
#[derive(Clone, Debug)]
pub struct WorkloadChange {
    pub before: Option<Arc<Workload>>,
    pub after: Option<Arc<Workload>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MissingPolicy {
    pub workload: WorkloadUid,
    pub policy: Text,
}

/// Owns what the next snapshot is made from.
#[derive(Default)]
pub struct Applier {
    next: Snapshot,
    node: Option<String>,
    /// What the static configuration says, visible or not.
    static_workloads: HashMap<WorkloadUid, Arc<Workload>>,
    static_services: HashMap<NamespacedHostname, Arc<Service>>,
    static_policies: HashMap<PolicyKey, Arc<Policy>>,
    /// Workloads of this node that name policies.
    naming: HashMap<WorkloadUid, Arc<Workload>>,
    missing: BTreeSet<MissingPolicy>,
    /// What is missing may be another set by now.
    look: bool,
    changed: bool,
}

impl WorkloadChange {
    pub fn uid(&self) -> Option<&WorkloadUid> {
        self.after.as_ref().or(self.before.as_ref()).map(|workload| &workload.uid)
    }

    /// What it was and what it is on a node; both `None` when it never was there.
    pub fn on_node(&self, node: &str) -> (Option<&Arc<Workload>>, Option<&Arc<Workload>>) {
        let here = |workload: &&Arc<Workload>| workload.node == *node;
        (self.before.as_ref().filter(here), self.after.as_ref().filter(here))
    }
}

impl Applier {
    /// Only workloads of `node` can be found as local ones; without a node all can.
    pub fn new(node: Option<&str>) -> Self {
        Self { node: node.map(str::to_owned), ..Self::default() }
    }

    /// The state as it is after all that was applied.
    pub fn snapshot(&self) -> Snapshot {
        self.next.clone()
    }

    /// Looks for what is missing now. Between pieces of one state there is no need to.
    pub fn look_for_missing(&mut self) -> Missing {
        let mut new = Vec::new();
        if std::mem::take(&mut self.look) {
            let missing = self.naming.values().flat_map(|workload| {
                self.next
                    .missing_policies(workload)
                    .map(|policy| MissingPolicy { workload: workload.uid.clone(), policy: policy.clone() })
            });
            let missing: BTreeSet<MissingPolicy> = missing.collect();
            new = missing.difference(&self.missing).cloned().collect();
            self.missing = missing;
        }
        Missing { count: self.missing.len(), new }
    }

    /// `None` when the batch changes nothing. What is missing is as it was when it was looked for last.
    pub fn apply(&mut self, origin: Origin, batch: Batch) -> Option<Changes> {
        let mut changes = Changes::default();
        for name in &batch.removed_addresses {
            self.remove_address(origin, name, &mut changes);
        }
        for name in &batch.removed_policies {
            if let Some((namespace, name)) = name.split_once('/') {
                let key = PolicyKey { namespace: namespace.to_owned(), name: name.to_owned() };
                self.policy(origin, &key, None, &mut changes);
            }
        }
        for address in batch.addresses {
            match address {
                Address::Workload(workload) => {
                    let uid = workload.uid.clone();
                    self.workload(origin, &uid, Some(workload), &mut changes);
                }
                Address::Service(service) => {
                    let key = service.key.clone();
                    self.service(origin, &key, Some(service), &mut changes);
                }
            }
        }
        for policy in batch.policies {
            let key = policy.key.clone();
            self.policy(origin, &key, Some(Arc::new(policy)), &mut changes);
        }
        changes.missing.count = self.missing.len();
        std::mem::take(&mut self.changed).then_some(changes)
    }

    /// Makes the static configuration this one: what it does not say any more is removed.
    pub fn replace_static(&mut self, config: &StaticConfig) -> Option<Changes> {
        let workloads: BTreeSet<_> = config.workloads.iter().map(|workload| &workload.uid).collect();
        let services: BTreeSet<_> = config.services.iter().map(|service| &service.key).collect();
        let policies: BTreeSet<_> = config.policies.iter().map(|policy| &policy.key).collect();
        let gone_workloads = self.static_workloads.keys().filter(|uid| !workloads.contains(uid));
        let gone_services = self.static_services.keys().filter(|key| !services.contains(key));
        let gone_policies = self.static_policies.keys().filter(|key| !policies.contains(key));
        let batch = Batch {
            removed_addresses: gone_workloads
                .map(ToString::to_string)
                .chain(gone_services.map(ToString::to_string))
                .collect(),
            removed_policies: gone_policies.map(ToString::to_string).collect(),
            addresses: (config.workloads.iter().cloned().map(Arc::new).map(Address::Workload))
                .chain(config.services.iter().cloned().map(Arc::new).map(Address::Service))
                .collect(),
            policies: config.policies.clone(),
        };
        self.apply(Origin::Static, batch)
    }

    fn remove_address(&mut self, origin: Origin, name: &str, changes: &mut Changes) {
        let uid = WorkloadUid::from(name);
        let known = match origin {
            Origin::Static => self.static_workloads.contains_key(&uid),
            Origin::Discovery => self.next.workload(&uid).is_some(),
        };
        if known {
            self.workload(origin, &uid, None, changes);
        } else if let Ok(key) = name.parse() {
            self.service(origin, &key, None, changes);
        }
    }

    fn workload(
        &mut self,
        origin: Origin,
        uid: &WorkloadUid,
        said: Option<Arc<Workload>>,
        changes: &mut Changes,
    ) {
        let current = self.next.workload(uid);
        let Some(turn) = turn(origin, current, &mut self.static_workloads, uid, said) else { return };
        self.changed = true;
        index::workload(&mut self.next, self.node.as_deref(), &turn);
        let (before, after) = turn;
        self.look |= self.naming.remove(uid).is_some();
        if let Some(workload) = &after
            && !workload.authorization_policies.is_empty()
            && index::is_local(self.node.as_deref(), workload)
        {
            self.naming.insert(uid.clone(), workload.clone());
            self.look = true;
        }
        if before != after {
            changes.workloads.push(WorkloadChange { before, after });
        }
    }

    fn service(
        &mut self,
        origin: Origin,
        key: &NamespacedHostname,
        said: Option<Arc<Service>>,
        changes: &mut Changes,
    ) {
        let current = self.next.service(key);
        let Some(turn) = turn(origin, current, &mut self.static_services, key, said) else { return };
        self.changed = true;
        index::service(&mut self.next, &turn);
        if turn.0 != turn.1 {
            changes.services.push(key.clone());
        }
    }

    fn policy(&mut self, origin: Origin, key: &PolicyKey, said: Option<Arc<Policy>>, changes: &mut Changes) {
        let current = index::policy_of(&self.next, key);
        let Some(turn) = turn(origin, current, &mut self.static_policies, key, said) else { return };
        self.changed = true;
        index::policy(&mut self.next, &turn);
        if turn.0 != turn.1 {
            self.next.policy_generation += 1;
            self.look = true;
            changes.policies.push(key.clone());
        }
    }
}

/// What was visible of a key and what is.
type Turn<T> = (Option<Arc<T>>, Option<Arc<T>>);

/// What becomes of a key when an origin says something else of it, or (`None`) nothing more; `None` when the same
/// record stays visible.
fn turn<K: Hash + Eq + Clone, T: PartialEq>(
    origin: Origin,
    current: Option<&Arc<T>>,
    fixed: &mut HashMap<K, Arc<T>>,
    key: &K,
    said: Option<Arc<T>>,
) -> Option<Turn<T>> {
    let discovered =
        current.filter(|current| !fixed.get(key).is_some_and(|fixed| Arc::ptr_eq(fixed, current)));
    let after = match origin {
        Origin::Discovery if discovered == said.as_ref() => return None,
        Origin::Discovery => said.or_else(|| fixed.get(key).cloned()),
        Origin::Static if fixed.get(key) == said.as_ref() => return None,
        Origin::Static => {
            match &said {
                Some(said) => fixed.insert(key.clone(), said.clone()),
                None => fixed.remove(key),
            };
            if discovered.is_some() {
                return None;
            }
            said
        }
    };
    Some((current.cloned(), after))
}

/// The whole view of one static configuration.
#[cfg(test)]
pub fn build(config: &StaticConfig) -> Snapshot {
    let mut applier = Applier::default();
    applier.replace_static(config);
    applier.snapshot()
}

#[cfg(test)]
mod tests;
