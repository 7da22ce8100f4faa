//! The labels of one connection, and the counters that belong to each set of them.
//!
//! A set of labels is looked up once, when a connection opens; from then on the connection holds its `Series`. Some
//! values come from peers (baggage), so the number of sets is bounded: past the bound a connection is still counted,
//! without saying whose it was.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::events::{Endpoint, Facts, Flag, Security};
use super::names;

/// Sets of labels kept. At about 3 KiB each in the counters and in one scrape, this is what a proxy can afford.
const MOST_SETS: usize = 10_000;
/// Longest value; a Kubernetes name has at most 253 bytes, an identity two of them and a trust domain.
const LONGEST: usize = 512;
const UNKNOWN: &str = "unknown";
/// Between the values of a set; no value holds it, because `put` drops it.
const SEPARATOR: char = '\0';

/// The families that share the traffic labels.
pub(super) struct Traffic {
    opened: IntCounterVec,
    closed: IntCounterVec,
    failed: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    without_labels: IntCounter,
    sets: RwLock<HashMap<Arc<str>, Arc<Series>>>,
    most: usize,
}

/// The counters of one set of labels.
pub(super) struct Series {
    values: Arc<str>,
    pub(super) received: IntCounter,
    pub(super) sent: IntCounter,
    opened: IntCounter,
    ended: [OnceLock<(IntCounter, Option<IntCounter>)>; Flag::ALL.len()],
}

impl Traffic {
    pub(super) fn new(registry: &Registry, without_labels: IntCounter) -> Self {
        Self::bounded(registry, without_labels, MOST_SETS)
    }

    fn bounded(registry: &Registry, without_labels: IntCounter, most: usize) -> Self {
        let family = |name: names::Name| {
            let vec = IntCounterVec::new(Opts::new(name.name, name.help), &names::TRAFFIC_LABELS)
                .expect("invariant: names and labels in `names` are valid");
            registry
                .register(Box::new(vec.clone()))
                .expect("invariant: each family is registered once per registry");
            vec
        };
        Self {
            opened: family(names::TCP_OPENED),
            closed: family(names::TCP_CLOSED),
            failed: family(names::TCP_FAILED),
            received: family(names::TCP_RECEIVED),
            sent: family(names::TCP_SENT),
            without_labels,
            sets: RwLock::default(),
            most,
        }
    }

    /// Counts the connection as opened and returns its counters.
    pub(super) fn open(&self, facts: &Facts) -> Arc<Series> {
        let series = self.series(facts);
        series.opened.inc();
        series
    }

    pub(super) fn close(&self, series: &Series, flag: Flag) {
        let (closed, failed) = series.ended[flag as usize].get_or_init(|| {
            let mut values: Vec<&str> = series.values.split(SEPARATOR).collect();
            values[names::FLAG_POSITION] = flag.as_str();
            let failed = (flag != Flag::None).then(|| self.failed.with_label_values(&values));
            (self.closed.with_label_values(&values), failed)
        });
        closed.inc();
        if let Some(failed) = failed {
            failed.inc();
        }
    }

    fn series(&self, facts: &Facts) -> Arc<Series> {
        let key = values(facts);
        // A panic cannot leave the map half changed, so a poisoned lock is as good as a clean one.
        if let Some(series) = self.sets.read().unwrap_or_else(PoisonError::into_inner).get(key.as_str()) {
            return Arc::clone(series);
        }
        let mut sets = self.sets.write().unwrap_or_else(PoisonError::into_inner);
        let key = if sets.len() < self.most || sets.contains_key(key.as_str()) {
            key
        } else {
            self.without_labels.inc();
            values_without_names(facts)
        };
        if let Some(series) = sets.get(key.as_str()) {
            return Arc::clone(series);
        }
        let key: Arc<str> = key.into();
        let series = Arc::new(self.make(Arc::clone(&key)));
        sets.insert(key, Arc::clone(&series));
        series
    }

    fn make(&self, key: Arc<str>) -> Series {
        let values: Vec<&str> = key.split(SEPARATOR).collect();
        Series {
            received: self.received.with_label_values(&values),
            sent: self.sent.with_label_values(&values),
            opened: self.opened.with_label_values(&values),
            ended: Default::default(),
            values: Arc::clone(&key),
        }
    }
}

