//! From objects to resources: who is meshed, which workload stands behind which service, which policy applies to whom.
//!
//! Pure: objects go in, differences of resources come out. It must not know where objects come from, who reads the
//! resources, or what time it is. `held` keeps the objects and says what a change concerns; `workload`, `service`,
//! `authorization` and `peer` each make one kind of resource out of them; `emitted` lets through what differs. A change
//! costs what it concerns: a pod its own resource, a selector the pods it selects, a label of a namespace its pods.

mod authorization;
mod emitted;
mod held;
mod peer;
mod residents;
mod select;
mod service;
mod status;
mod workload;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use ztunnel_model::codec::{self, Address};
use ztunnel_model::policy::Policy;
use ztunnel_model::{Identity, Workload};

use self::emitted::Emitted;
use self::held::{Held, Touched};
use self::workload::Surroundings;
use crate::object::{Change, Key, Kind, Name};
use crate::resource::{self, Changes, Resource};

pub use residents::Residents;
pub use status::{Enforcement, PolicyStatus, Reason};

#[derive(Clone, Debug)]
pub struct Config {
    pub trust_domain: String,
    pub cluster_id: String,
    pub network: String,
    /// Policies without a selector are for the whole mesh here.
    pub root_namespace: String,
    /// Tunnels go to a meshed pod once its node says that the pod takes them, rather than as soon as its labels ask for it.
    pub await_redirection: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            trust_domain: codec::DEFAULT_TRUST_DOMAIN.to_owned(),
            cluster_id: codec::DEFAULT_CLUSTER.to_owned(),
            network: String::new(),
            root_namespace: "istio-system".to_owned(),
            await_redirection: false,
        }
    }
}

#[derive(Debug)]
pub struct Index {
    config: Config,
    held: Held,
    emitted: Emitted,
    residents: Residents,
    pods: HashMap<Name, Standing>,
    /// Uids of the workloads that a slice became.
    slices: HashMap<Name, Vec<Arc<str>>>,
    reasons: HashMap<Key, Vec<Reason>>,
    /// How many workloads each policy with a selector applies to.
    attached: HashMap<Key, usize>,
    workloads: HashMap<Arc<str>, usize>,
    /// How many workloads name the policy that all strict ones share.
    strict: usize,
}

/// What a pod has come to.
#[derive(Debug, Default)]
struct Standing {
    uid: Option<Arc<str>>,
    resident: Option<(Arc<str>, Identity)>,
    policies: Vec<Key>,
    strict: bool,
}

impl Index {
    pub fn new(config: Config) -> Self {
        Self {
            held: Held::new(&config.root_namespace),
            config,
            emitted: Emitted::default(),
            residents: Residents::default(),
            pods: HashMap::new(),
            slices: HashMap::new(),
            reasons: HashMap::new(),
            attached: HashMap::new(),
            workloads: HashMap::new(),
            strict: 0,
        }
    }

