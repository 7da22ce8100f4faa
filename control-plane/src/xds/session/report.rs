//! How a client gets on with one type, for people to look at.

use std::time::Instant;

use serde::Serialize;

/// How much of a client's own words is kept.
const MESSAGE: usize = 1024;

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nack {
    pub nonce: String,
    pub message: String,
}

/// One type of one client.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TypeReport {
    pub type_url: String,
    pub wildcard: bool,
    /// What it is subscribed to beside the wildcard.
    pub keys: usize,
    /// How many resources it has; of a wildcard that is not caught up, none are counted.
    pub resources: usize,
    /// It is not up to date, or has not said so.
    pub pending: bool,
    /// The sequence numbers that were sent and acknowledged, and that of the type's latest change.
    pub sent: u64,
    pub acked: u64,
    pub latest: u64,
    /// For how long a response has been in flight.
    pub unanswered_s: Option<f64>,
    pub acked_ago_s: Option<f64>,
    pub responses: u64,
    pub acks: u64,
    pub nacks: u64,
    /// Answers to something that was not in flight.
    pub stale: u64,
    pub last_nack: Option<Nack>,
    pub nacked_ago_s: Option<f64>,
}

#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) responses: u64,
    pub(super) sent: u64,
    pub(super) stale: u64,
    acked: u64,
    acked_at: Option<Instant>,
    acks: u64,
    nacks: u64,
    /// Boxed, because most clients have none.
    last_nack: Option<Box<(Nack, Instant)>>,
}

impl Record {
    pub(super) fn acked(&mut self, sequence: u64, now: Instant) {
        self.acks += 1;
        self.acked = sequence;
        self.acked_at = Some(now);
    }

    pub(super) fn refused(&mut self, nonce: String, message: &str, now: Instant) -> Nack {
        self.nacks += 1;
        let nack = Nack { nonce, message: message.chars().take(MESSAGE).collect() };
        self.last_nack = Some(Box::new((nack.clone(), now)));
        nack
    }

    /// The part of a report that is counted here.
    pub(super) fn report(&self, now: Instant) -> TypeReport {
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        TypeReport {
            sent: self.sent,
            acked: self.acked,
            acked_ago_s: self.acked_at.map(ago),
            responses: self.responses,
            acks: self.acks,
            nacks: self.nacks,
            stale: self.stale,
            last_nack: self.last_nack.as_ref().map(|last| last.0.clone()),
            nacked_ago_s: self.last_nack.as_ref().map(|last| ago(last.1)),
            ..TypeReport::default()
        }
    }
}
