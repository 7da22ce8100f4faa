//! The agent in numbers. Each name stands here once, with its help text and its labels; all begin with
//! `ztunnel_redirect_`. No label names a pod: those are at `/pods`.
//!
//! Counts live where things happen, and are put into a registry of one reading.

use prometheus::core::Collector;
use prometheus::{CounterVec, GaugeVec, Opts, Registry, TextEncoder};

use super::{Snapshot, State};

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A metric: name without the common prefix, what it means, and its labels.
type Name = (&'static str, &'static str, &'static [&'static str]);

const BUILD: Name = ("build_info", "1; the version of this agent", &["version"]);
const PODS: Name = (
    "pods",
    "Pods of this node by state: captured, pending, unproven, quarantined (pending or unproven, TCP dropped), leaving",
    &["state"],
);
const CAPTURES: Name = ("captures_total", "Pods that were captured", &[]);
const FAILURES: Name = ("capture_failures_total", "Attempts to capture a pod that failed", &["reason"]);
const REPAIRS: Name = (
    "repairs_total",
    "Captures that were repaired, by what was done to them: flushed, changed, routing, unseen; host is the node's own table",
    &["kind"],
);
const UNPROVEN: Name =
    ("unproven", "Pods of which it is not sure that they are captured, the quarantined ones too", &[]);
const QUARANTINED: Name = ("quarantined", "Pods whose TCP is dropped", &[]);
const FOREIGN: Name =
    ("foreign_rules_total", "Times that other programs' rules were found in the way of capture", &[]);
const AUDITS: Name = ("audits_total", "Audits of a pod's rules", &[]);
const AUDIT_SECONDS: Name = ("audit_seconds_total", "Seconds that audits took", &[]);
const PROXIES: Name = ("proxies_connected", "Proxies that are connected", &[]);
const SOCKETS: Name = ("sockets_handed_out_total", "Sockets to dial with that were handed to proxies", &[]);
const NAMESPACES: Name =
    ("network_namespaces_open", "Network namespaces in which the agent keeps sockets", &[]);

/// Everything as Prometheus text.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let Snapshot { pods, counts, host_repairs, proxies, handed_out, namespaces } = snapshot;
    let page = Page(Registry::new());
    page.gauge(BUILD, [(vec![env!("CARGO_PKG_VERSION")], 1.0)]);
    let of = |state: State| pods.iter().filter(|pod| pod.state == state).count() as f64;
    page.gauge(PODS, State::ALL.map(|state| (vec![state.as_str()], of(state))));
    page.counter(CAPTURES, [(vec![], counts.captures as f64)]);
    page.counter(FAILURES, counts.failures.iter().map(|(reason, count)| (vec![*reason], *count as f64)));
    let repairs = counts.repairs.iter().map(|(kind, count)| (vec![*kind], *count as f64));
    page.counter(REPAIRS, repairs.chain([(vec!["host"], *host_repairs as f64)]));
    let unsure = pods.iter().filter(|pod| matches!(pod.state, State::Unproven | State::Quarantined));
    page.gauge(UNPROVEN, [(vec![], unsure.count() as f64)]);
    page.gauge(QUARANTINED, [(vec![], of(State::Quarantined))]);
    page.counter(FOREIGN, [(vec![], counts.foreign as f64)]);
    page.counter(AUDITS, [(vec![], counts.audits as f64)]);
    page.counter(AUDIT_SECONDS, [(vec![], counts.audit_time.as_secs_f64())]);
    page.gauge(PROXIES, [(vec![], *proxies as f64)]);
    page.counter(SOCKETS, [(vec![], *handed_out as f64)]);
    page.gauge(NAMESPACES, [(vec![], *namespaces as f64)]);
    let mut text = String::new();
    let encoded = TextEncoder::new().encode_utf8(&page.0.gather(), &mut text);
    encoded.expect("invariant: every family is a counter or a gauge, and a String takes all");
    text
}

/// What one reading is put into.
struct Page(Registry);

type Sample = (Vec<&'static str>, f64);

impl Page {
    fn counter(&self, name: Name, samples: impl IntoIterator<Item = Sample>) {
        let family = self.register(CounterVec::new(opts(name), name.2));
        for (labels, value) in samples {
            family.with_label_values(&labels).inc_by(value);
        }
    }

    fn gauge(&self, name: Name, samples: impl IntoIterator<Item = Sample>) {
        let family = self.register(GaugeVec::new(opts(name), name.2));
        for (labels, value) in samples {
            family.with_label_values(&labels).set(value);
        }
    }

    fn register<C: Collector + Clone + 'static>(&self, family: prometheus::Result<C>) -> C {
        let family = family.expect("invariant: the names and labels above are valid");
        self.0.register(Box::new(family.clone())).expect("invariant: each name is put in once");
        family
    }
}

fn opts((name, help, _): Name) -> Opts {
    Opts::new(format!("ztunnel_redirect_{name}"), help)
}
