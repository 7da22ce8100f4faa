//! From a source to what is served: changes of objects go through the index into the store. What the index knows beside
//! that (who lives where, what became of each policy) is published for the CA and for the status page.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::watch;
use ztunnel_model::Identity;

use crate::ca::authenticate;
use crate::ca::revocation::Crl;
use crate::index::{Config, Index, PolicyStatus, Residents};
use crate::object::Change;
use crate::resource::{self, Changes, Resource};
use crate::source::file::Mistake;
use crate::source::kube::Cluster;
use crate::source::layers::Layers;
use crate::xds::store::Writer;

/// Name of the only resource of the kind `RevocationList`.
const REVOCATION_LIST: &str = "default";

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

    pub fn mistakes(&self) -> Arc<Vec<Mistake>> {
        self.0.mistakes.load_full()
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl authenticate::Residents for View {
    fn may_hold(&self, node: &str, identity: &Identity) -> bool {
        self.0.residents.load().contains(node, identity)
    }
}
