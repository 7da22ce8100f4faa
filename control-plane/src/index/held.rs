//! The objects as they are now, and who concerns whom: maps from each object to those whose resources it shapes, so that
//! a change is followed to them and to nobody else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use ztunnel_model::workload::Locality;

use super::select::{Labelled, Selectors, selects};
use super::{authorization, peer, workload};
use crate::object::{
    AuthorizationPolicy, EndpointSlice, Key, Kind, Name, Object, PeerAuthentication, Pod, Service,
};

/// Whose resources have to be made again.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub pods: BTreeSet<Name>,
    pub services: BTreeSet<Name>,
    pub slices: BTreeSet<Name>,
    pub authorizations: BTreeSet<Name>,
    pub peers: BTreeSet<Name>,
}

/// One namespace.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Whether its label asks for the mesh.
    pub asks: bool,
    pods: Labelled,
    services: Selectors,
    /// Those that workloads name.
    authorizations: Selectors,
    /// PeerAuthentications with a selector.
    peers: Selectors,
    /// Those without: the first one is in force.
    own_peers: BTreeSet<peer::Seniority>,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    root_namespace: Arc<str>,
    /// Those that there are; a room is there also for what was heard of before its namespace.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Namespaces whose label asks for something that there is not.
    pub unknown_modes: BTreeMap<Arc<str>, String>,
    rooms: HashMap<Arc<str>, Room>,
    nodes: HashMap<Arc<str>, Locality>,
    pods_on: HashMap<Arc<str>, BTreeSet<Name>>,
    slices_of_service: HashMap<Name, BTreeSet<Name>>,
    slices_of_pod: HashMap<Name, BTreeSet<Name>>,
    pub pods: HashMap<Name, Pod>,
    pub services: HashMap<Name, Service>,
    pub slices: HashMap<Name, EndpointSlice>,
    pub authorizations: HashMap<Name, AuthorizationPolicy>,
    pub peers: HashMap<Name, PeerAuthentication>,
}

impl Held {
    pub(super) fn new(root_namespace: &str) -> Self {
        Self { root_namespace: root_namespace.into(), ..Self::default() }
    }

    pub(super) fn set(&mut self, object: Object, touched: &mut Touched) {
        match object {
            Object::Namespace(one) => {
                let asks = workload::asks_for_mesh(&one.labels);
                self.namespaces.insert(one.name.clone());
                match workload::unknown_mode(&one.labels) {
                    Some(mode) => drop(self.unknown_modes.insert(one.name.clone(), mode.to_owned())),
                    None => drop(self.unknown_modes.remove(&one.name)),
                }
                self.replace_namespace(&one.name, asks, touched);
            }
            Object::Node(one) => self.replace_node(&one.name, Some(one.locality), touched),
            // Pods name their account; the object itself adds nothing.
            Object::ServiceAccount(_) => {}
            Object::Pod(one) => self.replace_pod(&one.name.clone(), Some(*one), touched),
            Object::Service(one) => self.replace_service(&one.name.clone(), Some(*one), touched),
            Object::EndpointSlice(one) => self.replace_slice(&one.name.clone(), Some(one), touched),
            Object::AuthorizationPolicy(one) => {
                self.replace_authorization(&one.name.clone(), Some(one), touched);
            }
            Object::PeerAuthentication(one) => self.replace_peer(&one.name.clone(), Some(one), touched),
        }
    }

    pub(super) fn remove(&mut self, key: Key, touched: &mut Touched) {
        let name = Name { namespace: key.namespace, name: key.name };
        match key.kind {
            Kind::Namespace => {
                self.namespaces.remove(&name.name);
                self.unknown_modes.remove(&name.name);
                self.replace_namespace(&name.name, false, touched);
            }
            Kind::Node => self.replace_node(&name.name, None, touched),
            Kind::ServiceAccount => {}
            Kind::Pod => self.replace_pod(&name, None, touched),
            Kind::Service => self.replace_service(&name, None, touched),
            Kind::EndpointSlice => self.replace_slice(&name, None, touched),
            Kind::AuthorizationPolicy => self.replace_authorization(&name, None, touched),
            Kind::PeerAuthentication => self.replace_peer(&name, None, touched),
        }
    }

    pub(super) fn asks_for_mesh(&self, namespace: &str) -> bool {
        self.rooms.get(namespace).is_some_and(|room| room.asks)
    }

    pub(super) fn locality(&self, node: &str) -> Locality {
        self.nodes.get(node).cloned().unwrap_or_default()
    }

    /// The services that a pod is an endpoint of: those that select it, and those whose slices name it.
    pub(super) fn services_of(&self, pod: &Pod) -> Vec<&Service> {
        let namespace = &pod.name.namespace;
        let selecting = self.rooms.get(namespace).into_iter().flat_map(|room| {
            let named = |name: &Arc<str>| self.services.get(&Name::new(namespace.clone(), name.clone()));
            room.services.candidates(&pod.labels).filter_map(named)
        });
        let selecting = selecting.filter(|service| selects(&service.selector, &pod.labels));
        let naming = self.slices_of_pod.get(&pod.name).into_iter().flatten();
        let naming = naming.filter_map(|slice| self.service_of(self.slices.get(slice)?));
        let mut found: Vec<&Service> = selecting.chain(naming).filter(|one| !one.external_name).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found.dedup_by(|a, b| a.name == b.name);
        found
    }

