//! What each pod of the node does, for whoever asks which of them is the noisy one.

use prometheus::{Counter, CounterVec, IntCounter, IntCounterVec, Registry};

use super::events::{Connection, Reporter};
use super::metrics::{opts, register};
use super::names;

const LABELS: [&str; 2] = ["namespace", "pod"];

pub(super) struct Pods {
    worker: CounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    connections: IntCounterVec,
    handshakes: IntCounterVec,
}

/// The counters of one pod. Theirs are one look-up when the pod comes, and none after that.
#[derive(Clone)]
pub struct PodMeters {
    /// Seconds of a worker's time.
    pub worker: Counter,
    /// Bytes to and from its applications.
    received: IntCounter,
    sent: IntCounter,
    opened: IntCounter,
    accepted: IntCounter,
    /// TLS handshakes that were begun, in either role.
    pub handshakes: IntCounter,
}

impl Pods {
    pub(super) fn new(registry: &Registry) -> Self {
        let family = |name| register(registry, IntCounterVec::new(opts(name), &LABELS));
        Self {
            worker: register(registry, CounterVec::new(opts(names::POD_WORKER), &LABELS)),
            received: family(names::POD_RECEIVED),
            sent: family(names::POD_SENT),
            connections: register(
                registry,
                IntCounterVec::new(opts(names::POD_CONNECTIONS), &[LABELS[0], LABELS[1], "reporter"]),
            ),
            handshakes: family(names::POD_HANDSHAKES),
        }
    }

    pub(super) fn meters(&self, namespace: &str, pod: &str) -> PodMeters {
        let values = [namespace, pod];
        let connections =
            |reporter: Reporter| self.connections.with_label_values(&[namespace, pod, reporter.as_str()]);
        PodMeters {
            worker: self.worker.with_label_values(&values),
            received: self.received.with_label_values(&values),
            sent: self.sent.with_label_values(&values),
            opened: connections(Reporter::Source),
            accepted: connections(Reporter::Destination),
            handshakes: self.handshakes.with_label_values(&values),
        }
    }

    /// A pod that is gone is no longer told of. What of it still runs counts on, unseen.
    pub(super) fn forget(&self, namespace: &str, pod: &str) {
        let values = [namespace, pod];
        // Fails where nothing was counted.
        let _ = self.worker.remove_label_values(&values);
        for family in [&self.received, &self.sent, &self.handshakes] {
            let _ = family.remove_label_values(&values);
        }
        for reporter in [Reporter::Source, Reporter::Destination] {
            let _ = self.connections.remove_label_values(&[namespace, pod, reporter.as_str()]);
        }
    }
}

impl PodMeters {
    pub fn count_connection(&self, reporter: Reporter) {
        match reporter {
            Reporter::Source => self.opened.inc(),
            Reporter::Destination => self.accepted.inc(),
        }
    }

    /// Count, of a connection and of the pod that tells of it, what its application sent, and what was handed to it.
    pub fn relayed<'a>(&'a self, event: &'a Connection) -> (impl Fn(usize) + 'a, impl Fn(usize) + 'a) {
        let sent = move |bytes: usize| {
            event.count(event.reporter() == Reporter::Source, bytes as u64);
            self.sent.inc_by(bytes as u64);
        };
        let received = move |bytes: usize| {
            event.count(event.reporter() == Reporter::Destination, bytes as u64);
            self.received.inc_by(bytes as u64);
        };
        (sent, received)
    }
}
