//! What the proxy knows of the mesh: one writer, immutable snapshots, many readers.
//!
//! A connection reads one snapshot, once, and decides everything with it. Lower layers never wait on an update and an
//! update never waits on a connection. Knows nothing of who feeds it but `feed`, and nothing of who reads it.

pub mod apply;
pub mod feed;
pub mod snapshot;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use snapshot::{Endpoint, Snapshot};

/// Makes the two ends of the state; the first snapshot is empty.
pub fn new() -> (Writer, Reader) {
    let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (published, generation) = watch::channel(0);
    (Writer { current: current.clone(), published }, Reader { current, generation })
}

/// The only way to change the state. There is one, and it cannot be cloned.
pub struct Writer {
    current: Arc<ArcSwap<Snapshot>>,
    published: watch::Sender<u64>,
}

impl Writer {
    /// Replaces the state and wakes whoever watches it.
    pub fn publish(&mut self, next: Snapshot) {
        self.current.store(Arc::new(next));
        self.published.send_modify(|generation| *generation += 1);
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
