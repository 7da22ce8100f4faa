//! Pods as the configuration dump shows them; written by the manager, read by whoever asks for a dump.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::proxy::{Direction, Live};

#[derive(Clone, Default)]
pub struct View(Arc<Mutex<BTreeMap<String, Shown>>>);

#[derive(Clone)]
pub(super) struct Shown {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    /// The connections on every worker; `None` while the pod is not served.
    pub live: Option<Vec<Live>>,
}

impl View {
    /// `workloadState` of the configuration dump (interop.md section 11.5).
    pub fn dump(&self) -> Value {
        Value::Object(self.pods().iter().map(|(uid, pod)| (uid.clone(), pod.dump())).collect())
    }

    pub(super) fn show(&self, uid: &str, pod: Shown) {
        self.pods().insert(uid.to_owned(), pod);
    }

    pub(super) fn forget(&self, uid: &str) {
        self.pods().remove(uid);
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Shown>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    fn dump(&self) -> Value {
        let all: Vec<_> = self.live.iter().flatten().flat_map(Live::list).collect();
        let of = |direction: Direction| -> Vec<_> {
            all.iter().filter(|connection| connection.direction == direction).collect()
        };
        json!({
            "state": if self.live.is_some() { "Up" } else { "Pending" },
            "connections": { "inbound": of(Direction::Inbound), "outbound": of(Direction::Outbound) },
            "info": {
                "name": self.name,
                "namespace": self.namespace,
                "serviceAccount": self.service_account,
            },
        })
    }
}
