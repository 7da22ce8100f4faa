//! What one client wants of one type, and how far it has been told.
//!
//! ```text
//!  first request ─┬─ wildcard ─▶ Compare ─▶ Vanished ─▶ following the log
//!                 └─ names ────▶ answering what is asked ─▶ following the log
//! ```
//!
//! Compare walks through all there was when it began and sends what the client does not hold in that version; Vanished
//! names what it holds beside that. What changes meanwhile has a later place in the log and comes when that is followed.
//! A client that holds nothing is the case of an empty comparison.
//!
//! What was sent because of a key counts as asked for by its name from then on, as it does with istiod: its changes are
//! sent also when it loses the alias that led to it, until its name is unsubscribed.
//!
//! Who asks for a resource that others belong to (a service with its workloads) gets those as well, before it: when it
//! has the service it has the endpoints. What comes to belong to it later is sent when it does. `answer` does the former.

mod answer;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use self::answer::Expansion;

use super::{Facts, Scope};
use crate::resource::Kind;
use crate::xds::response::Batch;
use crate::xds::store::{Entry, Item, Table, parse_version};

const WILDCARD: &str = "*";

#[derive(Debug, Default)]
pub(super) struct Interest {
    wildcard: bool,
    walk: Option<Walk>,
    /// Keys that were subscribed, by name or alias.
    wanted: HashSet<Box<str>>,
    /// What is to be answered even if nothing has changed.
    asked: BTreeMap<Arc<str>, Asked>,
    /// The key that is being answered: what belongs to it goes first.
    expansion: Option<Expansion>,
    /// What the client has because of a key, and in which version. What comes of the wildcard is not in it.
    held: HashMap<Arc<str>, Option<u64>>,
    /// Names in `held` and `asked` that were unsubscribed. Only the store knows whether an alias of theirs is still wanted.
    left: BTreeSet<Arc<str>>,
    /// All changes up to here are told, or are none of the client's.
    cursor: u64,
    begun: bool,
}

/// What a request says about subscriptions.
#[derive(Debug)]
pub(super) struct Wishes {
    pub(super) subscribe: Vec<String>,
    pub(super) unsubscribe: Vec<String>,
    /// What the client holds, if this is the first request for the type.
    pub(super) first: Option<HashMap<String, String>>,
}

/// Whether there is more to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// At once.
    More,
    /// When other types have said what came before it.
    Waits,
    Done,
}

/// What is gone since the client was told last is not all remembered, and what it holds is not known.
#[derive(Debug)]
pub(super) struct Missed;

/// Who looks, and at what.
pub(super) struct View<'a> {
    pub(super) kind: Kind,
    pub(super) client: Option<&'a str>,
    pub(super) scope: &'a dyn Scope,
    /// Changes that came later wait: one of another type that came before them is not sent yet.
    pub(super) until: u64,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Sent even if the client has it.
    fresh: bool,
    /// What has the key as an alias is meant too.
    aliases: bool,
}

#[derive(Debug)]
enum Walk {
    /// `until` is where the log ended when the walk began.
    Compare {
        until: Option<u64>,
        held: HashMap<Box<str>, Option<u64>>,
    },
    Vanished {
        until: u64,
        names: Vec<Box<str>>,
    },
}

impl Interest {
    /// Takes over what a request says. Within one message unsubscribing comes last.
    pub(super) fn change(&mut self, wishes: Wishes) {
        let Wishes { subscribe, unsubscribe, first } = wishes;
        let all = |names: &[String]| names.iter().any(|name| name == WILDCARD);
        let everything = self.wildcard || all(&subscribe) || (first.is_some() && subscribe.is_empty());
        let wildcard = everything && !all(&unsubscribe);
        let is_first = first.is_some();
        if let Some(versions) = first {
            self.hold(versions, wildcard);
        }
        let left: HashSet<&str> = unsubscribe.iter().map(String::as_str).collect();
        for key in subscribe {
            if key == WILDCARD || left.contains(key.as_str()) {
                continue;
            }
            self.asked.insert(key.as_str().into(), Asked { fresh: !is_first, aliases: true });
            self.wanted.insert(key.into());
        }
        for key in &left {
            self.wanted.remove(*key);
            if self.held.contains_key(*key) || self.asked.contains_key(*key) {
                self.left.insert(Arc::from(*key));
            }
        }
        self.set_wildcard(wildcard);
    }

