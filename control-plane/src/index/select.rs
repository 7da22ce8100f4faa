//! Labels and selectors filed so that neither is searched from end to end: a selector is found from the labels of one
//! pod, pods are found from one selector.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::object::Labels;

/// Whether a selector that is not empty selects these labels.
pub(super) fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

type ByPair<T> = HashMap<String, HashMap<String, T>>;

fn bucket<'a, T>(pairs: &'a ByPair<T>, key: &str, value: &str) -> Option<&'a T> {
    pairs.get(key)?.get(value)
}

fn remove(pairs: &mut ByPair<HashSet<Arc<str>>>, key: &str, value: &str, name: &str) {
    let Some(values) = pairs.get_mut(key) else { return };
    if let Some(names) = values.get_mut(value) {
        names.remove(name);
        if names.is_empty() {
            values.remove(value);
        }
    }
    if values.is_empty() {
        pairs.remove(key);
    }
}

/// Objects of one namespace by their selector: each is filed under one pair of it, the one that fewest others chose.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    by_pair: ByPair<HashSet<Arc<str>>>,
    chosen: HashMap<Arc<str>, (String, String)>,
}

impl Selectors {
    /// Files an object; one whose selector is empty selects nothing and is not filed.
    pub(super) fn insert(&mut self, name: &Arc<str>, selector: &Labels) {
        self.remove(name);
        let crowd = |key: &String, value: &String| bucket(&self.by_pair, key, value).map_or(0, HashSet::len);
        let Some((key, value)) = selector.iter().min_by_key(|(key, value)| crowd(key, value)) else { return };
        self.by_pair.entry(key.clone()).or_default().entry(value.clone()).or_default().insert(name.clone());
        self.chosen.insert(name.clone(), (key.clone(), value.clone()));
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some((key, value)) = self.chosen.remove(name) {
            remove(&mut self.by_pair, &key, &value, name);
        }
    }

    /// Objects that may select these labels; the caller looks at the rest of each selector.
    pub(super) fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a Arc<str>> {
        labels.iter().filter_map(|(key, value)| bucket(&self.by_pair, key, value)).flatten()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.chosen.keys()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }
}

/// Pods of one namespace by their labels.
#[derive(Debug, Default)]
pub(super) struct Labelled {
    by_pair: ByPair<HashSet<Arc<str>>>,
    all: HashSet<Arc<str>>,
}

impl Labelled {
    pub(super) fn insert(&mut self, name: &Arc<str>, labels: &Labels) {
        self.all.insert(name.clone());
        for (key, value) in labels {
            let values = self.by_pair.entry(key.clone()).or_default();
            values.entry(value.clone()).or_default().insert(name.clone());
        }
    }

    pub(super) fn remove(&mut self, name: &str, labels: &Labels) {
        self.all.remove(name);
        for (key, value) in labels {
            remove(&mut self.by_pair, key, value, name);
        }
    }

    pub(super) fn all(&self) -> &HashSet<Arc<str>> {
        &self.all
    }

    /// The pods that a selector selects.
    pub(super) fn selected<'a>(&'a self, selector: &'a Labels) -> impl Iterator<Item = &'a Arc<str>> {
        let buckets: Option<Vec<&HashSet<Arc<str>>>> =
            selector.iter().map(|(key, value)| bucket(&self.by_pair, key, value)).collect();
        let mut buckets = buckets.unwrap_or_default();
        buckets.sort_by_key(|bucket| bucket.len());
        let smallest = buckets.first().copied();
        smallest.into_iter().flatten().filter(move |name| buckets.iter().all(|bucket| bucket.contains(*name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn both_directions_agree_with_the_definition() {
        let pool = [
            labels(&[]),
            labels(&[("app", "a")]),
            labels(&[("app", "b")]),
            labels(&[("tier", "x")]),
            labels(&[("app", "a"), ("tier", "x")]),
            labels(&[("app", "a"), ("tier", "y")]),
        ];
        let (mut selectors, mut labelled) = (Selectors::default(), Labelled::default());
        let name = |index: usize| Arc::<str>::from(index.to_string());
        for (index, one) in pool.iter().enumerate() {
            selectors.insert(&name(index), one);
            labelled.insert(&name(index), one);
        }
        for round in 0..2 {
            for (index, one) in pool.iter().enumerate().skip(round) {
                let mut found: Vec<_> = selectors
                    .candidates(one)
                    .filter(|name| selects(&pool[name.parse::<usize>().expect("a number")], one))
                    .cloned()
                    .collect();
                found.sort();
                let expected: Vec<_> =
                    (round..pool.len()).filter(|other| selects(&pool[*other], one)).map(name).collect();
                assert_eq!(found, expected, "selectors of {one:?}");
                let mut found: Vec<_> = labelled.selected(one).cloned().collect();
                found.sort();
                let expected: Vec<_> =
                    (round..pool.len()).filter(|other| selects(one, &pool[*other])).map(name).collect();
                assert_eq!(found, expected, "pods of {index} {one:?}");
            }
            selectors.remove("0");
            labelled.remove("0", &pool[0]);
        }
        for (index, one) in pool.iter().enumerate() {
            selectors.remove(&name(index));
            labelled.remove(&name(index), one);
        }
        assert!(selectors.by_pair.is_empty() && labelled.by_pair.is_empty(), "nothing is left behind");
    }
}
