//! The demands of one type: keys that somebody waits for, and keys that the server has been asked to keep us told about.
//!
//! ```text
//!            demand                     resource with this name or alias
//!  unknown ──────────▶ waiting, subscribed ──────────────────▶ held, subscribed
//!     ▲                       │ removal, time-out, unusable          │ removal, alias dropped
//!     └───────────────────────┴──────────── unsubscribed ────────────┘
//! ```
//!
//! A key that leads nowhere is unsubscribed from. Otherwise every address that a pod ever dialled would stay on both
//! sides for ever; and istiod does not answer when asked for a key that it believes subscribed already, so that asking
//! again would never be answered. Unsubscribing and subscribing never share a message, nor an ACK: within one message
//! istiod carries out the unsubscription last, and in an ACK it takes neither. What the server sends unasked counts as
//! subscribed, because istiod sees it so. An answer may cross an unsubscription on its way: then the server would never
//! tell of a change to what we now hold, so it is subscribed to anew, by name.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Instant;

use super::{DemandLimits, Outcome, Refused};
use crate::resource::{Resource, ResourceName};

/// Most keys that one message carries.
const BATCH: usize = 1000;

/// How many unsubscriptions an answer can cross and still be recognised.
const LEFT: usize = 8192;

#[derive(Debug)]
pub(super) struct OnDemand {
    limits: DemandLimits,
    waiting: HashMap<ResourceName, Instant>,
    /// The same, earliest first.
    deadlines: BTreeSet<(Instant, ResourceName)>,
    /// Alias to name, of what is held.
    aliases: HashMap<ResourceName, ResourceName>,
    /// Name to aliases, of what is held and has some.
    aliases_of: HashMap<ResourceName, Box<[ResourceName]>>,
    /// What the server believes us to want. Each key in it is waiting or held.
    subscribed: HashSet<ResourceName>,
    /// The first request of this stream has been made; from there on changes are told.
    begun: bool,
    to_unsubscribe: BTreeSet<ResourceName>,
    to_subscribe: BTreeSet<ResourceName>,
    /// The latest unsubscriptions of this stream.
    left: Left,
}

#[derive(Debug, Default)]
struct Left {
    keys: HashSet<ResourceName>,
    /// Oldest first.
    order: VecDeque<ResourceName>,
}

impl OnDemand {
    pub(super) fn new(limits: DemandLimits) -> Self {
        Self {
            limits,
            waiting: HashMap::new(),
            deadlines: BTreeSet::new(),
            aliases: HashMap::new(),
            aliases_of: HashMap::new(),
            subscribed: HashSet::new(),
            begun: false,
            to_unsubscribe: BTreeSet::new(),
            to_subscribe: BTreeSet::new(),
            left: Left::default(),
        }
    }

    /// What a stream begins with: "*" in both lists is how to ask for nothing at first (no names at all would mean
    /// everything); beside it whatever is still wanted.
    pub(super) fn begin(&mut self) -> (Vec<String>, Vec<String>) {
        self.begun = true;
        self.subscribed.extend(self.waiting.keys().cloned());
        let mut wanted: Vec<_> = self.subscribed.iter().map(ToString::to_string).collect();
        wanted.push("*".to_owned());
        wanted.sort_unstable();
        (wanted, vec!["*".to_owned()])
    }

    pub(super) fn end(&mut self) {
        self.begun = false;
        self.to_subscribe.clear();
        self.to_unsubscribe.clear();
        self.left = Left::default();
    }

    /// The next message: keys to subscribe to, or keys to unsubscribe from, which go first.
    pub(super) fn changes(&mut self) -> Option<(Vec<String>, Vec<String>)> {
        let batch = |keys: &mut BTreeSet<ResourceName>| {
            let count = keys.len().min(BATCH);
            (0..count).filter_map(|_| keys.pop_first()).map(|key| key.to_string()).collect::<Vec<_>>()
        };
        if !self.to_unsubscribe.is_empty() {
            return Some((Vec::new(), batch(&mut self.to_unsubscribe)));
        }
        (!self.to_subscribe.is_empty()).then(|| (batch(&mut self.to_subscribe), Vec::new()))
    }

