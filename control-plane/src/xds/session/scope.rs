//! What "everything" means to a client.

use crate::resource::Kind;

/// What is known of a resource without reading it.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub kind: Kind,
    pub name: &'a str,
    /// The node that it belongs to.
    pub node: Option<&'a str>,
}

/// Which resources a wildcard subscription includes. It may depend on nothing but the client's node and the facts: a
/// resource that comes to belong to another node is taken from those who had it, and nothing else is noticed.
pub trait Scope: Send + Sync {
    fn includes(&self, client: Option<&str>, resource: Facts<'_>) -> bool;
}

/// The default: each node gets all.
#[derive(Clone, Copy, Debug)]
pub struct Everything;

impl Scope for Everything {
    fn includes(&self, _: Option<&str>, _: Facts<'_>) -> bool {
        true
    }
}
