//! Who lives on which node: the identities that a node's proxy may ask certificates for.

use std::collections::HashMap;
use std::sync::Arc;

use ztunnel_model::Identity;

/// Identities, and how many meshed pods have each.
type Counts = HashMap<Identity, usize>;

/// A snapshot; cloning it costs a counter. Nodes that did not change are shared between snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Residents {
    nodes: Arc<HashMap<Arc<str>, Arc<Counts>>>,
}

impl Residents {
    /// Whether a meshed pod of this identity is on the node.
    pub fn contains(&self, node: &str, identity: &Identity) -> bool {
        self.nodes.get(node).is_some_and(|identities| identities.contains_key(identity))
    }

    pub fn on(&self, node: &str) -> impl Iterator<Item = &Identity> {
        self.nodes.get(node).into_iter().flat_map(|identities| identities.keys())
    }

    pub(super) fn add(&mut self, node: &Arc<str>, identity: &Identity) {
        let identities = Arc::make_mut(&mut self.nodes).entry(node.clone()).or_default();
        *Arc::make_mut(identities).entry(identity.clone()).or_default() += 1;
    }

    pub(super) fn remove(&mut self, node: &Arc<str>, identity: &Identity) {
        let nodes = Arc::make_mut(&mut self.nodes);
        let Some(identities) = nodes.get_mut(node) else { return };
        let left = Arc::make_mut(identities);
        if let Some(count) = left.get_mut(identity) {
            *count -= 1;
            if *count == 0 {
                left.remove(identity);
            }
        }
        if left.is_empty() {
            nodes.remove(node);
        }
    }
}
