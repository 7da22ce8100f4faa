//! Why one pass of decoding stopped, and where.

use std::fmt;

use serde::de;

use super::tree::{NodeId, Position};

#[derive(Debug)]
pub(super) struct Fault {
    pub reason: Reason,
    /// The innermost value that was being read.
    pub node: Option<NodeId>,
    /// Other than the value's own position: that of its key.
    pub position: Option<Position>,
}

#[derive(Debug)]
pub(super) enum Reason {
    Text(String),
    MissingKey(&'static str),
    /// Follows from a mistake that is named already.
    Consequence,
}

impl Fault {
    pub(super) fn new(reason: Reason) -> Self {
        Self { reason, node: None, position: None }
    }

    pub(super) fn text(reason: String) -> Self {
        Self::new(Reason::Text(reason))
    }

    pub(super) fn at(mut self, node: NodeId) -> Self {
        self.node.get_or_insert(node);
        self
    }
}

pub(super) fn unknown_key(key: &str, known: &[&str]) -> String {
    format!("unknown key {key:?} (known: {})", known.join(", "))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Text(text) => f.write_str(text),
            Reason::MissingKey(key) => write!(f, "the key {key:?} is missing"),
            Reason::Consequence => f.write_str("follows from another mistake"),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::text(reason.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Reason::MissingKey(field))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::text(format!("unknown value {variant:?} (known: {})", expected.join(", ")))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::text(format!("the key {field:?} stands twice under different names"))
    }
}