    /// Appends what the client is to be told next.
    pub(super) fn tell(
        &mut self,
        table: &Table,
        view: &View<'_>,
        batch: &mut Batch,
    ) -> Result<Progress, Missed> {
        self.begin(table.latest());
        if self.leave(table, batch) == Progress::More {
            return Ok(Progress::More);
        }
        self.notice_forgotten(table)?;
        let answered = self.answer(table, view, batch);
        if answered == Progress::More {
            return Ok(Progress::More);
        }
        if self.compare(table, view, batch) == Progress::More {
            return Ok(Progress::More);
        }
        // Also while an answer waits: others may wait for what is followed.
        Ok(match self.follow(table, view, batch) {
            Progress::Done => answered,
            unfinished => unfinished,
        })
    }

    /// What there is of everything and nothing else, so that what changes between two calls cannot contradict what the batch
    /// has already.
    pub(super) fn tell_all(
        &mut self,
        table: &Table,
        view: &View<'_>,
        batch: &mut Batch,
    ) -> Result<Progress, Missed> {
        self.begin(table.latest());
        self.notice_forgotten(table)?;
        Ok(self.compare(table, view, batch))
    }

    /// As `tell`, of a type that nobody has resources of.
    pub(super) fn tell_nothing(&mut self, batch: &mut Batch) -> Progress {
        let held = match self.walk.take() {
            Some(Walk::Compare { held, .. }) => held.into_keys().collect(),
            Some(Walk::Vanished { names, .. }) => names,
            None => Vec::new(),
        };
        let unasked = Asked { fresh: false, aliases: false };
        self.asked.extend(held.into_iter().map(|name| (Arc::from(name), unasked)));
        while let Some((key, _)) = self.asked.first_key_value() {
            if batch.is_full_for(key.len()) {
                return Progress::More;
            }
            let key = Arc::clone(key);
            self.asked.remove(&key);
            self.held.remove(&key);
            batch.remove(key);
        }
        Progress::Done
    }

