//! What the proxy knows of the mesh: one writer, immutable snapshots, many readers.
//!
//! A connection reads one snapshot, once, and decides everything with it. Lower layers never wait on an update and an
//! update never waits on a connection. Knows nothing of who feeds it but `feed`, and nothing of who reads it.

pub mod apply;
pub mod demand;
pub mod discovery;
pub mod feed;
pub mod snapshot;
mod table;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use ztunnel_model::codec::static_config::StaticConfig;

pub use apply::{Applier, Batch, Changes, Missing, Origin};
pub use demand::Demand;
pub use snapshot::{Backends, Endpoint, Snapshot};

/// Makes the two ends of the state; the first snapshot is empty.
pub fn new() -> (Writer, Reader) {
    on_node(None)
}

/// As `new`, for a node: only its workloads can be found as local ones.
pub fn on_node(node: Option<&str>) -> (Writer, Reader) {
    let applier = Applier::new(node);
    let current = Arc::new(ArcSwap::from_pointee(applier.snapshot()));
    let (published, generation) = watch::channel(0);
    let writer =
        Writer { applier, current: current.clone(), published, unpublished: false, retired: Vec::new() };
    (writer, Reader { current, generation })
}

/// The only way to change the state. There is one, and it cannot be cloned.
pub struct Writer {
    applier: Applier,
    current: Arc<ArcSwap<Snapshot>>,
    published: watch::Sender<u64>,
    unpublished: bool,
    /// Snapshots that somebody may still read. They are held here so that the last reader does not have to free what
    /// only they hold, which may be as much as the mesh; that is done here, where nobody waits.
    retired: Vec<Arc<Snapshot>>,
}

impl Writer {
    /// Applies what an origin says. Publishes it, and wakes whoever watches, when it changes anything.
    pub fn apply(&mut self, origin: Origin, batch: Batch) -> Changes {
        let changes = self.prepare(origin, batch);
        Changes { missing: self.publish(), ..changes }
    }

    /// As `apply`, without publishing. A large state that arrives in pieces is ready in half the time when nobody reads
    /// it in between: what is not shared with a snapshot need not be copied.
    pub fn prepare(&mut self, origin: Origin, batch: Batch) -> Changes {
        let changes = self.applier.apply(origin, batch);
        self.unpublished |= changes.is_some();
        changes.unwrap_or_default()
    }

    /// Makes the static configuration this one; what discovery said stays.
    pub fn replace_static(&mut self, config: &StaticConfig) -> Changes {
        let changes = self.applier.replace_static(config);
        self.unpublished |= changes.is_some();
        Changes { missing: self.publish(), ..changes.unwrap_or_default() }
    }

    /// Publishes what was prepared, if anything was.
    pub fn publish(&mut self) -> Missing {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        if std::mem::take(&mut self.unpublished) {
            self.retired.push(self.current.swap(Arc::new(self.applier.snapshot())));
            self.published.send_modify(|generation| *generation += 1);
        }
        self.applier.look_for_missing()
    }
}

#[derive(Clone)]
pub struct Reader {
    current: Arc<ArcSwap<Snapshot>>,
    generation: watch::Receiver<u64>,
}

impl Reader {
    /// The state as of now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Waits for the next publication; `false` when there will be none.
    pub async fn changed(&mut self) -> bool {
        self.generation.changed().await.is_ok()
    }
}
