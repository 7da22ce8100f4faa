//! What has been given out, so that only differences are given out again.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::resource::{Changes, Kind, Resource};

#[derive(Debug, Default)]
pub(super) struct Emitted {
    bodies: HashMap<(Kind, Arc<str>), Bytes>,
}

impl Emitted {
    /// Gives a resource out if it is new or its body differs.
    pub(super) fn set(&mut self, resource: Resource, changes: &mut Changes) {
        let key = (resource.kind, resource.name.clone());
        if self.bodies.get(&key) != Some(&resource.body) {
            self.bodies.insert(key, resource.body.clone());
            changes.set.push(resource);
        }
    }

    pub(super) fn contains(&self, kind: Kind, name: &Arc<str>) -> bool {
        self.bodies.contains_key(&(kind, name.clone()))
    }

    pub(super) fn remove(&mut self, kind: Kind, name: &Arc<str>, changes: &mut Changes) {
        if self.bodies.remove(&(kind, name.clone())).is_some() {
            changes.removed.push((kind, name.clone()));
        }
    }
}
