//! The CA's roots in a ConfigMap of every namespace, where whoever is to trust the control plane expects them.
//!
//! A ConfigMap that another one made is left as it is, whatever it says: it is Istio's under an istiod, or the operator's.
//! Ours are made again when they are deleted, and corrected when they are edited.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use super::Pauses;
use super::call::{Api, MANAGED_BY, MANAGER, Resource, Trouble};
use crate::object::Name;

const CONFIG_MAPS: Resource = Resource::new("", "configmaps");
const KEY: &str = "root-cert.pem";
/// How often all of them are looked at, if they are few; each one adds a little, so that the cost stays the same.
const LOOK: Duration = Duration::from_secs(10);
const LOOK_EACH: Duration = Duration::from_millis(20);
/// After one was written.
const PACE: Duration = Duration::from_millis(20);
/// Changes that come close together are looked at once.
const SETTLE: Duration = Duration::from_millis(200);

/// What the publisher is told.
pub struct Wanted {
    /// The roots, in PEM, as they are now.
    pub roots: Box<dyn Fn() -> String + Send + Sync>,
    /// All namespaces that there are now.
    pub namespaces: Box<dyn Fn() -> Vec<Arc<str>> + Send + Sync>,
    /// Change when one of them may differ.
    pub changes: [watch::Receiver<u64>; 2],
}

/// Keeps the ConfigMaps right.
pub struct RootPublisher {
    api: Api,
    name: String,
    /// The namespace that comes first.
    first: String,
    wanted: Wanted,
    look: Duration,
    /// Where a ConfigMap was looked at, and with which roots.
    known: HashSet<Arc<str>>,
    published: String,
    /// Of which one was told that it is another's.
    told: HashSet<Arc<str>>,
    trouble: Option<String>,
}

impl RootPublisher {
    pub fn new(api: Api, name: String, first: String, wanted: Wanted) -> Self {
        Self {
            api,
            name,
            first,
            wanted,
            look: LOOK,
            known: HashSet::new(),
            published: String::new(),
            told: HashSet::new(),
            trouble: None,
        }
    }

    /// For ever.
    pub async fn run(&mut self) {
        let mut pauses = Pauses::default();
        loop {
            match self.all().await {
                Ok(()) => {
                    self.is_well();
                    pauses = Pauses::default();
                    self.until_next_look().await;
                }
                Err(trouble) => {
                    self.complain(&trouble);
                    sleep(pauses.next()).await;
                }
            }
        }
    }

    /// Sees to what changes until all are to be looked at again.
    async fn until_next_look(&mut self) {
        let each = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        let look = self.look.max(LOOK_EACH.saturating_mul(each));
        let mut look = std::pin::pin!(sleep(look.mul_f64(rand::random_range(0.8..=1.0))));
        loop {
            let [one, other] = &mut self.wanted.changes;
            tokio::select! {
                () = &mut look => return,
                Ok(()) = one.changed() => {}
                Ok(()) = other.changed() => {}
            }
            sleep(SETTLE.min(self.look)).await;
            let roots = (self.wanted.roots)();
            if roots != self.published {
                return;
            }
            for namespace in self.namespaces() {
                if self.known.contains(&namespace) {
                    continue;
                }
                let held = match self.api.get(CONFIG_MAPS, &Name::new(namespace.clone(), &*self.name)).await {
                    Ok(held) => Some(held),
                    Err(Trouble::Absent(_)) => None,
                    Err(trouble) => return self.complain(&trouble),
                };
                match self.one(&namespace, held.as_ref(), &roots).await {
                    Err(trouble) if trouble.is_of_one_object() => self.complain(&trouble),
                    Err(trouble) => return self.complain(&trouble),
                    Ok(()) => {}
                }
            }
        }
    }

