//! One connection: its byte counts, its metrics and its access log line.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use tracing::{Level, event};

use super::{Facts, Failure, Flag, Reporter, Security};
use crate::telemetry::Metrics;
use crate::telemetry::labels::Series;

/// An open connection. Dropped without `finish`, it says that the drain cut it.
pub struct Connection {
    metrics: Arc<Metrics>,
    // Boxed: whoever moves bytes keeps a connection in its future, and there are as many of these as connections.
    told: Box<Told>,
    ended: bool,
}

struct Told {
    facts: Facts,
    started: Instant,
    /// Where its bytes are counted for the metrics, without any look-up.
    series: Arc<Series>,
    received: Cell<u64>,
    sent: Cell<u64>,
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
        let (received, sent) = Default::default();
        let told = Box::new(Told { facts, started, series, received, sent });
        Self { metrics: Arc::clone(metrics), told, ended: false }
    }

    /// Bytes that went from client to server.
    pub fn add_received(&self, bytes: u64) {
        let Told { received, series, .. } = &*self.told;
        received.set(received.get() + bytes);
        series.received.inc_by(bytes);
    }

    /// Bytes that went from server to client.
    pub fn add_sent(&self, bytes: u64) {
        let Told { sent, series, .. } = &*self.told;
        sent.set(sent.get() + bytes);
        series.sent.inc_by(bytes);
    }

    pub fn count(&self, towards_server: bool, bytes: u64) {
        match towards_server {
            true => self.add_received(bytes),
            false => self.add_sent(bytes),
        }
    }

    pub fn reporter(&self) -> Reporter {
        self.told.facts.reporter
    }

    pub fn finish(mut self, result: Result<(), Failure>) {
        self.end(&result);
    }

    fn end(&mut self, result: &Result<(), Failure>) {
        self.ended = true;
        let Told { facts, started, series, received, sent } = &*self.told;
        let flag = result.as_ref().map_or_else(|failure| failure.flag, |()| Flag::None);
        self.metrics.traffic.close(series, flag);
        // The log speaks from the reporter's own point of view, the metrics from the server's.
        let (sent, received) = match facts.reporter {
            Reporter::Source => (received.get(), sent.get()),
            Reporter::Destination => (sent.get(), received.get()),
        };
        let duration = format!("{}ms", started.elapsed().as_millis());
        match result {
            Ok(()) => access!(
                Level::INFO,
                facts,
                "connection complete",
                bytes_sent = sent,
                bytes_recv = received,
                duration = duration,
            ),
            Err(failure) => access!(
                Level::ERROR,
                facts,
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
