//! What the process still waits for before it is ready.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Ready when nothing is pending. Clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, usize>>>);

/// Something that is awaited, until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it says that it is ready"]
pub struct Pending {
    readiness: Readiness,
    name: String,
}

impl Readiness {
    /// The same name may be pending several times; it is told once.
    pub fn register(&self, name: &str) -> Pending {
        *self.names().entry(name.to_owned()).or_default() += 1;
        Pending { readiness: self.clone(), name: name.to_owned() }
    }

    /// What is awaited, sorted; nothing when the process is ready.
    pub fn pending(&self) -> Vec<String> {
        self.names().keys().cloned().collect()
    }

    fn names(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, usize>> {
        // A panic cannot leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    pub fn ready(self) {}
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut pending = self.readiness.names();
        if let Some(count) = pending.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_told_once() {
        let readiness = Readiness::default();
        assert!(readiness.pending().is_empty());
        let state = readiness.register("state manager");
        let proxy = readiness.clone().register("proxy");
        let again = readiness.register("proxy");
        assert_eq!(readiness.pending(), ["proxy", "state manager"]);
        proxy.ready();
        assert_eq!(readiness.pending(), ["proxy", "state manager"]);
        again.ready();
        assert_eq!(readiness.pending(), ["state manager"]);
        drop(state);
        assert!(readiness.pending().is_empty());
    }
}
