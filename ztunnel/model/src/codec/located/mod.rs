//! YAML and JSON with places: every mistake of a document is found in one go and says where it stands.
//!
//! A document is a tree whose nodes know their place. Parts of it are decoded with serde; a part that fails is named and
//! set aside, and decoding goes on behind it, so one run finds every wrong value, missing key and unknown key. Stricter
//! than YAML where YAML surprises: one document (unless several are asked for), no anchors, aliases or tags, no key twice, no number or `null` where a
//! text belongs.
//!
//! Built on the events of `saphyr-parser`. The trees and serde front ends of YAML that were tried stop at the first
//! mistake, cannot tell `"80"` from `80`, pass over a second document in silence (with whatever policies it holds), or
//! overflow the stack on deep nesting. Types with `flatten`, `untagged` or `tag` are read through serde's own buffer,
//! which loses places and unknown keys: do not decode such types here.
//!
//! Knows nothing of what the documents are about.

mod decode;
mod fault;
mod filling;
mod key;
mod scalar;
mod split;
mod tree;
mod value;

use std::cell::RefCell;
use std::fmt;

use serde::de::DeserializeOwned;

use decode::UnknownKeys;
use tree::{Kind, NodeId, Position, Tree};

/// One mistake and its place. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub file: String,
    pub line: usize,
    pub column: usize,
    /// For example `workloads[2].workloadIps[0]`; empty for the document itself.
    pub path: String,
    pub reason: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

/// Orders mistakes as they stand in the text.
pub fn sort(mistakes: &mut [Mistake]) {
    mistakes.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
}

/// A parsed document; its top level is a mapping.
#[derive(Debug)]
pub struct Document {
    file: String,
    tree: Tree,
    /// Mistakes of the document as such (a key twice, an anchor, a tag); whoever reads first takes them.
    pending: RefCell<Vec<Mistake>>,
}

impl Document {
    /// Parses YAML, of which JSON is a part. An empty text is an empty mapping. What makes the text no document at all
    /// is the error; other mistakes come with the first list, key check or decoding.
    pub fn parse(text: &str, file: &str) -> Result<Self, Mistake> {
        Self::parse_at(text, file, 0)
    }

    /// Parses each document of a text; those that hold nothing are left out. A document that is none does not hide the
    /// others.
    pub fn parse_all(text: &str, file: &str) -> Vec<Result<Self, Mistake>> {
        split::split(text).map(|(before, text)| Self::parse_at(text, file, before)).collect()
    }

    fn parse_at(text: &str, file: &str, before: usize) -> Result<Self, Mistake> {
        let at = |position: Position, path: String, reason: String| Mistake {
            file: file.to_owned(),
            line: position.line,
            column: position.column,
            path,
            reason,
        };
        let (tree, faults) =
            Tree::parse(text, before).map_err(|fatal| at(fatal.position, fatal.path, fatal.reason))?;
        let root = &tree.node(Tree::ROOT).kind;
        if !matches!(root, Kind::Mapping(_)) && !root.is_null() {
            let reason = format!("the document must be a mapping, found {}", root.describe());
            return Err(at(tree.node(Tree::ROOT).position, String::new(), reason));
        }
        let pending = faults.into_iter().map(|fault| at(fault.position, tree.path(fault.node), fault.reason));
        let pending = RefCell::new(pending.collect());
        Ok(Self { file: file.to_owned(), tree, pending })
    }

    /// Refuses every top-level key but these.
    pub fn only_keys(&self, known: &[&str], mistakes: &mut Vec<Mistake>) {
        mistakes.append(&mut self.pending.borrow_mut());
        let Kind::Mapping(entries) = &self.tree.node(Tree::ROOT).kind else { return };
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let reason = fault::unknown_key(&entry.key, known);
            mistakes.push(self.mistake(entry.value, entry.position, reason));
        }
    }

    /// The items of a top-level list; none when the key is absent or has no value.
    pub fn items(&self, key: &str, mistakes: &mut Vec<Mistake>) -> Vec<Place<'_>> {
        mistakes.append(&mut self.pending.borrow_mut());
        let Some(list) = self.field(key) else { return Vec::new() };
        match list.kind() {
            Kind::Sequence(items) => items.iter().map(|node| Place { document: self, node: *node }).collect(),
            Kind::Broken => Vec::new(),
            kind if kind.is_null() => Vec::new(),
            kind => {
                mistakes.push(list.mistake(format!("expected a list, found {}", kind.describe())));
                Vec::new()
            }
        }
    }

    /// The whole document.
    pub fn root(&self) -> Place<'_> {
        Place { document: self, node: Tree::ROOT }
    }

    /// A top-level value.
    pub fn field(&self, key: &str) -> Option<Place<'_>> {
        self.root().get(key)
    }

    fn mistake(&self, node: NodeId, position: Position, reason: String) -> Mistake {
        let path = self.tree.path(node);
        Mistake { file: self.file.clone(), line: position.line, column: position.column, path, reason }
    }
}

