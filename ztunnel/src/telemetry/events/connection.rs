//! One connection: its byte counts, its metrics and its access log line.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tracing::{Level, event};

use super::{Facts, Failure, Flag, Reporter, Security};
use crate::telemetry::Metrics;
use crate::telemetry::labels::Series;

/// An open connection. Dropped without `finish`, it says that the drain cut it.
pub struct Connection {
    metrics: Arc<Metrics>,
    bytes: Arc<Bytes>,
    // Boxed: it is read at the end only, and must not make every connection's future larger.
    facts: Box<Facts>,
    started: Instant,
    ended: bool,
}

/// The bytes of one connection, counted for its log line and for the metrics at once, without any look-up.
pub struct Bytes {
    received: AtomicU64,
    sent: AtomicU64,
    series: Arc<Series>,
}

impl Bytes {
    /// Bytes that went from client to server.
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.series.received.inc_by(bytes);
    }

    /// Bytes that went from server to client.
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.series.sent.inc_by(bytes);
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

macro_rules! access {
    ($level:expr, $facts:expr, $message:literal $(, $($more:tt)*)?) => {{
        let facts: &Facts = $facts;
        let principals = (facts.security != Security::Plaintext).then_some(facts);
        event!(
            target: "access",
            parent: None,
            $level,
            src.addr = %facts.src,
            src.workload = facts.source.name(),
            src.namespace = facts.source.namespace(),
            src.identity = principals.and_then(|facts| facts.source_principal.as_ref()).map(ToString::to_string),
            src.cluster = facts.source.cluster(),
            dst.addr = %facts.dst,
            dst.hbone_addr = facts.hbone_addr.as_ref().map(tracing::field::display),
            dst.service = facts.destination_service.as_ref().map(|service| service.key.hostname.as_str()),
            dst.workload = facts.destination.name(),
            dst.namespace = facts.destination.namespace(),
            dst.identity =
                principals.and_then(|facts| facts.destination_principal.as_ref()).map(ToString::to_string),
            dst.cluster = facts.destination.cluster(),
            direction = facts.reporter.direction(),
            $($($more)*)?
            trace.id = facts.trace.map(|trace| tracing::field::display(trace.id())),
            $message
        )
    }};
}

impl Connection {
    pub fn open(metrics: &Arc<Metrics>, facts: Facts) -> Self {
        Self::open_since(metrics, facts, Instant::now())
    }

    /// For a connection whose facts were found out a while after it was accepted.
    pub fn open_since(metrics: &Arc<Metrics>, facts: Facts, started: Instant) -> Self {
        let series = metrics.traffic.open(&facts);
        access!(Level::DEBUG, &facts, "connection opened");
        Self {
            metrics: Arc::clone(metrics),
            bytes: Arc::new(Bytes { received: AtomicU64::new(0), sent: AtomicU64::new(0), series }),
            facts: Box::new(facts),
            started,
            ended: false,
        }
    }

    /// The connection's counters, to be held by whoever moves the bytes.
    pub fn bytes(&self) -> &Arc<Bytes> {
        &self.bytes
    }

    /// Bytes that went from client to server.
    pub fn add_received(&self, bytes: u64) {
        self.bytes.add_received(bytes);
    }

    /// Bytes that went from server to client.
    pub fn add_sent(&self, bytes: u64) {
        self.bytes.add_sent(bytes);
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn finish(mut self, result: Result<(), Failure>) {
        self.end(&result);
    }

    fn end(&mut self, result: &Result<(), Failure>) {
        self.ended = true;
        let flag = result.as_ref().map_or_else(|failure| failure.flag, |()| Flag::None);
        self.metrics.traffic.close(&self.bytes.series, flag);
        // The log speaks from the reporter's own point of view, the metrics from the server's.
        let (sent, received) = match self.facts.reporter {
            Reporter::Source => (self.bytes.received(), self.bytes.sent()),
            Reporter::Destination => (self.bytes.sent(), self.bytes.received()),
        };
        let duration = format!("{}ms", self.started.elapsed().as_millis());
        match result {
            Ok(()) => access!(
                Level::INFO,
                &self.facts,
                "connection complete",
                bytes_sent = sent,
                bytes_recv = received,
                duration = duration,
            ),
            Err(failure) => access!(
                Level::ERROR,
                &self.facts,
                "connection complete",
                bytes_sent = sent,
                bytes_recv = received,
                duration = duration,
                error = failure.error.as_str(),
            ),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.ended {
            self.end(&Err(Failure::new(Flag::Connect, "closed due to connection drain")));
        }
    }
}