    /// Takes changes of objects in and says what differs in the resources.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Changes {
        let mut touched = Touched::default();
        for change in changes {
            match change {
                Change::Set(object) => self.held.set(object, &mut touched),
                Change::Remove(key) => self.held.remove(key, &mut touched),
            }
        }
        self.rebuild(touched)
    }

    /// The identities of the meshed pods on each node.
    pub fn residents(&self) -> Residents {
        self.residents.clone()
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.held.namespaces.iter()
    }

    /// What is to be said of namespaces whose label asks for something that there is not.
    pub fn misread_namespaces(&self) -> impl Iterator<Item = (&Arc<str>, String)> {
        self.held.unknown_modes.iter().map(|(name, mode)| (name, workload::misread(mode)))
    }

    fn rebuild(&mut self, touched: Touched) -> Changes {
        let mut changes = Changes::default();
        for name in &touched.authorizations {
            self.rebuild_authorization(name, &mut changes);
        }
        for name in &touched.peers {
            self.rebuild_peer(name, &mut changes);
        }
        for name in &touched.services {
            self.rebuild_service(name, &mut changes);
        }
        for name in &touched.slices {
            self.rebuild_slice(name, &mut changes);
        }
        for name in &touched.pods {
            self.rebuild_pod(name, &mut changes);
        }
        let root = &self.config.root_namespace;
        let strict = (self.strict > 0).then(|| peer::strict_policy(root));
        let name = peer::strict_key(root).to_string().as_str().into();
        set_policy(&mut self.emitted, name, strict.as_ref(), &mut changes);
        // A workload never names a policy that was not sent, and loses its name before the policy goes.
        changes.set.sort_by_key(|resource| Reverse(resource.kind));
        changes.removed.sort_by_key(|(kind, _)| *kind);
        changes
    }

    fn rebuild_authorization(&mut self, name: &Name, changes: &mut Changes) {
        let object = self.held.authorizations.get(name);
        let converted = object.map(|object| authorization::convert(object, &self.config.root_namespace));
        let (policy, reasons) = converted.map_or((None, Vec::new()), |all| (all.policy, all.reasons));
        set_policy(&mut self.emitted, name.to_string().as_str().into(), policy.as_ref(), changes);
        self.set_reasons(Key::new(Kind::AuthorizationPolicy, name), reasons);
    }

    fn rebuild_peer(&mut self, name: &Name, changes: &mut Changes) {
        let (mut policy, mut reasons) = (None, Vec::new());
        if let Some(object) = self.held.peers.get(name) {
            let root = &self.config.root_namespace;
            if peer::selector(object).is_some() && *name.namespace != **root {
                policy = peer::own_policy(object, self.held.is_strict(&name.namespace));
            }
            reasons = peer::reasons(object, root);
            reasons.extend(self.shadowed(name));
        }
        let resource = peer::own_key(name).to_string().as_str().into();
        set_policy(&mut self.emitted, resource, policy.as_ref(), changes);
        self.set_reasons(Key::new(Kind::PeerAuthentication, name), reasons);
    }

    fn rebuild_service(&mut self, name: &Name, changes: &mut Changes) {
        let service = self.held.services.get(name).and_then(|one| service::convert(&self.config, one));
        match service {
            Some(service) => {
                let resource = Resource {
                    kind: resource::Kind::Address,
                    name: service.key.to_string().as_str().into(),
                    aliases: texts(service::aliases(&service)),
                    belongs_to: Vec::new(),
                    node: None,
                    body: Address::Service(Arc::new(service)).encode().into(),
                };
                self.emitted.set(resource, changes);
            }
            None => {
                let name = service::key(name).to_string().as_str().into();
                self.emitted.remove(resource::Kind::Address, &name, changes);
            }
        }
    }

    fn rebuild_slice(&mut self, name: &Name, changes: &mut Changes) {
        let slice = self.held.slices.get(name);
        let service = slice.and_then(|slice| self.held.service_of(slice)).filter(|one| !one.external_name);
        let workloads = match (slice, service) {
            (Some(slice), Some(service)) => workload::of_slice(&self.config, slice, service),
            _ => Vec::new(),
        };
        let before = self.slices.remove(name).unwrap_or_default();
        let now: Vec<Arc<str>> =
            workloads.into_iter().map(|one| set_workload(&mut self.emitted, one, changes)).collect();
        for gone in before.iter().filter(|uid| !now.contains(uid)) {
            self.emitted.remove(resource::Kind::Address, gone, changes);
        }
        if !now.is_empty() {
            self.slices.insert(name.clone(), now);
        }
    }

    fn rebuild_pod(&mut self, name: &Name, changes: &mut Changes) {
        let before = self.pods.remove(name).unwrap_or_default();
        let (now, workload) = self.standing(name);
        if let Some((node, identity)) = &before.resident
            && before.resident != now.resident
        {
            self.residents.remove(node, identity);
        }
        if let Some((node, identity)) = &now.resident
            && before.resident != now.resident
        {
            self.residents.add(node, identity);
        }
        for key in &now.policies {
            count(&mut self.attached, key, true);
        }
        for key in &before.policies {
            count(&mut self.attached, key, false);
        }
        for (standing, up) in [(&now, true), (&before, false)] {
            if standing.uid.is_some() {
                count(&mut self.workloads, &name.namespace, up);
            }
        }
        self.strict = self.strict + usize::from(now.strict) - usize::from(before.strict);
        match (workload, &before.uid) {
            (Some(workload), _) => drop(set_workload(&mut self.emitted, workload, changes)),
            (None, Some(uid)) => self.emitted.remove(resource::Kind::Address, uid, changes),
            (None, None) => {}
        }
        if self.held.pods.contains_key(name) {
            self.pods.insert(name.clone(), now);
        }
    }

    fn standing(&self, name: &Name) -> (Standing, Option<Workload>) {
        let Some(pod) = self.held.pods.get(name) else { return Default::default() };
        let meshed = workload::is_meshed(pod, self.held.asks_for_mesh(&name.namespace));
        let mut standing = Standing::default();
        if meshed && !pod.finished && !pod.node.is_empty() {
            let identity = workload::identity(&self.config, pod);
            standing.resident = identity.map(|identity| (pod.node.clone(), identity));
        }
        let mut policies = Vec::new();
        for policy in self.held.authorizations_of(pod) {
            policies.push(policy.name.to_string());
            standing.policies.push(Key::new(Kind::AuthorizationPolicy, &policy.name));
        }
        let above = self.held.is_strict(&name.namespace);
        let decisive = self.held.peer_of(pod);
        let verdict = match decisive {
            Some(peer) => peer::verdict(peer, above),
            None if above => peer::Verdict::Strict,
            None => peer::Verdict::Permissive,
        };
        standing.policies.extend(decisive.map(|one| Key::new(Kind::PeerAuthentication, &one.name)));
        match (verdict, decisive) {
            (peer::Verdict::Own, Some(peer)) => policies.push(peer::own_key(&peer.name).to_string()),
            (peer::Verdict::Strict, _) => {
                policies.push(peer::strict_key(&self.config.root_namespace).to_string());
            }
            _ => {}
        }
        // What a strict pod refuses is not to be sent to it in plaintext either.
        let now = pod.redirected || !self.config.await_redirection || verdict == peer::Verdict::Strict;
        let around = Surroundings {
            tunnelled: meshed && now,
            locality: self.held.locality(&pod.node),
            services: self.held.services_of(pod),
            policies,
        };
        let workload = workload::of_pod(&self.config, pod, around);
        match &workload {
            Some(workload) => {
                standing.uid = Some(workload.uid.as_str().into());
                standing.strict = verdict == peer::Verdict::Strict;
            }
            None => standing.policies.clear(),
        }
        (standing, workload)
    }

    fn set_reasons(&mut self, key: Key, reasons: Vec<Reason>) {
        if self.reasons.get(&key).map_or(&[][..], Vec::as_slice) == reasons {
            return;
        }
        for Reason { field, text } in &reasons {
            tracing::warn!(policy = %key, field, "{text}");
        }
        if reasons.is_empty() {
            self.reasons.remove(&key);
        } else {
            self.reasons.insert(key, reasons);
        }
    }
}

