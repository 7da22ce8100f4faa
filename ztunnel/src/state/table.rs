//! A persistent hash table: what every index of a snapshot is made of.
//!
//! A trie over the bits of a hash whose leaves hold a handful of entries each. A copy costs one reference; a change
//! copies the path to one leaf, and only when a copy shares it. An entry is whatever the index points to: its key is
//! inside it, so the table is told the hash and asked with a predicate. Several entries may have one key; they keep
//! the order in which they came.
//!
//! Own code because of its memory: for a million `Arc`s it takes 31 bytes an entry where imbl's `HashMap` takes 109 and
//! rpds' `HashTrieMap` 125, with the former's look-up time; imbl's `OrdMap` is as small but three times as slow.

use std::sync::Arc;

/// Most entries of a leaf before it is split.
const LEAF: usize = 32;
/// Bits of the hash that one branch consumes, and the children that it thus has.
const BITS: u32 = 4;
const CHILDREN: usize = 1 << BITS;

#[derive(Clone)]
pub(super) struct Table<T> {
    root: Node<T>,
    len: usize,
}

#[derive(Clone)]
enum Node<T> {
    Leaf(Arc<Vec<(u64, T)>>),
    Branch(Arc<[Node<T>; CHILDREN]>),
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { root: Node::Leaf(Arc::default()), len: 0 }
    }
}

impl<T> Table<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The entries of one key, the first that came first.
    pub(super) fn all<'a>(
        &'a self,
        hash: u64,
        is: impl Fn(&T) -> bool + Copy,
    ) -> impl DoubleEndedIterator<Item = &'a T> + Clone {
        let same = move |(other, entry): &'a (u64, T)| (*other == hash && is(entry)).then_some(entry);
        self.leaf(hash).iter().filter_map(same)
    }

    pub(super) fn get(&self, hash: u64, is: impl Fn(&T) -> bool) -> Option<&T> {
        self.leaf(hash).iter().find(|(other, entry)| *other == hash && is(entry)).map(|(_, entry)| entry)
    }

    /// Every entry, in no order that means anything.
    pub(super) fn iter(&self) -> Iter<'_, T> {
        Iter { nodes: vec![&self.root], leaf: [].iter() }
    }

    fn leaf(&self, hash: u64) -> &[(u64, T)] {
        let mut node = &self.root;
        let mut depth = 0;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf,
                Node::Branch(children) => node = &children[slot(hash, depth)],
            }
            depth += 1;
        }
    }
}

impl<T: Clone> Table<T> {
    /// Adds an entry behind those of the same key.
    pub(super) fn insert(&mut self, hash: u64, entry: T) {
        self.root.insert(hash, entry, 0);
        self.len += 1;
    }

    /// Puts an entry into the place of the first that `is` it; behind the others if there is none.
    pub(super) fn put(&mut self, hash: u64, entry: T, is: impl Fn(&T) -> bool) {
        match self.root.leaf_mut(hash, &is) {
            Some((leaf, index)) => leaf[index].1 = entry,
            None => self.insert(hash, entry),
        }
    }

    /// An entry to be changed; its key must stay.
    pub(super) fn get_mut(&mut self, hash: u64, is: impl Fn(&T) -> bool) -> Option<&mut T> {
        self.root.leaf_mut(hash, &is).map(|(leaf, index)| &mut leaf[index].1)
    }

    /// Takes out the first entry that `is` it.
    pub(super) fn remove(&mut self, hash: u64, is: impl Fn(&T) -> bool) -> Option<T> {
        let (leaf, index) = self.root.leaf_mut(hash, &is)?;
        let (_, entry) = leaf.remove(index);
        self.len -= 1;
        self.root.tidy(hash, 0);
        Some(entry)
    }
}

impl<T: Clone> Node<T> {
    fn insert(&mut self, hash: u64, entry: T, depth: u32) {
        match self {
            Self::Branch(children) => {
                Arc::make_mut(children)[slot(hash, depth)].insert(hash, entry, depth + 1);
            }
            Self::Leaf(leaf) if leaf.len() < LEAF || BITS * depth >= u64::BITS => {
                own(leaf, 1).push((hash, entry));
            }
            Self::Leaf(leaf) => {
                *self = split(leaf, depth);
                self.insert(hash, entry, depth);
            }
        }
    }

    /// The leaf and the place of an entry, unshared; nothing is copied when it is not there.
    fn leaf_mut(&mut self, hash: u64, is: &impl Fn(&T) -> bool) -> Option<(&mut Vec<(u64, T)>, usize)> {
        let mut shared = &*self;
        let mut depth = 0;
        while let Self::Branch(children) = shared {
            shared = &children[slot(hash, depth)];
            depth += 1;
        }
        let Self::Leaf(leaf) = shared else { return None };
        let index = leaf.iter().position(|(other, entry)| *other == hash && is(entry))?;
        let mut node = self;
        let mut depth = 0;
        loop {
            match node {
                Self::Leaf(leaf) => return Some((own(leaf, 0), index)),
                Self::Branch(children) => node = &mut Arc::make_mut(children)[slot(hash, depth)],
            }
            depth += 1;
        }
    }

