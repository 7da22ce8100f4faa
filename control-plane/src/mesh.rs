//! From a source to what is served: changes of objects go through the index into the store. What the index knows beside
//! that (who lives where, what became of each policy) is published for the CA and for the status page.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::watch;
use ztunnel_model::Identity;

use crate::ca::authenticate;
use crate::ca::revocation::Crl;
use crate::index::{Config, Enforcement, Index, PolicyStatus, Residents};
use crate::object::{Change, Key, Kind, Name};
use crate::resource::{self, Changes, Resource};
use crate::source::file::Mistake;
use crate::source::kube::{Cluster, Enforced, Verdict};
use crate::source::layers::Layers;
use crate::xds::store::Writer;

/// Name of the only resource of the kind `RevocationList`.
const REVOCATION_LIST: &str = "default";

const POLICIES: [Kind; 2] = [Kind::AuthorizationPolicy, Kind::PeerAuthentication];

const READING: &str = "invariant: the first reading is not aborted and does not panic";

/// The one who changes what the mesh is.
pub struct Mesh {
    layers: Layers,
    writer: Writer,
    view: View,
}

/// What the mesh is now. Cheap to clone.
#[derive(Clone)]
pub struct View(Arc<Shared>);

struct Shared {
    index: RwLock<Index>,
    residents: ArcSwap<Residents>,
    mistakes: ArcSwap<Vec<Mistake>>,
    /// Counts what was taken in.
    changes: watch::Sender<u64>,
}

/// A mesh of which nothing is read yet.
pub struct Planned {
    writer: Writer,
    view: View,
}

impl Planned {
    pub fn new(config: Config, writer: Writer) -> (Self, View) {
        let view = View(Arc::new(Shared {
            index: RwLock::new(Index::new(config)),
            residents: ArcSwap::default(),
            mistakes: ArcSwap::default(),
            changes: watch::Sender::new(0),
        }));
        (Self { writer, view: view.clone() }, view)
    }

    /// Reads the folders once and takes over what they say, so that whatever asks afterwards gets the whole. Takes as
    /// long as that: not for a thread that others wait for.
    pub fn start(self, folders: &[PathBuf]) -> Mesh {
        let (layers, first) = Layers::open(folders, None);
        self.complete(layers, first)
    }

    /// As `start`, with a cluster beside the folders: waits until it was heard of in whole, however long that takes.
    pub async fn start_with(self, folders: Vec<PathBuf>, cluster: Option<Cluster>) -> Mesh {
        let opened = tokio::task::spawn_blocking(move || Layers::open(&folders, cluster)).await;
        let (mut layers, mut first) = opened.expect(READING);
        first.extend(layers.complete().await);
        tokio::task::spawn_blocking(move || self.complete(layers, first)).await.expect(READING)
    }

    fn complete(self, layers: Layers, first: Vec<Change>) -> Mesh {
        let mut mesh = Mesh { layers, writer: self.writer, view: self.view };
        mesh.apply(first);
        mesh.writer.complete();
        mesh
    }
}

impl Mesh {
    /// Follows the source and the CA's revocations, for ever.
    pub async fn follow(mut self, mut revoked: watch::Receiver<Arc<Crl>>) {
        self.revoke(&revoked.borrow_and_update().clone());
        loop {
            tokio::select! {
                changes = self.layers.next() => self.apply(changes),
                Ok(()) = revoked.changed() => self.revoke(&revoked.borrow_and_update().clone()),
            }
        }
    }

    fn apply(&mut self, changes: Vec<Change>) {
        let objects = changes.len();
        let mut index = self.view.0.index.write().unwrap_or_else(PoisonError::into_inner);
        let differences = index.apply(changes);
        let residents = index.residents();
        drop(index);
        // Before the resources, so that a proxy that hears of a pod of its own may ask for the pod's certificate.
        self.view.0.residents.store(Arc::new(residents));
        let (set, removed) = (differences.set.len(), differences.removed.len());
        if !differences.is_empty() {
            self.writer.apply(differences);
        }
        tracing::info!(objects, set, removed, "applied");
        // The sources have logged them.
        self.view.0.mistakes.store(Arc::new(self.layers.mistakes().cloned().collect()));
        self.view.0.changes.send_modify(|count| *count += 1);
    }

    fn revoke(&mut self, crl: &Crl) {
        let resource = Resource {
            kind: resource::Kind::RevocationList,
            name: REVOCATION_LIST.into(),
            aliases: Vec::new(),
            belongs_to: Vec::new(),
            node: None,
            body: Bytes::copy_from_slice(crl.pem.as_bytes()),
        };
        self.writer.apply(Changes { set: vec![resource], removed: Vec::new() });
    }
}

impl View {
    /// What became of each policy, by kind, namespace and name.
    pub fn policies(&self) -> Vec<PolicyStatus> {
        let mut statuses: Vec<PolicyStatus> = self.index().statuses().collect();
        statuses.sort_by(|a, b| (a.kind, &a.namespace, &a.name).cmp(&(b.kind, &b.namespace, &b.name)));
        statuses
    }

    /// What is to be told of each policy, and of namespaces with a label that cannot be read, with the mistakes for which a change of it was not taken in.
    pub fn verdicts(&self) -> BTreeMap<Key, Verdict> {
        let mut verdicts = BTreeMap::new();
        for status in self.policies() {
            let Some(kind) = POLICIES.into_iter().find(|kind| kind.as_str() == status.kind) else { continue };
            let enforced = match status.enforcement {
                Enforcement::Full => Enforced::Fully,
                Enforcement::Partial => Enforced::Partly,
                Enforcement::None => Enforced::Not,
            };
            let reasons = status.reasons.iter().map(ToString::to_string).collect();
            let key = Key { kind, namespace: status.namespace, name: status.name };
            verdicts.insert(key, Verdict { enforced, reasons });
        }
        for Mistake { at, object, .. } in self.mistakes().iter() {
            let Some(key) = object.as_ref().filter(|key| POLICIES.contains(&key.kind)) else { continue };
            let nothing = || Verdict { enforced: Enforced::Not, reasons: Vec::new() };
            let verdict = verdicts.entry(key.clone()).or_insert_with(nothing);
            if !verdict.reasons.iter().any(|reason| reason.contains(&at.reason)) {
                verdict.reasons.push(format!("{}: {}", at.path, at.reason));
            }
            if verdict.enforced == Enforced::Fully {
                verdict.enforced = Enforced::Partly;
            }
        }
        for (name, reason) in self.index().misread_namespaces() {
            let key = Key::new(Kind::Namespace, &Name::new("", name.clone()));
            verdicts.insert(key, Verdict { enforced: Enforced::Not, reasons: vec![reason] });
        }
        verdicts
    }

    pub fn mistakes(&self) -> Arc<Vec<Mistake>> {
        self.0.mistakes.load_full()
    }

    /// All that there are, by name.
    pub fn namespaces(&self) -> Vec<Arc<str>> {
        self.index().namespaces().cloned().collect()
    }

    /// Changes whenever something was taken in.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl authenticate::Residents for View {
    fn may_hold(&self, node: &str, identity: &Identity) -> bool {
        self.0.residents.load().contains(node, identity)
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(Self::changes(self))
    }
}
