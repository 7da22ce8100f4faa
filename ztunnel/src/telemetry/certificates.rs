//! What is known of the pods' certificates at the moment when metrics are read.

use std::sync::OnceLock;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::metrics::{opts, register};
use super::names;

/// The facts; counts are since the start.
#[derive(Clone, Debug, Default)]
pub struct CertificateFacts {
    pub fetched: u64,
    pub failed: u64,
    pub expired: u64,
    pub revoked: u64,
    pub held: u64,
    /// Identity and seconds to the end of its certificate.
    pub expiries: Vec<(String, i64)>,
}

type Ask = Box<dyn Fn() -> CertificateFacts + Send + Sync>;

pub(super) struct Certificates {
    facts: OnceLock<Ask>,
    expiry: IntGaugeVec,
    fetches: IntCounterVec,
    expired: IntCounter,
    revoked: IntCounter,
    held: IntGauge,
}

impl Certificates {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            facts: OnceLock::new(),
            expiry: register(registry, IntGaugeVec::new(opts(names::CERTIFICATE_EXPIRY), &["identity"])),
            fetches: register(registry, IntCounterVec::new(opts(names::CERTIFICATE_FETCHES), &["result"])),
            expired: register(registry, IntCounter::with_opts(opts(names::CERTIFICATES_EXPIRED))),
            revoked: register(registry, IntCounter::with_opts(opts(names::CERTIFICATES_REVOKED))),
            held: register(registry, IntGauge::with_opts(opts(names::CERTIFICATES_HELD))),
        }
    }

    pub(super) fn ask(&self, facts: Ask) {
        self.facts.get_or_init(|| facts);
    }

    pub(super) fn refresh(&self) {
        let Some(ask) = self.facts.get() else { return };
        let facts = ask();
        let raise = |counter: &IntCounter, now: u64| counter.inc_by(now.saturating_sub(counter.get()));
        raise(&self.fetches.with_label_values(&["ok"]), facts.fetched);
        raise(&self.fetches.with_label_values(&["failed"]), facts.failed);
        raise(&self.expired, facts.expired);
        raise(&self.revoked, facts.revoked);
        self.held.set(i64::try_from(facts.held).unwrap_or(i64::MAX));
        // An identity that was forgotten since must not stay.
        self.expiry.reset();
        for (identity, seconds) in &facts.expiries {
            self.expiry.with_label_values(&[identity]).set(*seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use crate::telemetry::Metrics;

    use super::*;

    #[test]
    fn facts_are_asked_for_at_every_reading_and_the_forgotten_vanish() {
        let metrics = Metrics::new("t");
        assert!(!metrics.render().contains("ztunnel_certificate_expiry_seconds"));
        let facts = Arc::new(Mutex::new(CertificateFacts {
            fetched: 3,
            failed: 1,
            held: 2,
            expiries: vec![("spiffe://a".to_owned(), 30), ("spiffe://b".to_owned(), -1)],
            ..CertificateFacts::default()
        }));
        let asked = facts.clone();
        metrics.show_certificates(move || asked.lock().expect("no test panics with the lock").clone());
        let text = metrics.render();
        for line in [
            "# UNIT ztunnel_certificate_expiry_seconds seconds",
            "ztunnel_certificate_expiry_seconds{identity=\"spiffe://a\"} 30",
            "ztunnel_certificate_expiry_seconds{identity=\"spiffe://b\"} -1",
            "ztunnel_certificate_fetches_total{result=\"ok\"} 3",
            "ztunnel_certificate_fetches_total{result=\"failed\"} 1",
            "ztunnel_certificates_held 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        facts.lock().expect("no test panics with the lock").expiries.pop();
        let text = metrics.render();
        assert!(!text.contains("spiffe://b") && text.contains("{result=\"ok\"} 3"), "{text}");
    }
}
