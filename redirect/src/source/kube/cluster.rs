//! What is known of this node's pods and of all namespaces. An object goes when the API server says so, or has listed all of
//! its kind without it.

use std::collections::{BTreeSet, HashMap};

use reflector::Told;
use serde_json::Value;

use super::object::{Kind, Mode, Seen};

#[derive(Debug, Default)]
pub(super) struct Cluster {
    namespaces: Objects<Option<Mode>>,
    /// By uid: a pod and its successor of the same name may both be known for a moment.
    pods: Objects<Seen>,
}

#[derive(Debug)]
struct Objects<V> {
    held: HashMap<String, Held<V>>,
    /// Counts the lists.
    listing: u64,
    is_complete: bool,
}

#[derive(Debug)]
struct Held<V> {
    listing: u64,
    /// It was asked for, and no watch or list has told of it.
    is_learned: bool,
    value: V,
}

impl<V> Default for Objects<V> {
    fn default() -> Self {
        Self { held: HashMap::new(), listing: 0, is_complete: false }
    }
}

impl Cluster {
    pub(super) fn take(&mut self, kind: Kind, told: Told) {
        match kind {
            Kind::Namespace => self.namespaces.take(told, |object| {
                let name = object["metadata"]["name"].as_str()?.to_owned();
                Some((name, Mode::of(object)))
            }),
            Kind::Pod => self.pods.take(told, |object| {
                let pod = Seen::read(object)?;
                Some((pod.uid.clone(), pod))
            }),
        }
    }

    /// Takes in an object that was asked for, unless it was heard of meanwhile.
    pub(super) fn learn_namespace(&mut self, name: &str, object: &Value) {
        self.namespaces.learn(name, Mode::of(object));
    }

    pub(super) fn learn_pod(&mut self, pod: Seen) {
        let uid = pod.uid.clone();
        self.pods.learn(&uid, pod);
    }

    /// The sandbox of a pod is gone. If only that has told of the pod, nothing will tell of its end.
    pub(super) fn unlearn_pod(&mut self, uid: &str) -> bool {
        let is_learned = self.pods.held.get(uid).is_some_and(|held| held.is_learned);
        is_learned && self.pods.held.remove(uid).is_some()
    }

    /// Every pod and every namespace was heard of once.
    pub(super) fn is_complete(&self) -> bool {
        self.knows_namespaces() && self.pods.is_complete
    }

    pub(super) fn knows_namespaces(&self) -> bool {
        self.namespaces.is_complete
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &Seen> {
        self.pods.held.values().map(|held| &held.value)
    }

    pub(super) fn pod(&self, uid: &str) -> Option<&Seen> {
        self.pods.held.get(uid).map(|held| &held.value)
    }

    /// Where the uid is not told, it is the one that stays.
    pub(super) fn pod_named(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<&Seen> {
        let is_named = |pod: &&Seen| pod.namespace == namespace && pod.name == name;
        match uid {
            Some(uid) => self
                .pod(uid)
                .filter(is_named)
                .or_else(|| self.pods().find(|pod| is_named(pod) && pod.known_as == uid)),
            None => self.pods().filter(is_named).min_by_key(|pod| pod.leaving),
        }
    }

    /// `None` while there is no such namespace; inside, what it says.
    pub(super) fn namespace(&self, name: &str) -> Option<Option<&Mode>> {
        self.namespaces.held.get(name).map(|held| held.value.as_ref())
    }

    pub(super) fn mode(&self, namespace: &str) -> Option<&Mode> {
        self.namespace(namespace).flatten()
    }

    pub(super) fn enrolled(&self) -> BTreeSet<String> {
        let held = self.namespaces.held.iter();
        let enrolled = held.filter(|(_, held)| held.value == Some(Mode::Ambient));
        enrolled.map(|(name, _)| name.clone()).collect()
    }
}

impl<V> Objects<V> {
    fn take(&mut self, told: Told, read: impl Fn(&Value) -> Option<(String, V)>) {
        let listing = self.listing;
        match told {
            Told::Listing => self.listing += 1,
            Told::Set(object) => match read(&object) {
                Some((key, value)) => {
                    drop(self.held.insert(key, Held { listing, is_learned: false, value }));
                }
                None => tracing::warn!(%object, "an object without a name or uid is ignored"),
            },
            Told::Gone(object) => {
                if let Some((key, _)) = read(&object) {
                    self.held.remove(&key);
                }
            }
            Told::Listed => {
                self.is_complete = true;
                self.held.retain(|_, held| held.listing >= listing);
            }
            // Neither kind is ever absent.
            Told::Absent => {}
        }
    }

    fn learn(&mut self, key: &str, value: V) {
        let listing = self.listing;
        self.held.entry(key.to_owned()).or_insert(Held { listing, is_learned: true, value });
    }
}
