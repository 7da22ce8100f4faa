//! The controller in numbers. Each name stands here once, with its help text and its labels; all begin with
//! `ztunnel_controller_`. The label `url` is the type of xDS resource, as in the proxy's metrics.
//!
//! Counts live where things happen. At every reading they are put into a registry of that reading alone, so that nothing
//! stays which is there no more: a policy's status, a root that was rotated out.

use std::time::SystemTime;

use prometheus::core::{Collector, GenericCounterVec, GenericGaugeVec};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use super::{Discovery, Sources};
use crate::ca::Ca;
use crate::ca::counters::Reason;
use crate::index::Enforcement;
use crate::xds::{Counters, Ended};

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const POLICY_KINDS: [&str; 2] = ["AuthorizationPolicy", "PeerAuthentication"];
const ENFORCEMENTS: [Enforcement; 3] = [Enforcement::Full, Enforcement::Partial, Enforcement::None];

/// A metric: name without the common prefix, what it means, and its labels.
type Name = (&'static str, &'static str, &'static [&'static str]);

const BUILD: Name = ("build_info", "1; the version of this controller", &["version"]);
const CA_REQUESTS: Name = (
    "ca_requests_total",
    "Requests for a certificate by result (issued, refused) and the reason of a refusal",
    &["result", "reason"],
);
const CA_UNEXPIRED: Name =
    ("ca_certificates_unexpired", "Certificates that were issued and are not over", &[]);
const CA_REVOKED: Name =
    ("ca_certificates_revoked", "Certificates that the CRLs in force name, of those that are not over", &[]);
const CA_EXPIRY: Name = (
    "ca_expiry_seconds",
    "Seconds until a root or an intermediate of the CA is over, negative when it is",
    &["role", "subject", "serial"],
);
const CA_ROTATIONS: Name =
    ("ca_rotations_total", "Changes of the signing material that were taken into use", &[]);
const CA_UNUSABLE: Name = (
    "ca_unusable_files_total",
    "Changes of signing material or revocations that were unusable: the last good ones stay in force",
    &[],
);
const XDS_CLIENTS: Name = ("xds_clients", "Clients that are connected over xDS", &[]);
const XDS_STREAMS: Name = ("xds_streams_total", "xDS streams that were opened", &[]);
const XDS_REFUSED: Name = (
    "xds_streams_refused_total",
    "xDS streams that were refused: no valid token, one of no proxy, one that cannot be checked now, or no place left",
    &["code"],
);
const XDS_ENDED: Name = (
    "xds_streams_ended_total",
    "xDS streams that ended, by reason; unanswered and unread are slow clients that were dropped, behind are those \
     that were reset to compare what they hold",
    &["reason"],
);
const XDS_RESOURCES: Name = ("xds_resources", "Resources that are served", &["url"]);
const XDS_PUSHES: Name = ("xds_pushes_total", "Responses that were sent", &["url"]);
const XDS_PUSHED: Name =
    ("xds_pushed_resources_total", "Resources in the responses that were sent", &["url"]);
const XDS_REMOVED: Name =
    ("xds_removed_resources_total", "Removals in the responses that were sent", &["url"]);
const XDS_BYTES: Name = ("xds_pushed_bytes_total", "Bytes of the responses that were sent", &["url"]);
const XDS_ACKS: Name = ("xds_acks_total", "Responses that clients accepted", &["url"]);
const XDS_NACKS: Name = ("xds_nacks_total", "Responses that clients refused in part or whole", &["url"]);
const MISTAKES: Name = ("manifest_mistakes", "Mistakes that there are in the manifests now", &[]);
const POLICIES: Name =
    ("policies", "Policy objects, by kind and by how much of each is enforced", &["kind", "status"]);

/// Everything as Prometheus text.
pub(super) fn render(sources: &Sources, now: SystemTime) -> String {
    let page = Page(Registry::new());
    page.gauge(BUILD, [([env!("CARGO_PKG_VERSION")], 1)]);
    page.ca(&sources.ca, now);
    if let Some(discovery) = &sources.discovery {
        page.xds(discovery);
        page.gauge(MISTAKES, [([], discovery.mesh.mistakes().len())]);
    }
    if let Some(mesh) = sources.mesh() {
        let statuses = mesh.policies();
        let count = |kind, enforcement| {
            let alike = statuses.iter().filter(|one| one.kind == kind && one.enforcement == enforcement);
            ([kind, word(enforcement)], alike.count())
        };
        let kinds = POLICY_KINDS.into_iter();
        page.gauge(POLICIES, kinds.flat_map(|kind| ENFORCEMENTS.map(|enforcement| count(kind, enforcement))));
    }
    let mut text = String::new();
    let encoded = TextEncoder::new().encode_utf8(&page.0.gather(), &mut text);
    encoded.expect("invariant: every family is a counter or a gauge with samples, and a String takes all");
    text
}

