//! Several folders as one source: of an object that stands in more than one, the last folder's counts.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use futures::future::select_all;

use super::file::{Folder, Mistake};
use crate::object::{Change, Key, Object};

pub struct Layers {
    folders: Vec<Folder>,
    merged: Merged,
    mistakes: Vec<Vec<Mistake>>,
}

impl Layers {
    /// Reads all folders; from here on no change is missed.
    pub fn open(paths: &[PathBuf]) -> (Self, Vec<Change>) {
        let mut layers = Self { folders: Vec::new(), merged: Merged::default(), mistakes: Vec::new() };
        let mut changes = Vec::new();
        for (layer, path) in paths.iter().enumerate() {
            let (folder, found, mistakes) = Folder::open(path);
            layers.folders.push(folder);
            layers.mistakes.push(mistakes);
            changes.extend(found.into_iter().filter_map(|change| layers.merged.merge(layer, change)));
        }
        (layers, changes)
    }

    /// Waits until objects or mistakes differ. Nothing is lost when the waiting is given up.
    pub async fn next(&mut self) -> Vec<Change> {
        if self.folders.is_empty() {
            return std::future::pending().await;
        }
        let waiting = self.folders.iter_mut().map(|folder| Box::pin(folder.next()));
        let ((changes, mistakes), layer, _) = select_all(waiting).await;
        self.mistakes[layer] = mistakes;
        changes.into_iter().filter_map(|change| self.merged.merge(layer, change)).collect()
    }

    /// All that there are now.
    pub fn mistakes(&self) -> impl Iterator<Item = &Mistake> {
        self.mistakes.iter().flatten()
    }
}

/// Every object by the folders that have it; the last one counts.
#[derive(Default)]
struct Merged(HashMap<Key, BTreeMap<usize, Object>>);

impl Merged {
    /// What a change of one folder changes in the whole.
    fn merge(&mut self, layer: usize, change: Change) -> Option<Change> {
        match change {
            Change::Set(object) => {
                let layers = self.0.entry(object.key()).or_default();
                layers.insert(layer, object.clone());
                let hidden = layers.range(layer + 1..).next().is_some();
                (!hidden).then_some(Change::Set(object))
            }
            Change::Remove(key) => {
                let layers = self.0.get_mut(&key)?;
                layers.remove(&layer)?;
                let hidden = layers.range(layer + 1..).next().is_some();
                match layers.last_key_value() {
                    Some(_) if hidden => None,
                    Some((_, below)) => Some(Change::Set(below.clone())),
                    None => {
                        self.0.remove(&key);
                        Some(Change::Remove(key))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::object::{Kind, Namespace};

    fn namespace(label: &str) -> Object {
        let labels = [("from".to_owned(), label.to_owned())].into();
        Object::Namespace(Namespace { name: Arc::from("shop"), labels })
    }

    fn remove() -> Change {
        Change::Remove(Key { kind: Kind::Namespace, namespace: "".into(), name: "shop".into() })
    }

    #[test]
    fn the_last_folder_counts_and_what_it_hid_comes_back() {
        let mut merged = Merged::default();
        let set = |label| Change::Set(namespace(label));
        assert_eq!(merged.merge(0, set("user")), Some(set("user")));
        assert_eq!(merged.merge(1, set("cluster")), Some(set("cluster")));
        assert_eq!(merged.merge(0, set("edited")), None, "hidden");
        assert_eq!(merged.merge(1, remove()), Some(set("edited")));
        assert_eq!(merged.merge(1, remove()), None, "it was not there any more");
        assert_eq!(merged.merge(0, remove()), Some(remove()));
        assert_eq!(merged.merge(1, set("cluster")), Some(set("cluster")));
        assert_eq!(merged.merge(0, set("user")), None);
        assert_eq!(merged.merge(0, remove()), None);
    }
}