    /// Joins the leaves of a branch on the way that have become few, so that a table that shrank is small again.
    fn tidy(&mut self, hash: u64, depth: u32) {
        let Self::Branch(children) = self else { return };
        let few = |children: &[Self]| {
            let mut left = LEAF / 2;
            children.iter().all(|child| match child {
                Self::Leaf(leaf) => {
                    leaf.len() <= left && {
                        left -= leaf.len();
                        true
                    }
                }
                Self::Branch(_) => false,
            })
        };
        if matches!(children[slot(hash, depth)], Self::Branch(_)) {
            Arc::make_mut(children)[slot(hash, depth)].tidy(hash, depth + 1);
        }
        if few(&children[..]) {
            let entries = children.iter().flat_map(|child| match child {
                Self::Leaf(leaf) => leaf.iter().cloned(),
                Self::Branch(_) => [].iter().cloned(),
            });
            *self = Self::Leaf(Arc::new(entries.collect()));
        }
    }
}

fn slot(hash: u64, depth: u32) -> usize {
    (hash >> (u64::BITS - BITS * (depth + 1))) as usize & (CHILDREN - 1)
}

/// The entries of a leaf, copied if they are shared, with room for `more`.
fn own<T: Clone>(leaf: &mut Arc<Vec<(u64, T)>>, more: usize) -> &mut Vec<(u64, T)> {
    // In two steps, because a copy that has no room would be copied again.
    if Arc::get_mut(leaf).is_none() {
        let mut copy = Vec::with_capacity(leaf.len() + 2 * more);
        copy.extend_from_slice(leaf);
        *leaf = Arc::new(copy);
    }
    let entries = Arc::get_mut(leaf).expect("invariant: it was just made, and nobody has a weak reference");
    if entries.capacity() < entries.len() + more {
        // Most leaves stay half full; doubling would waste what the table is made to save.
        entries.reserve_exact(4);
    }
    entries
}

fn split<T: Clone>(leaf: &[(u64, T)], depth: u32) -> Node<T> {
    let mut parts: [Vec<(u64, T)>; CHILDREN] = std::array::from_fn(|_| Vec::new());
    for entry in leaf {
        let part = &mut parts[slot(entry.0, depth)];
        part.reserve_exact(1);
        part.push(entry.clone());
    }
    Node::Branch(Arc::new(parts.map(|part| Node::Leaf(Arc::new(part)))))
}

pub(super) struct Iter<'a, T> {
    nodes: Vec<&'a Node<T>>,
    leaf: std::slice::Iter<'a, (u64, T)>,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some((_, entry)) = self.leaf.next() {
                return Some(entry);
            }
            match self.nodes.pop()? {
                Node::Leaf(leaf) => self.leaf = leaf.iter(),
                Node::Branch(children) => self.nodes.extend(children.iter()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    type Entry = (u64, u16);

    fn listed(table: &Table<Entry>) -> Vec<Entry> {
        let mut entries: Vec<Entry> = table.iter().copied().collect();
        entries.sort_unstable();
        entries
    }

    /// Few hashes, close together: keys collide and leaves split down to the last bit.
    fn hash() -> impl Strategy<Value = u64> {
        prop_oneof![0..4_u64, any::<u64>().prop_map(|bits| bits & 0xf0f0), any::<u64>()]
    }

    proptest! {
        #[test]
        fn a_table_is_a_list_with_an_index(
            steps in vec((hash(), any::<u16>(), 0..4_u8), 0..400),
            kept_at in 0..400_usize,
        ) {
            let (mut table, mut list) = (Table::default(), Vec::<Entry>::new());
            let mut kept = (table.clone(), list.clone());
            for (index, (hash, value, step)) in steps.into_iter().enumerate() {
                let entry = (hash, value % 8);
                let known = list.iter().position(|other| *other == entry);
                match (step, known) {
                    (0, Some(index)) => {
                        prop_assert_eq!(table.remove(hash, |other| *other == entry), Some(list.remove(index)));
                    }
                    (0, None) => prop_assert_eq!(table.remove(hash, |other| *other == entry), None),
                    (1, Some(_)) => table.put(hash, entry, |other| *other == entry),
                    _ => {
                        table.insert(hash, entry);
                        list.push(entry);
                    }
                }
                let of: Vec<_> = list.iter().filter(|other| other.0 == hash).collect();
                let found: Vec<_> = table.all(hash, |_| true).collect();
                prop_assert_eq!(found, of, "in the order in which they came");
                if index == kept_at {
                    kept = (table.clone(), list.clone());
                }
            }
            for (table, mut list) in [(table, list), kept] {
                list.sort_unstable();
                prop_assert_eq!(table.len(), list.len());
                prop_assert_eq!(listed(&table), list, "a copy does not see later changes");
            }
        }
    }

    #[test]
    fn a_table_that_was_emptied_is_small() {
        let mut table = Table::default();
        let spread = |index: u64| index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for index in 0..10_000 {
            table.insert(spread(index), index);
        }
        assert!(matches!(table.root, Node::Branch(_)));
        for index in 0..10_000 {
            assert_eq!(table.remove(spread(index), |other| *other == index), Some(index));
        }
        assert!(matches!(&table.root, Node::Leaf(leaf) if leaf.is_empty()));
    }
}
