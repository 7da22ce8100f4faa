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
    let nearest = nearest(key, known).map(|known| format!("; is it {known:?}?")).unwrap_or_default();
    format!("unknown key {key:?} (known: {}){nearest}", known.join(", "))
}

/// The known key that may have been meant: one that differs in case only, or in one of about three letters.
pub(super) fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let key = key.to_lowercase();
    let distance = |known: &&&str| distance(&key, &known.to_lowercase());
    let best = known.iter().min_by_key(distance)?;
    (distance(&best) <= key.chars().count().div_ceil(3)).then_some(*best)
}

/// The number of letters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    // Nobody means a known key by a text as long as this, and the time grows with the square.
    const LONGEST: usize = 64;
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len() > LONGEST || b.len() > LONGEST {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, letter) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
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