    async fn all(&mut self) -> Result<(), Trouble> {
        let roots = (self.wanted.roots)();
        let mut held = BTreeMap::new();
        let mut next = String::new();
        loop {
            let page = self.api.list_named(CONFIG_MAPS, &self.name, &next).await?;
            let Some(items) = page["items"].as_array() else {
                return Err(Trouble::Unreadable("a list without items".to_owned()));
            };
            for item in items {
                let namespace = item["metadata"]["namespace"].as_str().unwrap_or_default();
                held.insert(namespace.to_owned(), item.clone());
            }
            page["metadata"]["continue"].as_str().unwrap_or_default().clone_into(&mut next);
            if next.is_empty() {
                break;
            }
        }
        self.known.clear();
        let mut first = Ok(());
        for namespace in self.namespaces() {
            match self.one(&namespace, held.get(&*namespace), &roots).await {
                // What is wrong in one namespace keeps no other from its own; an API server that is away is asked no further.
                Err(trouble) if trouble.is_of_one_object() => first = first.and(Err(trouble)),
                done => done?,
            }
        }
        first?;
        self.published = roots;
        let known = &self.known;
        self.told.retain(|namespace| known.contains(namespace));
        Ok(())
    }

    async fn one(&mut self, namespace: &Arc<str>, held: Option<&Value>, roots: &str) -> Result<(), Trouble> {
        let is_right = held.is_some_and(|held| held["data"][KEY] == *roots);
        match held {
            Some(held) if !is_ours(held) => self.leave(namespace, is_right),
            Some(_) if is_right => {}
            held => {
                if let Err(trouble) = self.write(namespace, held.is_some(), roots).await {
                    let is_ending =
                        matches!(&trouble, Trouble::Denied(denied) if denied.is_of_ending_namespace());
                    match trouble {
                        // The namespace has gone meanwhile, or someone was faster: the next look will tell.
                        Trouble::Absent(_) | Trouble::Conflict(_) => {}
                        _ if is_ending => {}
                        trouble => return Err(trouble),
                    }
                } else {
                    tracing::info!(%namespace, name = self.name, "root certificates published");
                }
                sleep(PACE).await;
            }
        }
        self.known.insert(namespace.clone());
        Ok(())
    }

    async fn write(&self, namespace: &Arc<str>, force: bool, roots: &str) -> Result<Value, Trouble> {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": self.name, "namespace": &**namespace, "labels": {MANAGED_BY: MANAGER}},
            "data": {KEY: roots},
        });
        self.api.apply(CONFIG_MAPS, &Name::new(namespace.clone(), &*self.name), &object, force).await
    }

    fn leave(&mut self, namespace: &Arc<str>, is_right: bool) {
        if !self.told.insert(namespace.clone()) {
            return;
        }
        let name = &self.name;
        if is_right {
            tracing::info!(%namespace, name, "another one publishes these root certificates; its ConfigMap is left alone");
        } else {
            tracing::warn!(
                %namespace,
                name,
                "the ConfigMap is another one's and holds other root certificates: it is left alone, and whoever trusts it does \
                 not trust this CA; delete it, or give another name with --root-configmap"
            );
        }
    }

    /// The first one, and the others by name.
    fn namespaces(&self) -> Vec<Arc<str>> {
        let mut all = (self.wanted.namespaces)();
        all.sort_by(|a, b| (**a != *self.first, a).cmp(&(**b != *self.first, b)));
        all
    }

    fn complain(&mut self, trouble: &Trouble) {
        let text = trouble.to_string();
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(%trouble, name = self.name, "the root certificates cannot be published everywhere");
            self.trouble = Some(text);
        }
    }

    fn is_well(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!(name = self.name, "the root certificates are published everywhere");
        }
    }
}

/// Made by us; someone may have taken the label away. What Istio has marked is Istio's.
fn is_ours(held: &Value) -> bool {
    let metadata = &held["metadata"];
    let managers = metadata["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_marked = metadata["labels"][MANAGED_BY] == *MANAGER
        || managers.iter().any(|one| one["manager"] == *MANAGER && one["operation"] == "Apply");
    is_marked && metadata["labels"]["istio.io/config"] != "true"
}

#[cfg(test)]
mod tests;
