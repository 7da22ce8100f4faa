//! What is known of the objects in the cluster, so that what is gone after a time of silence is noticed, and what was good
//! outlives a mistake.

use std::collections::{BTreeMap, HashMap};

use reflector::Told;

use super::resource::{self, Resource};
use crate::object::{Change, Key, Kind, Name};
use crate::source::file::{Manifest, Mistake};

#[derive(Debug, Default)]
pub(super) struct Held {
    kinds: HashMap<Kind, Objects>,
    mistakes: BTreeMap<Key, Vec<Mistake>>,
}

#[derive(Debug, Default)]
struct Objects {
    held: HashMap<Name, Entry>,
    /// Counts the lists; an object that a whole list did not name is gone.
    listing: u64,
    /// All of them were heard of once.
    is_complete: bool,
}

#[derive(Debug)]
struct Entry {
    listing: u64,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It could not be read.
    Nothing,
    /// With mistakes.
    Bad,
    Good,
}

impl Held {
    pub(super) fn is_complete(&self, kinds: impl IntoIterator<Item = Kind>) -> bool {
        kinds.into_iter().all(|kind| self.kinds.get(&kind).is_some_and(|one| one.is_complete))
    }

    pub(super) fn mistakes(&self) -> Vec<Mistake> {
        self.mistakes.values().flatten().cloned().collect()
    }

    /// Takes in what was told; whether the mistakes differ is the answer.
    pub(super) fn take(&mut self, kind: Kind, told: Told, changes: &mut Vec<Change>) -> bool {
        let objects = self.kinds.entry(kind).or_default();
        match told {
            Told::Listing => objects.listing += 1,
            Told::Set(object) => return self.set(kind, Resource::of(kind).read(object), changes),
            Told::Gone(object) => return self.remove(kind, &resource::name(&object), changes),
            Told::Listed => {
                objects.is_complete = true;
                let listing = objects.listing;
                let gone = objects.held.iter().filter(|(_, entry)| entry.listing < listing);
                let mut gone: Vec<Name> = gone.map(|(name, _)| name.clone()).collect();
                gone.sort();
                let differ = gone.iter().map(|name| self.remove(kind, name, changes));
                return differ.fold(false, |some, one| some | one);
            }
            Told::Absent => objects.is_complete = true,
        }
        false
    }

    fn set(&mut self, kind: Kind, manifest: Manifest, changes: &mut Vec<Change>) -> bool {
        let Some(key) = manifest.key else {
            manifest.mistakes.iter().for_each(|at| tracing::warn!("{at}"));
            return false;
        };
        let objects = self.kinds.entry(kind).or_default();
        let name = Name { namespace: key.namespace.clone(), name: key.name.clone() };
        let nothing = Entry { listing: 0, standing: Standing::Nothing };
        let entry = objects.held.entry(name).or_insert(nothing);
        entry.listing = objects.listing;
        let is_good = manifest.mistakes.is_empty();
        if let Some(object) = manifest.object.filter(|_| is_good || entry.standing != Standing::Good) {
            entry.standing = if is_good { Standing::Good } else { Standing::Bad };
            changes.push(Change::Set(object));
        }
        let found = manifest.mistakes.into_iter();
        let found: Vec<Mistake> =
            found.map(|at| Mistake { document: 0, at, object: Some(key.clone()) }).collect();
        if found.is_empty() {
            return self.mistakes.remove(&key).is_some();
        }
        if self.mistakes.get(&key) == Some(&found) {
            return false;
        }
        found.iter().for_each(|mistake| tracing::warn!("{mistake}"));
        self.mistakes.insert(key, found);
        true
    }

    fn remove(&mut self, kind: Kind, name: &Name, changes: &mut Vec<Change>) -> bool {
        let key = Key::new(kind, name);
        let entry = self.kinds.entry(kind).or_default().held.remove(name);
        if entry.is_some_and(|entry| entry.standing != Standing::Nothing) {
            changes.push(Change::Remove(key.clone()));
        }
        self.mistakes.remove(&key).is_some()
    }
}
