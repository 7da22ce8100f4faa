//! Pods as the configuration dump shows them; written by the manager, read by whoever asks for a dump.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redirect::client::Pod;
use serde_json::{Value, json};

use crate::proxy::{Direction, Live, PodFacts};

#[derive(Clone, Default)]
pub struct View(Arc<Mutex<BTreeMap<String, Shown>>>);

#[derive(Clone)]
pub(super) struct Shown {
    name: String,
    namespace: String,
    service_account: String,
    /// The connections on every worker; `None` while the pod is not served.
    live: Option<Vec<Live>>,
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
    /// A pod that is not served yet.
    pub(super) fn pending(pod: &Pod) -> Self {
        Self::of((&pod.name, &pod.namespace, &pod.service_account), None)
    }

    pub(super) fn served(pod: &PodFacts, live: Vec<Live>) -> Self {
        Self::of((&pod.name, &pod.namespace, &pod.service_account), Some(live))
    }

    fn of((name, namespace, service_account): (&str, &str, &str), live: Option<Vec<Live>>) -> Self {
        let [name, namespace, service_account] = [name, namespace, service_account].map(str::to_owned);
        Self { name, namespace, service_account, live }
    }

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
