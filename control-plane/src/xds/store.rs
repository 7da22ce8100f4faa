//! What is served: one writer, any number of readers, no copies.
//!
//! Each kind is a log ordered by a sequence number that counts all changes. A name has one place in it, that of its
//! latest change, be it a resource or the note that it is gone; a new change takes the old one out. So the log is as
//! long as what there is, a reader at any sequence number finds in one pass exactly what differs since, and what changed
//! ten times while it was away it sees once. A session therefore needs one number, not a list of what it was sent.
//!
//! Notes of what is gone are kept up to a bound. Who has not read further than the last forgotten one cannot be told all
//! that is gone any more, and must compare by name and version instead (`Session` says how).
//!
//! A version is a hash of the content: a restarted controller gives the same, and a client that comes back is sent
//! nothing that it has.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::digest;
use bytes::Bytes;
use prost::Message;
use prost_types::Any;
use tokio::sync::watch;
use xds_client::proto;

use crate::resource::{Changes, Kind, Resource};

/// How many notes of what is gone are kept for each kind.
const GONE: usize = 65_536;

/// Above it a resource does not fit into what gRPC clients accept by default.
const LARGEST: usize = 4 * 1024 * 1024 - 64 * 1024;

/// The one who changes what is served.
#[derive(Debug)]
pub struct Writer {
    store: Store,
}

/// What is served, to read.
#[derive(Clone, Debug)]
pub struct Store(Arc<Shared>);

/// What can be said of a kind at a glance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub resources: usize,
    /// The sequence number of its latest change.
    pub latest: u64,
}

/// An empty store. Nothing of it is served until the writer says that it is complete.
pub fn store() -> (Writer, Store) {
    store_remembering(GONE)
}

pub(super) fn store_remembering(gone: usize) -> (Writer, Store) {
    let shared = Shared { gone, tables: RwLock::default(), sequence: watch::Sender::new(0) };
    let store = Store(Arc::new(shared));
    (Writer { store: store.clone() }, store)
}

impl Writer {
    /// Takes over changes, all at once for every reader. What is removed and set is set. Nothing happens to a resource
    /// whose content is what it was. Gives the sequence number that the store has reached.
    pub fn apply(&mut self, changes: Changes) -> u64 {
        // Encoded before the lock is taken: readers wait for the exchange only.
        let set: Vec<_> =
            changes.set.into_iter().map(|resource| (resource.kind, Entry::new(resource))).collect();
        let mut tables = self.store.0.tables.write().unwrap_or_else(PoisonError::into_inner);
        let stays: HashSet<(Kind, &str)> = match changes.removed.is_empty() {
            true => HashSet::new(),
            false => set.iter().map(|(kind, entry)| (*kind, &*entry.name)).collect(),
        };
        let removed: Vec<_> =
            changes.removed.into_iter().filter(|(kind, name)| !stays.contains(&(*kind, &**name))).collect();
        for (kind, entry) in set {
            tables.change(kind, |table, sequence| table.set(entry, sequence));
        }
        // Afterwards, so that nothing that stays ever names what is gone.
        for (kind, name) in removed {
            tables.change(kind, |table, sequence| table.remove(&name, sequence));
        }
        for (_, table) in &mut tables.by_kind {
            table.forget(self.store.0.gone);
        }
        let sequence = tables.sequence;
        drop(tables);
        self.store.0.sequence.send_replace(sequence);
        sequence
    }

    /// Says that everything there is has been applied once. Before that a client that comes back would be told that what
    /// it holds is gone.
    pub fn complete(&mut self) {
        let mut tables = self.store.0.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.complete = true;
        drop(tables);
        self.store.0.sequence.send_modify(|_| {});
    }
}