    pub(super) fn is_alias(&self, key: &str) -> bool {
        self.aliases.contains_key(key)
    }

    /// Waits for a key that is not held. A key that is waited for already keeps its deadline.
    pub(super) fn demand(&mut self, key: &str, now: Instant) -> Result<(), Refused> {
        if self.waiting.contains_key(key) {
            return Ok(());
        }
        if self.waiting.len() >= self.limits.outstanding {
            return Err(Refused::TooMany(self.limits.outstanding));
        }
        let key = ResourceName::from(key);
        let deadline = now + self.limits.timeout;
        self.waiting.insert(key.clone(), deadline);
        self.deadlines.insert((deadline, key.clone()));
        if self.begun {
            self.subscribed.insert(key.clone());
            self.to_subscribe.insert(key);
        }
        Ok(())
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    pub(super) fn expired(&mut self, now: Instant) -> Vec<ResourceName> {
        let mut expired = Vec::new();
        while let Some((deadline, _)) = self.deadlines.first()
            && *deadline <= now
        {
            let Some((_, key)) = self.deadlines.pop_first() else { break };
            self.waiting.remove(&key);
            self.release(&key);
            expired.push(key);
        }
        expired
    }

    /// A resource came, and was applied or not.
    pub(super) fn changed(
        &mut self,
        resource: &Resource,
        applied: bool,
        answered: &mut Vec<(ResourceName, Outcome)>,
    ) {
        if !applied {
            for key in [resource.name()].into_iter().chain(resource.aliases()) {
                self.unusable(key.as_str(), answered);
            }
            return;
        }
        let name = resource.name();
        let crossed = [name].into_iter().chain(resource.aliases()).any(|key| self.left.keys.contains(key));
        if self.subscribed.insert(name.clone()) && crossed {
            self.to_subscribe.insert(name.clone());
        }
        let before = if resource.aliases().is_empty() {
            self.aliases_of.remove(name)
        } else {
            self.aliases_of.insert(name.clone(), resource.aliases().into())
        };
        for alias in resource.aliases() {
            self.aliases.insert(alias.clone(), name.clone());
        }
        for alias in before.iter().flatten().filter(|alias| !resource.aliases().contains(alias)) {
            self.drop_alias(alias, name);
        }
        for key in [name].into_iter().chain(resource.aliases()) {
            self.answer(key.as_str(), Outcome::Found, answered);
        }
    }

    /// A name has gone, or the server knows nothing under a key.
    pub(super) fn removed(&mut self, name: &ResourceName, answered: &mut Vec<(ResourceName, Outcome)>) {
        for alias in self.aliases_of.remove(name).iter().flatten() {
            self.drop_alias(alias, name);
        }
        self.aliases.remove(name);
        self.answer(name.as_str(), Outcome::Absent, answered);
        self.release(name);
    }

    /// Whoever waits for this key learns that what came cannot be used.
    pub(super) fn unusable(&mut self, key: &str, answered: &mut Vec<(ResourceName, Outcome)>) {
        if self.answer(key, Outcome::Unavailable, answered) {
            self.release(&ResourceName::from(key));
        }
    }

    fn answer(&mut self, key: &str, outcome: Outcome, answered: &mut Vec<(ResourceName, Outcome)>) -> bool {
        let Some((key, deadline)) = self.waiting.remove_entry(key) else { return false };
        self.deadlines.remove(&(deadline, key.clone()));
        answered.push((key, outcome));
        true
    }

    fn drop_alias(&mut self, alias: &ResourceName, name: &ResourceName) {
        if self.aliases.get(alias) == Some(name) {
            self.aliases.remove(alias);
            self.release(alias);
        }
    }

    fn release(&mut self, key: &ResourceName) {
        if self.subscribed.remove(key) && !self.to_subscribe.remove(key) && self.begun {
            self.to_unsubscribe.insert(key.clone());
            self.left.add(key);
        }
    }
}

impl Left {
    fn add(&mut self, key: &ResourceName) {
        if self.keys.insert(key.clone()) {
            self.order.push_back(key.clone());
        }
        if self.order.len() > LEFT
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }
}
