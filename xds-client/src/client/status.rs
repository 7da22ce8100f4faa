//! What is told about the client: plain values for metrics and the administration page.

use std::time::Instant;

use crate::delta::{Counters, Machine, TypeReport};

#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub connection: Connection,
    /// Why the last stream ended or could not be had.
    pub last_error: Option<String>,
    pub counters: Counters,
    /// Encoded, before TLS.
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub types: Vec<TypeReport>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    Connecting {
        since: Instant,
    },
    Connected {
        since: Instant,
    },
    /// Between two tries.
    Waiting {
        since: Instant,
        until: Instant,
    },
}

impl Status {
    pub(super) fn new(now: Instant, machine: &Machine) -> Self {
        Self {
            connection: Connection::Connecting { since: now },
            last_error: None,
            counters: machine.counters(),
            bytes_received: 0,
            bytes_sent: 0,
            types: machine.reports(),
        }
    }

    pub fn is_connected(&self) -> bool {
        matches!(self.connection, Connection::Connected { .. })
    }
}
