//! What the workers want of the agent: sockets, per pod and worker. Demands of one pod and worker are merged, so what
//! waits is bounded by pods times workers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Shared by all workers and the manager. The lock is taken when a stock runs low, not per connection.
#[derive(Clone, Default)]
pub struct Demands(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<BTreeMap<(String, usize), u32>>,
    came: Notify,
}

impl Demands {
    pub fn add(&self, uid: &str, worker: usize, count: u32) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting.entry((uid.to_owned(), worker)).or_default() += count;
        drop(waiting);
        self.0.came.notify_one();
    }

    /// All demands that wait; waits for one if there is none.
    pub async fn take(&self) -> BTreeMap<(String, usize), u32> {
        loop {
            let came = self.0.came.notified();
            let waiting = std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !waiting.is_empty() {
                return waiting;
            }
            came.await;
        }
    }
}