impl Store {
    /// Wakes whenever there is something new.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.sequence.subscribe()
    }

    pub fn is_complete(&self) -> bool {
        self.0.tables.read().unwrap_or_else(PoisonError::into_inner).complete
    }

    pub fn extent(&self, kind: Kind) -> Extent {
        self.read(kind, |table| Extent {
            resources: table.log.len() - table.gone.len(),
            latest: table.latest,
        })
    }

    /// Lends a kind out. The writer waits meanwhile, so what is done with it must be bounded.
    pub(super) fn read<T>(&self, kind: Kind, use_table: impl FnOnce(&Table) -> T) -> T {
        let tables = self.0.tables.read().unwrap_or_else(PoisonError::into_inner);
        match tables.by_kind.iter().find(|(of, _)| *of == kind) {
            Some((_, table)) => use_table(table),
            None => use_table(&Table::default()),
        }
    }
}

#[derive(Debug)]
struct Shared {
    gone: usize,
    tables: RwLock<Tables>,
    sequence: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Tables {
    sequence: u64,
    complete: bool,
    by_kind: Vec<(Kind, Table)>,
}

/// One kind.
#[derive(Debug, Default)]
pub(super) struct Table {
    log: BTreeMap<u64, Item>,
    /// Where a name is in the log.
    places: HashMap<Arc<str>, u64>,
    /// The names of the resources that have an alias, in order.
    aliases: HashMap<Arc<str>, Vec<Arc<str>>>,
    /// The names of the resources that belong to a name, which need not be there itself.
    members: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// The places of the notes of what is gone.
    gone: BTreeSet<u64>,
    latest: u64,
    forgotten: u64,
}

/// The latest that happened to a name.
#[derive(Debug)]
pub(super) enum Item {
    Live(Arc<Entry>),
    Gone(Arc<str>),
}

/// A resource as it is served.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    pub(super) version: u64,
    pub(super) aliases: Box<[Arc<str>]>,
    pub(super) belongs_to: Box<[Arc<str>]>,
    pub(super) node: Option<Arc<str>>,
    /// It belonged to another node once: there may be a client that was sent it then and is not to have it now.
    pub(super) moved: bool,
    /// Its element of `DeltaDiscoveryResponse.resources`, with tag and length: a response is a row of these.
    pub(super) encoded: Bytes,
}

impl Tables {
    fn change(&mut self, kind: Kind, change: impl FnOnce(&mut Table, u64) -> bool) {
        let index = self.by_kind.iter().position(|(of, _)| *of == kind).unwrap_or_else(|| {
            self.by_kind.push((kind, Table::default()));
            self.by_kind.len() - 1
        });
        if change(&mut self.by_kind[index].1, self.sequence + 1) {
            self.sequence += 1;
        }
    }
}

impl Table {
    /// What happened after a sequence number, oldest first.
    pub(super) fn after(&self, sequence: u64) -> impl Iterator<Item = (u64, &Item)> {
        self.log.range(sequence + 1..).map(|(sequence, item)| (*sequence, item))
    }

    pub(super) fn named(&self, name: &str) -> Option<&Arc<Entry>> {
        match self.log.get(self.places.get(name)?)? {
            Item::Live(entry) => Some(entry),
            Item::Gone(_) => None,
        }
    }

    pub(super) fn names_of_alias(&self, alias: &str) -> &[Arc<str>] {
        self.aliases.get(alias).map_or(&[], Vec::as_slice)
    }