/// As in the JSON, without spaces.
fn word(enforcement: Enforcement) -> &'static str {
    match enforcement {
        Enforcement::Full => "enforced",
        Enforcement::Partial => "partly_enforced",
        Enforcement::None => "not_enforced",
    }
}

/// What one reading is put into.
struct Page(Registry);

impl Page {
    fn ca(&self, ca: &Ca, now: SystemTime) {
        let counters = ca.counters();
        let refused = Reason::ALL.map(|reason| (["refused", reason.as_str()], counters.refused(reason)));
        self.counter(CA_REQUESTS, [(["issued", ""], counters.issued())].into_iter().chain(refused));
        self.gauge(CA_UNEXPIRED, [([], ca.unexpired())]);
        self.gauge(CA_REVOKED, [([], ca.crl().borrow().revoked)]);
        self.counter(CA_ROTATIONS, [([], counters.rotations())]);
        self.counter(CA_UNUSABLE, [([], counters.unusable())]);
        let expiries = ca.expiries();
        let left = |end: SystemTime| match end.duration_since(now) {
            Ok(left) => seconds(left),
            Err(over) => -seconds(over.duration()),
        };
        self.signed_gauge(
            CA_EXPIRY,
            expiries.iter().map(|one| ([one.role, &*one.subject, &*one.serial], left(one.not_after))),
        );
    }

    fn xds(&self, discovery: &Discovery) {
        let clients = &discovery.clients;
        let counters = clients.counters();
        self.gauge(XDS_CLIENTS, [([], counters.connected)]);
        self.counter(XDS_STREAMS, [([], counters.streams)]);
        let refused = |code: &'static str| counters.refusals.get(code).copied().unwrap_or_default();
        self.counter(XDS_REFUSED, Counters::REFUSALS.map(|code| ([code], refused(code))));
        let ended = |reason: Ended| counters.ended.get(&reason).copied().unwrap_or_default();
        self.counter(XDS_ENDED, Ended::ALL.map(|reason| ([reason.as_str()], ended(reason))));
        self.gauge(XDS_RESOURCES, clients.extents().map(|(kind, all)| ([kind.type_url()], all.resources)));
        let of_types = |name, count: fn(&crate::xds::TypeCounters) -> u64| {
            self.counter(name, counters.types.iter().map(|(url, of_type)| ([*url], count(of_type))));
        };
        of_types(XDS_PUSHES, |of_type| of_type.responses);
        of_types(XDS_PUSHED, |of_type| of_type.resources);
        of_types(XDS_REMOVED, |of_type| of_type.removed);
        of_types(XDS_BYTES, |of_type| of_type.bytes);
        of_types(XDS_ACKS, |of_type| of_type.acks);
        of_types(XDS_NACKS, |of_type| of_type.nacks);
    }

    fn counter<const N: usize>(
        &self,
        name: Name,
        samples: impl IntoIterator<Item = ([&'static str; N], u64)>,
    ) {
        let family: IntCounterVec = self.register(GenericCounterVec::new(opts(name), name.2));
        for (labels, value) in samples {
            family.with_label_values(&labels).inc_by(value);
        }
    }

    fn gauge<const N: usize>(
        &self,
        name: Name,
        samples: impl IntoIterator<Item = ([&'static str; N], usize)>,
    ) {
        let whole = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.signed_gauge(name, samples.into_iter().map(|(labels, value)| (labels, whole(value))));
    }

    fn signed_gauge<'a, const N: usize>(
        &self,
        name: Name,
        samples: impl IntoIterator<Item = ([&'a str; N], i64)>,
    ) {
        let family: IntGaugeVec = self.register(GenericGaugeVec::new(opts(name), name.2));
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
    Opts::new(format!("ztunnel_controller_{name}"), help)
}

fn seconds(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
