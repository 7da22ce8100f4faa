//! What is told about the machine: plain numbers, for metrics and the administration page.

use super::lost::Lost;
use crate::backoff::End;
use crate::resource::{Rejection, TypeUrl, Update};

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub streams: u64,
    pub disconnects: u64,
    pub terminations: Terminations,
    pub acks: u64,
    pub nacks: u64,
    /// Responses of a type that nobody subscribed to.
    pub unknown_type: u64,
}

/// How tries to have a stream ended (interop.md section 11.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terminations {
    /// There was none.
    pub connection_error: u64,
    /// The server said what is wrong, or said nothing for too long.
    pub error: u64,
    /// What happens to every stream at some time.
    pub reconnect: u64,
    /// The server closed it.
    pub complete: u64,
}

impl Terminations {
    pub(super) fn count(&mut self, lost: &Lost) {
        let counter = match lost {
            Lost::NotConnected(_) => &mut self.connection_error,
            Lost::Closed => &mut self.complete,
            Lost::Status(_) if lost.end() == End::Ordinary => &mut self.reconnect,
            Lost::Status(_) | Lost::Silent { .. } | Lost::Stuck { .. } => &mut self.error,
        };
        *counter += 1;
    }
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
    /// Of the bodies.
    pub bytes: u64,
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
            bytes: 0,
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
