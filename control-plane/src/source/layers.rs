//! A cluster and several folders as one source: of an object that stands in more than one, the last folder's counts, and
//! the cluster's before all folders'. A folder is given to this process by who runs it, and is to be able to mend what the
//! cluster says.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use futures::future::select_all;

use super::file::{Folder, Mistake};
use super::kube::Cluster;
use crate::object::{Change, Key, Object};

/// The layer of the cluster; those of the folders follow.
const CLUSTER: usize = 0;

pub struct Layers {
    cluster: Option<Cluster>,
    folders: Vec<Folder>,
    merged: Merged,
    /// Of each layer.
    mistakes: Vec<Vec<Mistake>>,
}

impl Layers {
    /// Reads all folders; from here on no change is missed.
    pub fn open(paths: &[PathBuf], cluster: Option<Cluster>) -> (Self, Vec<Change>) {
        let mut layers =
            Self { cluster, folders: Vec::new(), merged: Merged::default(), mistakes: vec![Vec::new()] };
        let mut changes = Vec::new();
        for path in paths {
            let (folder, found, mistakes) = Folder::open(path);
            layers.folders.push(folder);
            layers.mistakes.push(mistakes);
            changes.extend(layers.merged.merge_all(layers.folders.len(), found));
        }
        (layers, changes)
    }

    /// Waits until the cluster was heard of in whole.
    pub async fn complete(&mut self) -> Vec<Change> {
        let Some(cluster) = &mut self.cluster else { return Vec::new() };
        let changes = cluster.complete().await;
        self.mistakes[CLUSTER] = cluster.mistakes();
        self.merged.merge_all(CLUSTER, changes)
    }

    /// Waits until objects or mistakes differ. Nothing is lost when the waiting is given up.
    pub async fn next(&mut self) -> Vec<Change> {
        let Self { cluster, folders, merged, mistakes } = self;
        let cluster = async {
            match cluster {
                Some(cluster) => (cluster.next().await, cluster.mistakes()),
                None => std::future::pending().await,
            }
        };
        let folders = async {
            if folders.is_empty() {
                return std::future::pending().await;
            }
            let waiting = folders.iter_mut().map(|folder| Box::pin(folder.next()));
            let (found, index, _) = select_all(waiting).await;
            (found, index + 1)
        };
        let ((changes, found), layer) = tokio::select! {
            found = cluster => (found, CLUSTER),
            found = folders => found,
        };
        mistakes[layer] = found;
        merged.merge_all(layer, changes)
    }

    /// All that there are now.
    pub fn mistakes(&self) -> impl Iterator<Item = &Mistake> {
        self.mistakes.iter().flatten()
    }
}

/// Every object by the layers that have it; the last one counts.
#[derive(Default)]
struct Merged(HashMap<Key, BTreeMap<usize, Object>>);

impl Merged {
    fn merge_all(&mut self, layer: usize, changes: Vec<Change>) -> Vec<Change> {
        changes.into_iter().filter_map(|change| self.merge(layer, change)).collect()
    }

    /// What a change of one layer changes in the whole.
    fn merge(&mut self, layer: usize, change: Change) -> Option<Change> {
        match change {
            Change::Set(object) => {
                let layers = self.0.entry(object.key()).or_default();
                if layers.get(&layer) == Some(&object) {
                    return None;
                }
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
        assert_eq!(merged.merge(1, set("other")), Some(set("other")));
        assert_eq!(merged.merge(1, set("other")), None, "the same");
        assert_eq!(merged.merge(0, set("edited")), None, "hidden");
        assert_eq!(merged.merge(1, remove()), Some(set("edited")));
        assert_eq!(merged.merge(1, remove()), None, "it was not there any more");
        assert_eq!(merged.merge(0, remove()), Some(remove()));
        assert_eq!(merged.merge(1, set("other")), Some(set("other")));
        assert_eq!(merged.merge(0, set("user")), None);
        assert_eq!(merged.merge(0, remove()), None);
    }
}