/// The values of all labels of an open connection, in order, joined.
fn values(facts: &Facts) -> String {
    let mut joined = String::with_capacity(512);
    let source = Side::of(&facts.source);
    let destination = Side::of(&facts.destination);
    put(&mut joined, facts.reporter.as_str());
    let source_principal = facts.source_principal.as_ref().map(ToString::to_string);
    source.put(&mut joined, source_principal.as_deref());
    match &facts.destination_service {
        Some(service) => {
            for value in [&service.key.hostname, &service.key.namespace, &service.name] {
                put(&mut joined, value);
            }
        }
        None => (0..3).for_each(|_| put(&mut joined, "")),
    }
    let of_record = match &facts.destination {
        Endpoint::Workload(workload) => Some(&workload.identity),
        Endpoint::Baggage(_) | Endpoint::Unknown => None,
    };
    let destination_principal = facts.destination_principal.as_ref().or(of_record).map(ToString::to_string);
    destination.put(&mut joined, destination_principal.as_deref());
    put_connection(&mut joined, facts);
    let known = source.known || destination.known;
    for value in [source.region, source.zone, destination.region, destination.zone] {
        if known { put(&mut joined, &value) } else { joined.push(SEPARATOR) }
    }
    joined.pop();
    joined
}

/// What is left when there are too many sets: nothing that a peer or a workload chooses.
fn values_without_names(facts: &Facts) -> String {
    let mut joined = String::with_capacity(256);
    put(&mut joined, facts.reporter.as_str());
    (1..names::FLAG_POSITION - 1).for_each(|_| put(&mut joined, ""));
    put_connection(&mut joined, facts);
    (0..3).for_each(|_| joined.push(SEPARATOR));
    joined
}

fn put_connection(joined: &mut String, facts: &Facts) {
    put(joined, "tcp");
    put(joined, Flag::None.as_str());
    put(joined, security(facts.security));
}

/// What no tunnel protects has a word of its own: who looks for plaintext must not find it, nor who counts mutual TLS.
fn security(security: Security) -> &'static str {
    match security {
        Security::MutualTls => "mutual_tls",
        Security::SameNode => "same_node",
        Security::Plaintext => UNKNOWN,
    }
}

fn put(joined: &mut String, value: &str) {
    let value = if value.is_empty() { UNKNOWN } else { value };
    let end = value.floor_char_boundary(LONGEST);
    joined.extend(value[..end].chars().filter(|&c| c != SEPARATOR));
    joined.push(SEPARATOR);
}

/// What the labels say of one end.
#[derive(Default)]
struct Side<'a> {
    known: bool,
    workload: Cow<'a, str>,
    service: Cow<'a, str>,
    revision: Cow<'a, str>,
    namespace: Cow<'a, str>,
    app: Cow<'a, str>,
    cluster: Cow<'a, str>,
    region: Cow<'a, str>,
    zone: Cow<'a, str>,
}

