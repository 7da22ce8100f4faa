//! What of a policy with mistakes in its form can be held to without opening anything.
//!
//! Each mistake is a part that is not known: `unread` says which, and whoever converts the policy closes what it may have
//! closed. Here only that much is decided: of a DENY rule each restriction stays that could be read in whole, and where an
//! alternative cannot be read it is one for everybody; selectors are those that could be read in whole, or none.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use ztunnel_model::codec::located::{Mistake, Place};

use super::super::text::{Selector, TargetRef};
use super::labels;
use crate::object::{
    Action, AuthorizationPolicy, Condition, From, Labels, Mode, Name, Part, PeerAuthentication, Rule, To,
    Unread,
};

/// Those of the mistakes that leave a part of the policy unknown: all but those about its metadata.
pub(super) fn unread(mistakes: &[Mistake]) -> Vec<Unread> {
    let about_policy = |mistake: &&Mistake| !mistake.path.starts_with("metadata");
    let unread = |at: &Mistake| Unread { part: part(&at.path), document: 0, at: at.clone() };
    mistakes.iter().filter(about_policy).map(unread).collect()
}

/// For example the rule 2 of `spec.rules[2].to[0].operation`.
fn part(path: &str) -> Part {
    let rule = path.strip_prefix("spec.rules[").and_then(|rest| rest.split_once(']'));
    match rule.and_then(|(index, _)| index.parse().ok()) {
        Some(index) => Part::Rule(index),
        None => Part::Whole,
    }
}

pub(super) fn authorization(root: &Place<'_>, name: Name, unread: Vec<Unread>) -> AuthorizationPolicy {
    let marks = Marks(&unread);
    let spec = root.get("spec");
    let rules = spec.and_then(|spec| spec.get("rules"));
    let (action, rules) = match marks.action(spec) {
        // Other policies may allow what this one was to deny, so that to allow nobody would not be enough.
        None => (Action::Deny, vec![Rule::default()]),
        Some(action) => {
            let mut read: Vec<Rule> =
                rules.into_iter().flat_map(|list| marks.items(list)).map(|item| marks.rule(&item)).collect();
            let some_are_lost = rules.is_none_or(|list| marks.at(&list));
            if action == Action::Deny && (read.is_empty() || some_are_lost) {
                read.push(Rule::default());
            }
            (action, read)
        }
    };
    let selector = marks.selector(spec);
    let targets = if selector.is_some() { Vec::new() } else { targets(spec) };
    AuthorizationPolicy { name, selector, targets, action, dry_run: None, rules, unread }
}

pub(super) fn peer(root: &Place<'_>, name: Name, unread: Vec<Unread>) -> PeerAuthentication {
    let selector = Marks(&unread).selector(root.get("spec"));
    let (mode, ports) = (Mode::Strict, BTreeMap::new());
    PeerAuthentication { name, created: None, selector, mode, ports, unread }
}

/// What is written for waypoints is not for workloads, however it is written.
fn targets(spec: Option<Place<'_>>) -> Vec<String> {
    let known = |place: Place<'_>| match decode::<TargetRef>(&place) {
        Some(target) => format!("{}/{}", target.kind, target.name),
        None => "something that cannot be read".to_owned(),
    };
    let Some(spec) = spec else { return Vec::new() };
    let one = spec.get("targetRef").filter(|place| !place.is_null());
    spec.get("targetRefs")
        .into_iter()
        .flat_map(|list| list.items().collect::<Vec<_>>())
        .chain(one)
        .map(known)
        .collect()
}

fn decode<T: DeserializeOwned>(place: &Place<'_>) -> Option<T> {
    place.decode(&mut Vec::new())
}

fn is_leaf(place: &Place<'_>) -> bool {
    place.keys().next().is_none() && place.items().next().is_none()
}

/// The places of the mistakes.
struct Marks<'a>(&'a [Unread]);

impl Marks<'_> {
    /// Whether this value itself is a mistake.
    fn at(&self, place: &Place<'_>) -> bool {
        let path = place.mistake("").path;
        self.0.iter().any(|unread| unread.at.path == path)
    }

    /// Whether there is one in it, or it is one.
    fn within(&self, place: &Place<'_>) -> bool {
        let path = place.mistake("").path;
        let below = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        self.0.iter().any(|unread| unread.at.path.strip_prefix(&path).is_some_and(below))
    }

    /// `None` if it cannot be known: what is written cannot be read, or it may be what is misspelt or misplaced.
    fn action(&self, spec: Option<Place<'_>>) -> Option<Action> {
        if let Some(place) = spec.and_then(|spec| spec.get("action")) {
            return decode(&place).filter(|_| !self.within(&place));
        }
        let may_hide_it = |unread: &Unread| match unread.at.path.strip_prefix("spec.") {
            // It is one word, and no list or mapping.
            Some(path) => {
                let key = path.split(['.', '[']).next().unwrap_or_default();
                spec.and_then(|spec| spec.get(key)).is_none_or(|place| is_leaf(&place))
            }
            None => true,
        };
        let hidden = self.0.iter().filter(|unread| unread.part == Part::Whole).any(may_hide_it);
        (!hidden).then(Action::default)
    }

    fn selector(&self, spec: Option<Place<'_>>) -> Option<Labels> {
        let place = spec?.get("selector").filter(|place| !self.within(place))?;
        decode::<Option<Selector>>(&place)?.map(labels)
    }

    fn items<'p>(&self, list: Place<'p>) -> Vec<Place<'p>> {
        if self.at(&list) { Vec::new() } else { list.items().collect() }
    }

    /// With no more restrictions than could be read in whole.
    fn rule(&self, place: &Place<'_>) -> Rule {
        if self.at(place) {
            return Rule::default();
        }
        let items = |key: &str| place.get(key).into_iter().flat_map(|list| self.items(list));
        let from = items("from").map(|item| From { source: self.restrictions(&item, "source") });
        let to = items("to").map(|item| To { operation: self.restrictions(&item, "operation") });
        // A condition is one restriction more, so one that cannot be read goes.
        let when = items("when").filter(|item| !self.within(item)).filter_map(|item| decode(&item));
        Rule { from: from.collect(), to: to.collect(), when: when.collect::<Vec<Condition>>() }
    }

    /// A source or an operation, whose fields are lists of texts: those lists that could be read in whole.
    fn restrictions<T: DeserializeOwned + Default>(&self, alternative: &Place<'_>, key: &str) -> T {
        let place = alternative.get(key).filter(|place| !self.at(alternative) && !self.at(place));
        let Some(place) = place else { return T::default() };
        let list = |key: &str| {
            let list = place.get(key).filter(|list| !self.within(list))?;
            Some((key.to_owned(), Value::from(decode::<Vec<String>>(&list)?)))
        };
        let fields: Map<String, Value> = place.keys().filter_map(list).collect();
        serde_json::from_value(Value::Object(fields)).unwrap_or_default()
    }
}
