//! Single resources that a client asks for by name or alias, and lets go.

use std::sync::Arc;

use super::{Asked, Interest, Missed, Progress, View, Walk};
use crate::xds::response::Batch;
use crate::xds::store::{Entry, Table};

/// How far the answer to one key has got. However many belong to it, this is all that is remembered meanwhile.
#[derive(Debug)]
pub(super) struct Expansion {
    pub(super) owner: Arc<str>,
    /// The last of those that belong to it, in the order of names.
    told: Option<Arc<str>>,
    fresh: bool,
}

impl Interest {
    /// Lets go of what was unsubscribed, unless an alias of it is still wanted. The client decides that by the version that
    /// it has; if there is another by now, it is told that this one is gone. If all is gone, the log tells so.
    pub(super) fn leave(&mut self, table: &Table, batch: &mut Batch) -> Progress {
        while let Some(name) = self.left.first() {
            if !batch.look() || batch.is_full_for(name.len()) {
                return Progress::More;
            }
            let Some(name) = self.left.pop_first() else { break };
            let entry = table.named(&name);
            if self.wanted.contains(&*name) {
                continue;
            }
            // What belongs to something that is wanted comes again when it changes.
            if entry.map_or(self.held.contains_key(&name), |entry| self.wants_itself(entry)) {
                self.asked.entry(name).and_modify(|asked| asked.aliases = false);
                continue;
            }
            self.asked.remove(&name);
            self.expansion.take_if(|expansion| expansion.owner == name);
            let version = self.held.remove(&name);
            let crossed = version.is_some_and(|version| version != entry.map(|entry| entry.version));
            if crossed && !entry.is_some_and(|entry| self.wants(entry, table)) {
                batch.remove(name);
            }
        }
        Progress::Done
    }

    pub(super) fn notice_forgotten(&mut self, table: &Table) -> Result<(), Missed> {
        let until = match &self.walk {
            Some(Walk::Compare { until, .. }) => until.unwrap_or_default(),
            Some(Walk::Vanished { until, .. }) => *until,
            None => 0,
        };
        if table.forgotten() <= self.cursor.max(until) {
            return Ok(());
        }
        if self.wildcard {
            return Err(Missed);
        }
        let unasked = Asked { fresh: false, aliases: false };
        for name in self.held.keys() {
            self.asked.entry(Arc::clone(name)).or_insert(unasked);
        }
        for key in &self.wanted {
            self.asked.entry(Arc::from(&**key)).or_insert(Asked { fresh: false, aliases: true });
        }
        self.cursor = table.latest();
        Ok(())
    }

    /// Answers what is asked: with the resources, or with the removal of a key that leads nowhere.
    pub(super) fn answer(&mut self, table: &Table, view: &View<'_>, batch: &mut Batch) -> Progress {
        loop {
            match self.expand(table, view, batch) {
                Progress::Done => {}
                unfinished => return unfinished,
            }
            let Some((key, asked)) = self.asked.first_key_value() else { return Progress::Done };
            let (key, asked) = (Arc::clone(key), *asked);
            let found = table.named(&key);
            if found.is_some() && view.comes_later(&key, table) {
                return Progress::Waits;
            }
            if !batch.look() || batch.is_full_for(found.map_or(key.len(), |entry| entry.encoded.len())) {
                return Progress::More;
            }
            self.asked.remove(&key);
            let others = if asked.aliases { table.names_of_alias(&key) } else { &[] };
            for name in others.iter().filter(|name| **name != key) {
                self.asked.entry(Arc::clone(name)).or_insert(Asked { aliases: false, ..asked });
            }
            match found {
                Some(_) if table.has_members(&key) => {
                    self.expansion = Some(Expansion { owner: key, told: None, fresh: asked.fresh });
                }
                Some(entry) => self.send_unless_known(entry, asked.fresh, view, batch),
                None => {
                    if self.held.remove(&key).is_some() || others.is_empty() {
                        batch.remove(key);
                    }
                }
            }
        }
    }

    /// Sends what belongs to the key that is being answered, as far as the client does not have it, and then that.
    fn expand(&mut self, table: &Table, view: &View<'_>, batch: &mut Batch) -> Progress {
        while let Some(expansion) = &mut self.expansion {
            let next = table.member_after(&expansion.owner, expansion.told.as_ref());
            let name = next.unwrap_or(&expansion.owner);
            let found = table.named(name);
            if found.is_some() && view.comes_later(name, table) {
                return Progress::Waits;
            }
            let length = found.map_or(expansion.owner.len(), |entry| entry.encoded.len());
            if !batch.look() || batch.is_full_for(length) {
                return Progress::More;
            }
            if let Some(name) = next {
                expansion.told = Some(Arc::clone(name));
                let fresh = self.asked.get_mut(name).is_some_and(|asked| std::mem::take(&mut asked.fresh));
                if let Some(entry) = found {
                    self.send_unless_known(entry, fresh, view, batch);
                }
                continue;
            }
            let Some(Expansion { owner, fresh, .. }) = self.expansion.take() else { break };
            match found {
                Some(entry) => self.send_unless_known(entry, fresh, view, batch),
                // It went meanwhile.
                None => {
                    self.held.remove(&owner);
                    batch.remove(owner);
                }
            }
        }
        Progress::Done
    }

    fn send_unless_known(&mut self, entry: &Arc<Entry>, fresh: bool, view: &View<'_>, batch: &mut Batch) {
        let held = self.held.get(&entry.name) == Some(&Some(entry.version));
        if fresh || !(held || self.covers(entry, view)) {
            self.send(entry, view, batch);
        }
    }
}

impl View<'_> {
    /// Whether it changed after what other types have still to say.
    fn comes_later(&self, name: &str, table: &Table) -> bool {
        table.changed(name).is_some_and(|changed| changed > self.until)
    }
}