impl<'a> Side<'a> {
    fn of(endpoint: &'a Endpoint) -> Self {
        fn optional(value: &Option<String>) -> Cow<'_, str> {
            value.as_deref().unwrap_or_default().into()
        }
        match endpoint {
            Endpoint::Unknown => Self::default(),
            Endpoint::Workload(workload) => Self {
                known: true,
                workload: workload.workload_name.as_str().into(),
                service: workload.canonical_name.as_str().into(),
                revision: workload.canonical_revision.as_str().into(),
                namespace: workload.namespace.as_str().into(),
                app: workload.canonical_name.as_str().into(),
                cluster: workload.cluster_id.as_str().into(),
                region: workload.locality.region.as_str().into(),
                zone: workload.locality.zone.as_str().into(),
            },
            Endpoint::Baggage(baggage) => Self {
                known: true,
                workload: optional(&baggage.workload_name),
                service: optional(&baggage.service_name),
                revision: optional(&baggage.revision),
                namespace: optional(&baggage.namespace),
                app: optional(&baggage.workload_name),
                cluster: optional(&baggage.cluster),
                region: optional(&baggage.region),
                zone: optional(&baggage.zone),
            },
        }
    }

    fn put(&self, joined: &mut String, principal: Option<&str>) {
        put(joined, &self.workload);
        put(joined, &self.service);
        put(joined, &self.revision);
        put(joined, &self.namespace);
        put(joined, principal.unwrap_or_default());
        put(joined, &self.app);
        put(joined, &self.revision);
        put(joined, &self.cluster);
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::tests::{baggage, facts};
    use super::super::openmetrics;
    use super::*;

    fn traffic(most: usize) -> (Registry, Traffic) {
        let registry = Registry::new();
        let without = IntCounter::new("without_total", "Without").expect("the metric is valid");
        registry.register(Box::new(without.clone())).expect("it is new");
        let traffic = Traffic::bounded(&registry, without, most);
        (registry, traffic)
    }

    fn samples(registry: &Registry) -> Vec<String> {
        let text = openmetrics::encode(&registry.gather());
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn records_give_every_label_in_order() {
        let (registry, traffic) = traffic(10);
        let series = traffic.open(&facts());
        traffic.close(&series, Flag::Deny);
        traffic.close(&traffic.open(&facts()), Flag::None);
        series.received.inc_by(11);
        series.sent.inc_by(22);
        let with = |family: &str, flag: &str, value: u64| {
            format!(
                "{family}{{reporter=\"destination\",source_workload=\"web\",source_canonical_service=\"web-app\",\
                 source_canonical_revision=\"v1\",source_workload_namespace=\"shop\",\
                 source_principal=\"spiffe://td/ns/shop/sa/web\",source_app=\"web-app\",source_version=\"v1\",\
                 source_cluster=\"c1\",destination_service=\"cart.shop.svc\",destination_service_namespace=\"shop\",\
                 destination_service_name=\"cart\",destination_workload=\"cart\",\
                 destination_canonical_service=\"cart-app\",destination_canonical_revision=\"v1\",\
                 destination_workload_namespace=\"shop\",destination_principal=\"spiffe://td/ns/shop/sa/cart\",\
                 destination_app=\"cart-app\",destination_version=\"v1\",destination_cluster=\"c1\",\
                 request_protocol=\"tcp\",response_flags=\"{flag}\",connection_security_policy=\"mutual_tls\",\
                 source_region=\"r1\",source_zone=\"unknown\",destination_region=\"r1\",\
                 destination_zone=\"unknown\"}} {value}"
            )
        };
        let expected = [
            with("istio_tcp_connections_closed_total", "-", 1),
            with("istio_tcp_connections_closed_total", "DENY", 1),
            with("istio_tcp_connections_failed_total", "DENY", 1),
            with("istio_tcp_connections_opened_total", "-", 2),
            with("istio_tcp_received_bytes_total", "-", 11),
            with("istio_tcp_sent_bytes_total", "-", 22),
            "without_total 0".to_owned(),
        ];
        assert_eq!(samples(&registry), expected);
    }

    #[test]
    fn baggage_and_nothing() {
        let (registry, traffic) = traffic(10);
        traffic.open(&Facts { source: Endpoint::Baggage(Box::new(baggage())), ..facts() });
        let line = samples(&registry).remove(0);
        let source = "source_workload=\"web\",source_canonical_service=\"web-app\",source_canonical_revision=\"v2\",\
                      source_workload_namespace=\"far\",source_principal=\"spiffe://td/ns/shop/sa/web\",\
                      source_app=\"web\",source_version=\"v2\",source_cluster=\"c2\"";
        assert!(line.contains(source), "{line}");

        let nothing = Facts {
            source: Endpoint::Unknown,
            destination: Endpoint::Unknown,
            destination_service: None,
            source_principal: None,
            destination_principal: None,
            security: Security::Plaintext,
            ..facts()
        };
        let joined = values(&nothing);
        let values: Vec<&str> = joined.split(SEPARATOR).collect();
        assert_eq!(values.len(), names::TRAFFIC_LABELS.len());
        assert_eq!(values[1..20], [UNKNOWN; 19]);
        assert_eq!(values[20..23], ["tcp", "-", UNKNOWN]);
        assert_eq!(values[23..], [""; 4]);
        assert_eq!(values_without_names(&nothing), joined);
    }

    #[test]
    fn the_number_of_sets_is_bounded() {
        let (registry, traffic) = traffic(1);
        traffic.open(&facts());
        for name in ["a", "b", "c"] {
            let source = Endpoint::Baggage(Box::new(super::super::events::Baggage {
                workload_name: Some(name.to_owned()),
                ..baggage()
            }));
            traffic.open(&Facts { source, ..facts() });
        }
        traffic.open(&facts());
        let lines = samples(&registry);
        let opened: Vec<_> =
            lines.iter().filter(|line| line.starts_with("istio_tcp_connections_opened")).collect();
        assert_eq!(opened.len(), 2, "{opened:?}");
        assert!(
            opened.iter().any(|line| line.contains("source_workload=\"unknown\"") && line.ends_with(" 3"))
        );
        assert!(opened.iter().any(|line| line.contains("source_workload=\"web\"") && line.ends_with(" 2")));
        assert!(lines.contains(&"without_total 3".to_owned()));
    }

    #[test]
    fn values_are_clipped_and_cannot_forge_a_boundary() {
        let mut joined = String::new();
        put(&mut joined, "a\0b");
        put(&mut joined, &"é".repeat(LONGEST));
        let values: Vec<&str> = joined.split(SEPARATOR).collect();
        assert_eq!((values[0], values[1].len(), values[2]), ("ab", LONGEST, ""));
    }
}