fn set_policy(emitted: &mut Emitted, name: Arc<str>, policy: Option<&Policy>, changes: &mut Changes) {
    let kind = resource::Kind::Authorization;
    match policy {
        Some(policy) => {
            let body = codec::policy::encode(policy).into();
            let resource =
                Resource { kind, name, aliases: Vec::new(), belongs_to: Vec::new(), node: None, body };
            emitted.set(resource, changes);
        }
        None => emitted.remove(kind, &name, changes),
    }
}

fn set_workload(emitted: &mut Emitted, workload: Workload, changes: &mut Changes) -> Arc<str> {
    let name: Arc<str> = workload.uid.as_str().into();
    let resource = Resource {
        kind: resource::Kind::Address,
        name: name.clone(),
        aliases: texts(workload::aliases(&workload)),
        belongs_to: texts(workload.services.keys().map(ToString::to_string).collect()),
        node: (!workload.node.is_empty()).then(|| workload.node.as_str().into()),
        body: Address::Workload(Arc::new(workload)).encode().into(),
    };
    emitted.set(resource, changes);
    name
}

fn texts(list: Vec<String>) -> Vec<Arc<str>> {
    list.into_iter().map(Arc::from).collect()
}

fn count<K: std::hash::Hash + Eq + Clone>(counts: &mut HashMap<K, usize>, key: &K, up: bool) {
    let count = counts.entry(key.clone()).or_default();
    *count = if up { *count + 1 } else { count.saturating_sub(1) };
    if *count == 0 {
        counts.remove(key);
    }
}

#[cfg(test)]
mod tests;