    pub(super) fn service_of(&self, slice: &EndpointSlice) -> Option<&Service> {
        let service = slice.service.as_ref()?;
        self.services.get(&Name::new(slice.name.namespace.clone(), service.clone()))
    }

    /// The AuthorizationPolicies that a pod has to name, in order.
    pub(super) fn authorizations_of(&self, pod: &Pod) -> Vec<&AuthorizationPolicy> {
        let mut found = Vec::new();
        for namespace in self.policy_namespaces(&pod.name.namespace) {
            let Some(room) = self.rooms.get(namespace) else { continue };
            let named =
                |name: &Arc<str>| self.authorizations.get(&Name::new(namespace.clone(), name.clone()));
            let candidates = room.authorizations.candidates(&pod.labels).filter_map(named);
            found.extend(candidates.filter(|policy| {
                authorization::attachment(policy).is_some_and(|selector| selects(selector, &pod.labels))
            }));
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// The PeerAuthentication with a selector that decides for a pod.
    pub(super) fn peer_of(&self, pod: &Pod) -> Option<&PeerAuthentication> {
        let namespace = &pod.name.namespace;
        let room = self.rooms.get(namespace).filter(|_| *namespace != self.root_namespace)?;
        let named = |name: &Arc<str>| self.peers.get(&Name::new(namespace.clone(), name.clone()));
        let candidates = room.peers.candidates(&pod.labels).filter_map(named);
        let selecting = candidates
            .filter(|peer| peer::selector(peer).is_some_and(|selector| selects(selector, &pod.labels)));
        selecting.min_by_key(|peer| peer::seniority(peer))
    }

    /// The PeerAuthentication in force for a whole namespace; that of the root namespace is the mesh's.
    pub(super) fn peer_in_force(&self, namespace: &Arc<str>) -> Option<&PeerAuthentication> {
        let (_, _, name) = self.rooms.get(namespace)?.own_peers.first()?;
        self.peers.get(&Name::new(namespace.clone(), name.clone()))
    }

    /// Whether mesh and namespace refuse plaintext where a workload's own policy says nothing.
    pub(super) fn is_strict(&self, namespace: &Arc<str>) -> bool {
        let level = |namespace, above| {
            self.peer_in_force(namespace).map_or(above, |peer| peer::is_strict(peer.mode, above))
        };
        let mesh = level(&self.root_namespace, false);
        if *namespace == self.root_namespace { mesh } else { level(namespace, mesh) }
    }

    fn policy_namespaces<'a>(&'a self, own: &'a Arc<str>) -> impl Iterator<Item = &'a Arc<str>> {
        std::iter::once(own).chain(Some(&self.root_namespace).filter(|root| *root != own))
    }

    fn replace_namespace(&mut self, name: &Arc<str>, asks: bool, touched: &mut Touched) {
        let room = self.rooms.entry(name.clone()).or_default();
        if room.asks != asks {
            room.asks = asks;
            touch(&mut touched.pods, name, room.pods.all());
        }
        self.leave(name);
    }

    fn replace_node(&mut self, name: &Arc<str>, new: Option<Locality>, touched: &mut Touched) {
        if swap(&mut self.nodes, name, new).is_some() {
            touched.pods.extend(self.pods_on.get(name).into_iter().flatten().cloned());
        }
    }

    fn replace_pod(&mut self, name: &Name, new: Option<Pod>, touched: &mut Touched) {
        let Some(old) = swap(&mut self.pods, name, new) else { return };
        touched.pods.insert(name.clone());
        if let Some(old) = old {
            self.rooms.entry(name.namespace.clone()).or_default().pods.remove(&name.name, &old.labels);
            unlink(&mut self.pods_on, &old.node, name);
        }
        if let Some(new) = self.pods.get(name) {
            let room = self.rooms.entry(name.namespace.clone()).or_default();
            room.pods.insert(&name.name, &new.labels);
            self.pods_on.entry(new.node.clone()).or_default().insert(name.clone());
        }
        self.leave(&name.namespace);
    }

    fn replace_service(&mut self, name: &Name, new: Option<Service>, touched: &mut Touched) {
        let Some(old) = swap(&mut self.services, name, new) else { return };
        touched.services.insert(name.clone());
        let room = self.rooms.entry(name.namespace.clone()).or_default();
        room.services.remove(&name.name);
        let new = self.services.get(name);
        for service in old.iter().chain(new) {
            touch(&mut touched.pods, &name.namespace, room.pods.selected(&service.selector));
        }
        if let Some(new) = new {
            room.services.insert(&name.name, &new.selector);
        }
        for slice in self.slices_of_service.get(name).into_iter().flatten() {
            touched.slices.insert(slice.clone());
            touched.pods.extend(self.slices.get(slice).into_iter().flat_map(pods_in));
        }
        self.leave(&name.namespace);
    }

    fn replace_slice(&mut self, name: &Name, new: Option<EndpointSlice>, touched: &mut Touched) {
        let Some(old) = swap(&mut self.slices, name, new) else { return };
        touched.slices.insert(name.clone());
        let service = |service: &Arc<str>| Name::new(name.namespace.clone(), service.clone());
        if let Some(old) = &old {
            if let Some(old) = &old.service {
                unlink(&mut self.slices_of_service, &service(old), name);
            }
            for pod in pods_in(old) {
                unlink(&mut self.slices_of_pod, &pod, name);
                touched.pods.insert(pod);
            }
        }
        let Some(new) = self.slices.get(name) else { return };
        if let Some(new) = &new.service {
            self.slices_of_service.entry(service(new)).or_default().insert(name.clone());
        }
        for pod in pods_in(new) {
            self.slices_of_pod.entry(pod.clone()).or_default().insert(name.clone());
            touched.pods.insert(pod);
        }
    }

    fn replace_authorization(
        &mut self,
        name: &Name,
        new: Option<AuthorizationPolicy>,
        touched: &mut Touched,
    ) {
        let Some(old) = swap(&mut self.authorizations, name, new) else { return };
        touched.authorizations.insert(name.clone());
        let before = old.as_ref().and_then(authorization::attachment);
        let after = self.authorizations.get(name).and_then(authorization::attachment);
        if before == after {
            return;
        }
        for selector in before.into_iter().chain(after) {
            if name.namespace == self.root_namespace {
                for (namespace, room) in &self.rooms {
                    touch(&mut touched.pods, namespace, room.pods.selected(selector));
                }
            } else if let Some(room) = self.rooms.get(&name.namespace) {
                touch(&mut touched.pods, &name.namespace, room.pods.selected(selector));
            }
        }
        let room = self.rooms.entry(name.namespace.clone()).or_default();
        match after {
            Some(selector) => room.authorizations.insert(&name.name, selector),
            None => room.authorizations.remove(&name.name),
        }
        self.leave(&name.namespace);
    }

    fn replace_peer(&mut self, name: &Name, new: Option<PeerAuthentication>, touched: &mut Touched) {
        let Some(old) = swap(&mut self.peers, name, new) else { return };
        touched.peers.insert(name.clone());
        let room = self.rooms.entry(name.namespace.clone()).or_default();
        let mut for_all = false;
        let new = self.peers.get(name);
        for one in old.iter().chain(new) {
            match peer::selector(one) {
                Some(selector) => touch(&mut touched.pods, &name.namespace, room.pods.selected(selector)),
                None => for_all = true,
            }
        }
        if let Some(old) = &old {
            room.peers.remove(&name.name);
            room.own_peers.remove(&peer::seniority(old));
        }
        match new.map(|new| (new, peer::selector(new))) {
            Some((_, Some(selector))) => room.peers.insert(&name.name, selector),
            Some((new, None)) => drop(room.own_peers.insert(peer::seniority(new))),
            None => {}
        }
        if for_all && name.namespace == self.root_namespace {
            self.rooms.iter().for_each(|(namespace, room)| room.touch_all(namespace, touched));
        } else if for_all {
            room.touch_all(&name.namespace, touched);
        }
        self.leave(&name.namespace);
    }

    /// Forgets a namespace of which nothing is left.
    fn leave(&mut self, namespace: &Arc<str>) {
        if self.rooms.get(namespace).is_some_and(Room::is_empty) {
            self.rooms.remove(namespace);
        }
    }
}

impl Room {
    fn is_empty(&self) -> bool {
        !self.asks
            && self.pods.all().is_empty()
            && self.services.is_empty()
            && self.authorizations.is_empty()
            && self.peers.is_empty()
            && self.own_peers.is_empty()
    }

    fn touch_all(&self, namespace: &Arc<str>, touched: &mut Touched) {
        touch(&mut touched.pods, namespace, self.pods.all());
        touch(&mut touched.peers, namespace, self.peers.iter());
        let own = self.own_peers.iter().map(|(_, _, name)| name);
        touch(&mut touched.peers, namespace, own);
    }
}

/// The value that was there before; `None` if the new one is the same.
fn swap<K: Hash + Eq + Clone, V: PartialEq>(
    map: &mut HashMap<K, V>,
    key: &K,
    new: Option<V>,
) -> Option<Option<V>> {
    match new {
        Some(new) if map.get(key) == Some(&new) => None,
        Some(new) => Some(map.insert(key.clone(), new)),
        None => map.remove(key).map(Some),
    }
}

fn touch<'a>(
    touched: &mut BTreeSet<Name>,
    namespace: &Arc<str>,
    names: impl IntoIterator<Item = &'a Arc<str>>,
) {
    touched.extend(names.into_iter().map(|name| Name::new(namespace.clone(), name.clone())));
}

fn unlink<K: Hash + Eq>(map: &mut HashMap<K, BTreeSet<Name>>, key: &K, name: &Name) {
    if let Some(names) = map.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            map.remove(key);
        }
    }
}

fn pods_in(slice: &EndpointSlice) -> impl Iterator<Item = Name> {
    slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.clone())
}