/// A value in a document.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    document: &'a Document,
    node: NodeId,
}

impl<'a> Place<'a> {
    /// Decodes the value; every unknown key, missing key and wrong value in it is added to the mistakes, and then there
    /// is no value.
    pub fn decode<T: DeserializeOwned>(&self, mistakes: &mut Vec<Mistake>) -> Option<T> {
        mistakes.append(&mut self.document.pending.borrow_mut());
        decode::decode(self.document, self.node, UnknownKeys::Refused, mistakes)
    }

    /// As `decode`, but keys that the type does not have are passed over.
    pub fn decode_known<T: DeserializeOwned>(&self, mistakes: &mut Vec<Mistake>) -> Option<T> {
        mistakes.append(&mut self.document.pending.borrow_mut());
        decode::decode(self.document, self.node, UnknownKeys::Ignored, mistakes)
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&'a str> {
        match self.kind() {
            Kind::Scalar { text, plain } if !*plain || scalar::meaning(text) == scalar::Meaning::Text => {
                Some(text)
            }
            _ => None,
        }
    }

    pub fn is_null(&self) -> bool {
        self.kind().is_null()
    }

    /// The keys of a mapping; of anything else, none.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        let entries = match self.kind() {
            Kind::Mapping(entries) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().map(|entry| entry.key.as_str())
    }

    /// The items of a list; of anything else, none.
    pub fn items(&self) -> impl Iterator<Item = Place<'a>> {
        let (items, document) = match self.kind() {
            Kind::Sequence(items) => (items.as_slice(), self.document),
            _ => (&[][..], self.document),
        };
        items.iter().map(move |node| Place { document, node: *node })
    }

    /// A mistake that a key of this mapping makes; it stands where the key does.
    pub fn key_mistake(&self, key: &str, reason: impl fmt::Display) -> Mistake {
        let entry = match self.kind() {
            Kind::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        };
        match entry {
            Some(entry) => self.document.mistake(entry.value, entry.position, reason.to_string()),
            None => self.mistake(reason),
        }
    }

    /// Refuses every key of this mapping but these.
    pub fn only_keys(&self, known: &[&str], mistakes: &mut Vec<Mistake>) {
        let unknown = self.keys().filter(|key| !known.contains(key));
        mistakes.extend(unknown.map(|key| self.key_mistake(key, fault::unknown_key(key, known))));
    }

    /// A mistake that this value makes.
    pub fn mistake(&self, reason: impl fmt::Display) -> Mistake {
        self.document.mistake(self.node, self.document.tree.node(self.node).position, reason.to_string())
    }

    /// The value of a key inside, or this one when there is none: a mistake about it belongs to the nearest place.
    pub fn key(&self, key: &str) -> Self {
        self.get(key).unwrap_or(*self)
    }

    /// The item of a list inside, or this one.
    pub fn index(&self, index: usize) -> Self {
        match self.kind() {
            Kind::Sequence(items) => items.get(index).map_or(*self, |node| Self { node: *node, ..*self }),
            _ => *self,
        }
    }

    /// The value of a key inside.
    pub fn get(&self, key: &str) -> Option<Place<'a>> {
        let Kind::Mapping(entries) = self.kind() else { return None };
        let entry = entries.iter().find(|entry| entry.key == key)?;
        Some(Place { node: entry.value, ..*self })
    }

    fn kind(&self) -> &'a Kind {
        &self.document.tree.node(self.node).kind
    }
}

#[cfg(test)]
mod tests;
