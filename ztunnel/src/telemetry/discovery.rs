//! What is known of the xDS client at the moment when metrics are read.

use std::sync::OnceLock;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::metrics::{opts, register};
use super::names;

/// The facts; counts are since the start.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryFacts {
    pub connected: bool,
    /// Reason and how often.
    pub terminations: [(&'static str, u64); 4],
    pub types: Vec<TypeFacts>,
}

#[derive(Clone, Debug)]
pub struct TypeFacts {
    pub type_url: String,
    pub messages: u64,
    pub bytes: u64,
    pub held: usize,
    pub rejected: u64,
}

type Ask = Box<dyn Fn() -> DiscoveryFacts + Send + Sync>;

pub(super) struct Discovery {
    facts: OnceLock<Ask>,
    connected: IntGauge,
    terminations: IntCounterVec,
    messages: IntCounterVec,
    bytes: IntCounterVec,
    resources: IntGaugeVec,
    rejected: IntCounterVec,
}

impl Discovery {
    pub(super) fn new(registry: &Registry) -> Self {
        let by_type = |name| register(registry, IntCounterVec::new(opts(name), &["url"]));
        Self {
            facts: OnceLock::new(),
            connected: register(registry, IntGauge::with_opts(opts(names::XDS_CONNECTED))),
            terminations: register(registry, IntCounterVec::new(opts(names::XDS_TERMINATIONS), &["reason"])),
            messages: by_type(names::XDS_MESSAGES),
            bytes: by_type(names::XDS_BYTES),
            resources: register(registry, IntGaugeVec::new(opts(names::XDS_RESOURCES), &["url"])),
            rejected: by_type(names::XDS_REJECTED),
        }
    }

    pub(super) fn ask(&self, facts: Ask) {
        self.facts.get_or_init(|| facts);
    }

    pub(super) fn refresh(&self) {
        let Some(ask) = self.facts.get() else { return };
        let facts = ask();
        let raise = |counter: IntCounter, now: u64| counter.inc_by(now.saturating_sub(counter.get()));
        self.connected.set(facts.connected.into());
        for (reason, count) in facts.terminations {
            raise(self.terminations.with_label_values(&[reason]), count);
        }
        for facts in &facts.types {
            let url = &[facts.type_url.as_str()];
            raise(self.messages.with_label_values(url), facts.messages);
            raise(self.bytes.with_label_values(url), facts.bytes);
            raise(self.rejected.with_label_values(url), facts.rejected);
            self.resources.with_label_values(url).set(i64::try_from(facts.held).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn facts_become_samples() {
        let metrics = Metrics::new("t");
        metrics.show_discovery(|| DiscoveryFacts {
            connected: true,
            terminations: [("ConnectionError", 2), ("Error", 0), ("Reconnect", 1), ("Complete", 0)],
            types: vec![TypeFacts { type_url: "t".to_owned(), messages: 3, bytes: 4, held: 5, rejected: 6 }],
        });
        metrics.render();
        let text = metrics.render();
        for line in [
            "ztunnel_xds_connected 1",
            "istio_xds_connection_terminations_total{reason=\"ConnectionError\"} 2",
            "istio_xds_connection_terminations_total{reason=\"Complete\"} 0",
            "istio_xds_message_total{url=\"t\"} 3",
            "istio_xds_message_bytes_total{url=\"t\"} 4",
            "ztunnel_xds_resources{url=\"t\"} 5",
            "ztunnel_xds_rejected_resources_total{url=\"t\"} 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