    pub(super) fn has_members(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// The one that follows among those that belong to a name; the first, if none is named.
    pub(super) fn member_after(&self, name: &str, last: Option<&Arc<str>>) -> Option<&Arc<str>> {
        let members = self.members.get(name)?;
        match last {
            Some(last) => members.range::<Arc<str>, _>((Bound::Excluded(last), Bound::Unbounded)).next(),
            None => members.first(),
        }
    }

    /// When a name changed last, as far as that is remembered.
    pub(super) fn changed(&self, name: &str) -> Option<u64> {
        self.places.get(name).copied()
    }

    pub(super) fn latest(&self) -> u64 {
        self.latest
    }

    /// Up to where it is not remembered any more what is gone.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn set(&mut self, mut entry: Entry, sequence: u64) -> bool {
        if let Some(old) = self.named(&entry.name) {
            if old.version == entry.version && old.node == entry.node {
                return false;
            }
            entry.moved = old.moved || old.node != entry.node;
        }
        let name = Arc::clone(&entry.name);
        self.take_out(&name);
        for alias in &entry.aliases {
            let names = self.aliases.entry(Arc::clone(alias)).or_default();
            if let Err(place) = names.binary_search(&name) {
                names.insert(place, Arc::clone(&name));
            }
        }
        for owner in &mut entry.belongs_to {
            // A name is kept once, however many belong to it.
            if let Some((known, _)) = self.members.get_key_value(owner) {
                *owner = Arc::clone(known);
            }
            self.members.entry(Arc::clone(owner)).or_default().insert(Arc::clone(&name));
        }
        self.put(name, Item::Live(Arc::new(entry)), sequence);
        true
    }

    fn remove(&mut self, name: &Arc<str>, sequence: u64) -> bool {
        if self.named(name).is_none() {
            return false;
        }
        self.take_out(name);
        self.gone.insert(sequence);
        self.put(Arc::clone(name), Item::Gone(Arc::clone(name)), sequence);
        true
    }

    fn put(&mut self, name: Arc<str>, item: Item, sequence: u64) {
        self.log.insert(sequence, item);
        self.places.insert(name, sequence);
        self.latest = sequence;
    }

    fn take_out(&mut self, name: &Arc<str>) {
        let Some(place) = self.places.remove(name) else { return };
        self.gone.remove(&place);
        let Some(Item::Live(old)) = self.log.remove(&place) else { return };
        for alias in &old.aliases {
            let Some(names) = self.aliases.get_mut(alias) else { continue };
            if let Ok(place) = names.binary_search(name) {
                names.remove(place);
            }
            if names.is_empty() {
                self.aliases.remove(alias);
            }
        }
        for owner in &old.belongs_to {
            let Some(members) = self.members.get_mut(owner) else { continue };
            members.remove(name);
            if members.is_empty() {
                self.members.remove(owner);
            }
        }
    }

    fn forget(&mut self, keep: usize) {
        while self.gone.len() > keep {
            let Some(place) = self.gone.pop_first() else { return };
            if let Some(Item::Gone(name)) = self.log.remove(&place) {
                self.places.remove(&name);
            }
            self.forgotten = place;
        }
    }
}

impl Entry {
    fn new(resource: Resource) -> Self {
        let Resource { kind, name, aliases, belongs_to, node, body } = resource;
        let version = version(kind, &name, [&aliases, &belongs_to], &body);
        let element = proto::Resource {
            version: version_text(version),
            resource: Some(Any { type_url: kind.type_url().to_owned(), value: body.into() }),
            name: name.to_string(),
            aliases: aliases.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let response = proto::DeltaDiscoveryResponse { resources: vec![element], ..Default::default() };
        let encoded = Bytes::from(response.encode_to_vec());
        if encoded.len() > LARGEST {
            let bytes = encoded.len();
            tracing::warn!(%name, bytes, "a resource is larger than many clients accept in one message");
        }
        let (aliases, belongs_to) = (aliases.into(), belongs_to.into());
        Self { name, version, aliases, belongs_to, node, moved: false, encoded }
    }
}

pub(super) fn version_text(version: u64) -> String {
    format!("{version:016x}")
}

/// What a client says it holds; none of ours, if it is not of our making.
pub(super) fn parse_version(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

fn version(kind: Kind, name: &str, [aliases, belongs_to]: [&[Arc<str>]; 2], body: &[u8]) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut part = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    part(kind.type_url().as_bytes());
    part(name.as_bytes());
    part(body);
    aliases.iter().for_each(|alias| part(alias.as_bytes()));
    if !belongs_to.is_empty() {
        // An alias is no such name.
        part(b"belongs to");
        belongs_to.iter().for_each(|owner| part(owner.as_bytes()));
    }
    let hash = context.finish();
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_ref()[..8]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests;
