//! The connections of a pod on one worker, for the configuration dump.
//!
//! Behind a lock because the dump is made on the control thread; it is taken when a connection opens and closes, and
//! nobody but a dump ever contends for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Direction {
    Inbound,
    Outbound,
}

/// One live connection (interop.md section 11.5, `workloadState`).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveConnection {
    #[serde(skip)]
    pub direction: Direction,
    pub src: SocketAddr,
    pub original_dst: Option<String>,
    pub actual_dst: SocketAddr,
    pub protocol: &'static str,
}

#[derive(Clone, Default)]
pub struct Live(Arc<Mutex<Register>>);

#[derive(Default)]
struct Register {
    connections: BTreeMap<u64, LiveConnection>,
    next: u64,
}

/// Keeps a connection listed for as long as it lives.
pub struct Listed {
    live: Live,
    key: u64,
}

impl Live {
    pub(super) fn add(&self, connection: LiveConnection) -> Listed {
        let mut register = self.register();
        let key = register.next;
        register.next += 1;
        register.connections.insert(key, connection);
        drop(register);
        Listed { live: self.clone(), key }
    }

    pub fn list(&self) -> Vec<LiveConnection> {
        self.register().connections.values().cloned().collect()
    }

    pub fn is_empty(&self) -> bool {
        self.register().connections.is_empty()
    }

    /// Every change is complete before the lock is released, so a panic elsewhere leaves nothing half-done.
    fn register(&self) -> MutexGuard<'_, Register> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.live.register().connections.remove(&self.key);
    }
}
