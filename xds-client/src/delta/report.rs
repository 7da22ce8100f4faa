//! What is told about the machine: plain numbers, for metrics and the administration page.

use crate::resource::{Rejection, TypeUrl, Update};

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub streams: u64,
    pub disconnects: u64,
    pub acks: u64,
    pub nacks: u64,
    /// Responses of a type that nobody subscribed to.
    pub unknown_type: u64,
}

/// One type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeReport {
    pub type_url: TypeUrl,
    /// Answered once since the start.
    pub synced: bool,
    /// Resources held now.
    pub held: usize,
    pub responses: u64,
    pub nacks: u64,
    pub resources: u64,
    pub removed: u64,
    pub rejected: u64,
    /// The first rejection of the last response that was refused.
    pub last_rejection: Option<Rejection>,
}

impl TypeReport {
    pub(super) fn new(type_url: TypeUrl) -> Self {
        Self {
            type_url,
            synced: false,
            held: 0,
            responses: 0,
            nacks: 0,
            resources: 0,
            removed: 0,
            rejected: 0,
            last_rejection: None,
        }
    }

    pub(super) fn count(&mut self, update: &Update, rejected: &[Rejection]) {
        self.responses += 1;
        self.resources += update.changed.len() as u64;
        self.removed += update.removed.len() as u64;
        self.rejected += rejected.len() as u64;
        if let Some(first) = rejected.first() {
            self.nacks += 1;
            self.last_rejection = Some(first.clone());
        }
    }
}
