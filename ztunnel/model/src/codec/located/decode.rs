//! Serde decoding that goes on behind a mistake.
//!
//! Serde stops at the first error, so a value is decoded in passes: the value that failed is named and set aside
//! (elements and entries set aside are skipped, required keys among them are filled with something), then all is tried
//! again. Each pass sets one more node aside or fills one more key, so the passes end; what they decode is thrown away
//! unless the first one succeeded.

use std::cell::RefCell;
use std::collections::HashSet;

use serde::de::DeserializeOwned;

use super::fault::{Fault, Reason};
use super::tree::{Entry, Kind, NodeId, Position};
use super::value::Value;
use super::{Document, Mistake};

/// So many mistakes in one value are enough; the time that the passes take grows with their square.
const MAX_MISTAKES: usize = 1000;

/// What becomes of a key that the type does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnknownKeys {
    Refused,
    Ignored,
}

pub(super) fn decode<T: DeserializeOwned>(
    document: &Document,
    root: NodeId,
    unknown_keys: UnknownKeys,
    mistakes: &mut Vec<Mistake>,
) -> Option<T> {
    let mut reading = Reading {
        document,
        unknown_keys,
        aside: HashSet::new(),
        filled: Vec::new(),
        unknown: RefCell::default(),
    };
    let known = mistakes.len();
    while !reading.is_aside(root) && mistakes.len() - known < MAX_MISTAKES {
        let outcome = T::deserialize(Value { reading: &reading, id: root });
        let mut unknown = reading.unknown.take();
        unknown.retain(|(node, _, _)| reading.aside.insert(*node));
        let first_pass = mistakes.len() == known && reading.aside.is_empty();
        mistakes.extend(
            unknown.into_iter().map(|(node, position, reason)| document.mistake(node, position, reason)),
        );
        match outcome {
            Ok(value) => return (first_pass && !reading.has_broken(root)).then_some(value),
            Err(fault) => mistakes.extend(reading.set_aside(root, fault)),
        }
    }
    None
}

pub(super) struct Reading<'d> {
    document: &'d Document,
    unknown_keys: UnknownKeys,
    aside: HashSet<NodeId>,
    /// Required keys of mappings that are missing, or whose values are set aside.
    filled: Vec<(NodeId, &'static str)>,
    unknown: RefCell<Vec<(NodeId, Position, String)>>,
}

impl<'d> Reading<'d> {
    pub(super) fn kind(&self, id: NodeId) -> &'d Kind {
        &self.document.tree.node(id).kind
    }

    pub(super) fn is_aside(&self, id: NodeId) -> bool {
        self.aside.contains(&id) || matches!(self.kind(id), Kind::Broken)
    }

    /// Whether something below could not even be read.
    fn has_broken(&self, id: NodeId) -> bool {
        match self.kind(id) {
            Kind::Broken => true,
            Kind::Scalar { .. } => false,
            Kind::Sequence(items) => items.iter().any(|item| self.has_broken(*item)),
            Kind::Mapping(entries) => entries.iter().any(|entry| self.has_broken(entry.value)),
        }
    }

    fn set_aside(&mut self, root: NodeId, fault: Fault) -> Option<Mistake> {
        let node = fault.node.unwrap_or(root);
        if let Reason::MissingKey(key) = fault.reason
            && !self.filled.contains(&(node, key))
        {
            self.filled.push((node, key));
            let present =
                matches!(self.kind(node), Kind::Mapping(entries) if entries.iter().any(|e| e.key == key));
            let mistake = || self.document.mistake(node, self.position(node), fault.to_string());
            return (!present).then(mistake);
        }
        let consequence = matches!(fault.reason, Reason::Consequence) || self.is_affected(node);
        if !self.aside.insert(node) {
            // A type that fails without reading its value would fail for ever: what holds it gives way.
            let mut up = node;
            while self.aside.contains(&up) && up != root {
                up = self.document.tree.parent(up).unwrap_or(root);
            }
            self.aside.insert(up);
        }
        let position = fault.position.unwrap_or_else(|| self.position(node));
        (!consequence).then(|| self.document.mistake(node, position, fault.to_string()))
    }

    /// A complaint about a collection that already lacks parts may be about what it lacks.
    fn is_affected(&self, id: NodeId) -> bool {
        let children_aside = match self.kind(id) {
            Kind::Sequence(items) => items.iter().any(|item| self.is_aside(*item)),
            Kind::Mapping(entries) => entries.iter().any(|entry| self.is_aside(entry.value)),
            Kind::Scalar { .. } | Kind::Broken => false,
        };
        children_aside || self.filled.iter().any(|(node, _)| *node == id)
    }

    fn position(&self, id: NodeId) -> Position {
        self.document.tree.node(id).position
    }

    pub(super) fn readable(&self, entries: &'d [Entry]) -> Vec<&'d Entry> {
        entries.iter().filter(|entry| !self.is_aside(entry.value)).collect()
    }

    pub(super) fn filled(&self, mapping: NodeId) -> Vec<&'static str> {
        self.filled.iter().filter(|(node, _)| *node == mapping).map(|(_, key)| *key).collect()
    }

    pub(super) fn unknown_key(&self, entry: &Entry, reason: String) {
        if self.unknown_keys == UnknownKeys::Refused {
            self.unknown.borrow_mut().push((entry.value, entry.position, reason));
        }
    }
}