    pub(super) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    pub(super) fn keys(&self) -> usize {
        self.wanted.len()
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Of everything, what there was at the beginning has been looked at.
    pub(super) fn has_compared(&self) -> bool {
        self.begun && self.walk.is_none()
    }

    /// Everything there was at the beginning has been looked at.
    pub(super) fn is_caught_up(&self) -> bool {
        self.begun && self.walk.is_none() && self.asked.is_empty() && self.expansion.is_none()
    }

    fn hold(&mut self, versions: HashMap<String, String>, wildcard: bool) {
        let versions = versions.into_iter().map(|(name, version)| (name, parse_version(&version)));
        if wildcard {
            let held = versions.map(|(name, version)| (name.into_boxed_str(), version)).collect();
            self.walk = Some(Walk::Compare { until: None, held });
            return;
        }
        for (name, version) in versions {
            let name: Arc<str> = name.into();
            self.asked.insert(Arc::clone(&name), Asked { fresh: false, aliases: false });
            self.held.insert(name, version);
        }
    }

    fn set_wildcard(&mut self, wildcard: bool) {
        if wildcard && !self.wildcard && self.begun {
            let held = std::mem::take(&mut self.held);
            let held = held.into_iter().map(|(name, version)| (Box::from(&*name), version)).collect();
            self.walk = Some(Walk::Compare { until: None, held });
        }
        if !wildcard && self.wildcard {
            // What the client keeps of everything is not known.
            self.walk = None;
            let fresh = Asked { fresh: true, aliases: true };
            self.asked.extend(self.wanted.iter().map(|key| (Arc::from(&**key), fresh)));
        }
        self.wildcard = wildcard;
    }

    fn begin(&mut self, latest: u64) {
        if !self.begun && !self.wildcard {
            self.cursor = latest;
        }
        self.begun = true;
        if let Some(Walk::Compare { until: until @ None, .. }) = &mut self.walk {
            *until = Some(latest);
            self.cursor = 0;
        }
    }

    fn compare(&mut self, table: &Table, view: &View<'_>, batch: &mut Batch) -> Progress {
        if let Some(Walk::Compare { until, held }) = &mut self.walk {
            let until = until.unwrap_or_default();
            for (sequence, item) in table.after(self.cursor).take_while(|(sequence, _)| *sequence <= until) {
                if !batch.look() {
                    return Progress::More;
                }
                if let Item::Live(entry) = item
                    && view.includes(entry)
                {
                    let differs = held.get(&*entry.name) != Some(&Some(entry.version));
                    if differs && batch.is_full_for(entry.encoded.len()) {
                        return Progress::More;
                    }
                    held.remove(&*entry.name);
                    if differs {
                        batch.set(entry);
                    }
                }
                self.cursor = sequence;
            }
            self.cursor = until;
            self.walk = Some(Walk::Vanished { until, names: std::mem::take(held).into_keys().collect() });
        }
        if let Some(Walk::Vanished { until, names }) = &mut self.walk {
            while let Some(name) = names.last() {
                if !batch.look() || batch.is_full_for(name.len()) {
                    return Progress::More;
                }
                // What changed since is told by the log.
                let told_later = table.changed(name).is_some_and(|changed| changed > *until);
                if let Some(name) = names.pop()
                    && !told_later
                {
                    batch.remove(name.into());
                }
            }
            self.walk = None;
        }
        Progress::Done
    }

    fn follow(&mut self, table: &Table, view: &View<'_>, batch: &mut Batch) -> Progress {
        for (sequence, item) in table.after(self.cursor) {
            if sequence > view.until {
                return Progress::Done;
            }
            let length = match item {
                Item::Live(entry) => entry.encoded.len(),
                Item::Gone(name) => name.len(),
            };
            if !batch.look() || batch.is_full_for(length) {
                return Progress::More;
            }
            self.cursor = sequence;
            match item {
                Item::Live(entry) => self.follow_live(entry, table, view, batch),
                Item::Gone(name) => {
                    if self.held.remove(name).is_some() || self.wildcard {
                        batch.remove(Arc::clone(name));
                    }
                }
            }
        }
        self.cursor = self.cursor.max(table.latest());
        Progress::Done
    }

    fn follow_live(&mut self, entry: &Arc<Entry>, table: &Table, view: &View<'_>, batch: &mut Batch) {
        let held = self.held.get(&entry.name);
        if self.covers(entry, view) || held.is_some() || self.wants(entry, table) {
            if held.is_none() && !self.covers(entry, view) && table.has_members(&entry.name) {
                // What belongs to it may have been there before it.
                self.asked.entry(Arc::clone(&entry.name)).or_insert(Asked { fresh: false, aliases: false });
            } else if held != Some(&Some(entry.version)) {
                self.send(entry, view, batch);
            }
        } else if self.wildcard && entry.moved {
            batch.remove(Arc::clone(&entry.name));
        }
    }

    /// Whether it comes with everything.
    fn covers(&self, entry: &Entry, view: &View<'_>) -> bool {
        self.wildcard && view.includes(entry)
    }

    /// By a key of its own, or of what it belongs to.
    fn wants(&self, entry: &Entry, table: &Table) -> bool {
        self.wants_itself(entry)
            || entry.belongs_to.iter().any(|owner| {
                self.held.contains_key(owner)
                    || table.named(owner).is_some_and(|owner| self.wants_itself(owner))
            })
    }

    fn wants_itself(&self, entry: &Entry) -> bool {
        !self.wanted.is_empty()
            && (self.wanted.contains(&*entry.name)
                || entry.aliases.iter().any(|alias| self.wanted.contains(&**alias)))
    }

    fn send(&mut self, entry: &Arc<Entry>, view: &View<'_>, batch: &mut Batch) {
        if !self.covers(entry, view) {
            self.held.insert(Arc::clone(&entry.name), Some(entry.version));
        }
        batch.set(entry);
    }
}

impl View<'_> {
    fn includes(&self, entry: &Entry) -> bool {
        let facts = Facts { kind: self.kind, name: &entry.name, node: entry.node.as_deref() };
        self.scope.includes(self.client, facts)
    }
}
