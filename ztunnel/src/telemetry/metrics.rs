//! All metrics of the process. One instance lives in the process; each test has its own.

use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use tracing_appender::non_blocking::ErrorCounter;

use super::certificates::{CertificateFacts, Certificates};
use super::discovery::{Discovery, DiscoveryFacts};
use super::events::{Rejection, Reporter};
use super::labels::Traffic;
use super::names::{self, Name};
use super::openmetrics;
use super::pods::{PodMeters, Pods};

pub struct Metrics {
    registry: Registry,
    pub(super) traffic: Traffic,
    sockets: IntGaugeVec,
    io_backend: IntGaugeVec,
    pub pods_active: IntGauge,
    pub pods_pending: IntGauge,
    pub pods_started: IntCounter,
    pub pods_stopped: IntCounter,
    handshake_failures: IntCounterVec,
    crl_rejections: IntCounterVec,
    crl_untracked: IntCounterVec,
    certificates: Certificates,
    discovery: Discovery,
    pods: Pods,
    lines_dropped: IntCounter,
    dropped: OnceLock<ErrorCounter>,
    open_fds: IntGauge,
    max_fds: IntGauge,
    pub policies_missing: IntGauge,
    pub(super) handshake_lines: LineBudget,
    pub(super) policy_lines: LineBudget,
    pub(super) connections_slowed: IntCounterVec,
    pub(super) slowed_lines: LineBudget,
    pub workers: IntGauge,
    worker_connections: IntGaugeVec,
}

/// An accepted socket; counted as long as it lives.
#[derive(Debug)]
pub struct OpenSocket(IntGauge);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// `tag` is the version that `istio_build` names.
    pub fn new(tag: &str) -> Self {
        let registry = Registry::new();
        let counter = |name| register(&registry, IntCounter::with_opts(opts(name)));
        let gauge = |name| register(&registry, IntGauge::with_opts(opts(name)));
        let build = register(&registry, IntGaugeVec::new(opts(names::BUILD), &["component", "tag"]));
        build.with_label_values(&["ztunnel", tag]).set(1);
        Self {
            traffic: Traffic::new(&registry, counter(names::LABELS_DROPPED)),
            sockets: register(&registry, IntGaugeVec::new(opts(names::SOCKETS_OPEN), &["reporter"])),
            io_backend: register(&registry, IntGaugeVec::new(opts(names::IO_BACKEND), &["backend"])),
            pods_active: gauge(names::PODS_ACTIVE),
            pods_pending: gauge(names::PODS_PENDING),
            pods_started: counter(names::PODS_STARTED),
            pods_stopped: counter(names::PODS_STOPPED),
            handshake_failures: register(
                &registry,
                IntCounterVec::new(opts(names::HANDSHAKE_FAILURES), &["reason"]),
            ),
            crl_rejections: register(
                &registry,
                IntCounterVec::new(opts(names::CRL_REJECTIONS), &["reporter"]),
            ),
            crl_untracked: register(&registry, IntCounterVec::new(opts(names::CRL_UNTRACKED), &["reporter"])),
            certificates: Certificates::new(&registry),
            discovery: Discovery::new(&registry),
            pods: Pods::new(&registry),
            lines_dropped: counter(names::LOG_LINES_DROPPED),
            dropped: OnceLock::new(),
            open_fds: gauge(names::OPEN_FDS),
            max_fds: gauge(names::MAX_FDS),
            policies_missing: gauge(names::POLICIES_MISSING),
            handshake_lines: LineBudget::new(100),
            policy_lines: LineBudget::new(100),
            connections_slowed: register(
                &registry,
                IntCounterVec::new(opts(names::CONNECTIONS_SLOWED), &["reporter", "budget"]),
            ),
            slowed_lines: LineBudget::new(1),
            workers: gauge(names::WORKERS),
            worker_connections: register(
                &registry,
                IntGaugeVec::new(opts(names::WORKER_CONNECTIONS), &["worker"]),
            ),
            registry,
        }
    }

    /// What workers were told to use.
    pub fn show_io_backend(&self, backend: &str) {
        self.io_backend.with_label_values(&[backend]).set(1);
    }

    pub fn socket_opened(&self, reporter: Reporter) -> OpenSocket {
        let gauge = self.sockets.with_label_values(&[reporter.as_str()]);
        gauge.inc();
        OpenSocket(gauge)
    }

    /// A worker carries a connection for as long as this lives.
    pub fn carried(&self, worker: usize) -> OpenSocket {
        let gauge = self.worker_connections.with_label_values(&[&worker.to_string()]);
        gauge.inc();
        OpenSocket(gauge)
    }

    /// The counters of a pod that came.
    pub fn pod(&self, namespace: &str, pod: &str) -> PodMeters {
        self.pods.meters(namespace, pod)
    }

    pub fn forget_pod(&self, namespace: &str, pod: &str) {
        self.pods.forget(namespace, pod);
    }

    /// Shows the log's own count of dropped lines; the first call counts.
    pub fn count_dropped_lines(&self, dropped: ErrorCounter) {
        self.dropped.get_or_init(|| dropped);
    }

    /// Asks for the facts about certificates whenever metrics are read; the first call counts.
    pub fn show_certificates(&self, facts: impl Fn() -> CertificateFacts + Send + Sync + 'static) {
        self.certificates.ask(Box::new(facts));
    }

    /// Asks for the facts about xDS whenever metrics are read; the first call counts.
    pub fn show_discovery(&self, facts: impl Fn() -> DiscoveryFacts + Send + Sync + 'static) {
        self.discovery.ask(Box::new(facts));
    }

    /// A handshake was refused, or a tunnel cut, because of a CRL.
    pub fn count_crl_rejection(&self, reporter: Reporter) {
        self.crl_rejections.with_label_values(&[reporter.as_str()]).inc();
    }

    pub fn count_crl_untracked(&self, reporter: Reporter) {
        self.crl_untracked.with_label_values(&[reporter.as_str()]).inc();
    }

    /// Everything as OpenMetrics text.
    pub fn render(&self) -> String {
        if let Some(dropped) = self.dropped.get() {
            let now = u64::try_from(dropped.dropped_lines()).unwrap_or(u64::MAX);
            self.lines_dropped.inc_by(now.saturating_sub(self.lines_dropped.get()));
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory that is being read.
            self.open_fds.set(i64::try_from(entries.count()).unwrap_or(i64::MAX) - 1);
        }
        if let Some(most) = max_fds() {
            self.max_fds.set(most);
        }
        self.certificates.refresh();
        self.discovery.refresh();
        openmetrics::encode(&self.registry.gather())
    }

    pub(super) fn count_handshake_failure(&self, rejection: Rejection) {
        self.handshake_failures.with_label_values(&[rejection.as_str()]).inc();
    }
}

pub(super) fn opts(name: Name) -> Opts {
    Opts::new(name.name, name.help)
}

pub(super) fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> C {
    let metric = metric.expect("invariant: names and labels in `names` are valid");
    registry
        .register(Box::new(metric.clone()))
        .expect("invariant: each family is registered once per registry");
    metric
}

fn max_fds() -> Option<i64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(i64::MAX),
        soft => soft.parse().ok(),
    }
}

/// So many lines a second; the rest is counted and told with the next line. Strangers cause these lines, so they must
/// not be able to fill the log.
pub(super) struct LineBudget {
    per_second: u32,
    since: Instant,
    second: AtomicU64,
    used: AtomicU32,
    suppressed: AtomicU64,
}

impl LineBudget {
    fn new(per_second: u32) -> Self {
        Self {
            per_second,
            since: Instant::now(),
            second: AtomicU64::new(0),
            used: AtomicU32::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// `Some` when a line may be written, with the number of lines suppressed before it.
    pub(super) fn take(&self) -> Option<u64> {
        self.take_at(self.since.elapsed().as_secs())
    }

    fn take_at(&self, second: u64) -> Option<u64> {
        // Two threads that meet at a change of second may grant a few lines more; nothing depends on the exact number.
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.used.store(0, Ordering::Relaxed);
        }
        if self.used.fetch_add(1, Ordering::Relaxed) < self.per_second {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_the_process_and_the_build() {
        let metrics = Metrics::new("1.2.3");
        let socket = metrics.socket_opened(Reporter::Source);
        drop(metrics.socket_opened(Reporter::Destination));
        metrics.count_handshake_failure(Rejection::Tls);
        metrics.show_io_backend("epoll");
        let text = metrics.render();
        for line in [
            "istio_build{component=\"ztunnel\",tag=\"1.2.3\"} 1",
            "istio_tcp_sockets_open{reporter=\"source\"} 1",
            "istio_tcp_sockets_open{reporter=\"destination\"} 0",
            "ztunnel_inbound_handshake_failures_total{reason=\"tls\"} 1",
            "ztunnel_io_backend{backend=\"epoll\"} 1",
            "workload_manager_active_proxy_count 0",
            "workload_manager_proxies_started_total 0",
            "ztunnel_log_lines_dropped_total 0",
            "# TYPE process_open_fds gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("istio_tcp_connections_opened"), "a family without samples is left out");
        assert!(metrics.open_fds.get() > 0 && metrics.max_fds.get() > 0);
        assert!(text.ends_with("# EOF\n"));
        drop(socket);
        assert!(metrics.render().contains("istio_tcp_sockets_open{reporter=\"source\"} 0"));
    }

    #[test]
    fn a_budget_of_lines_per_second() {
        let budget = LineBudget::new(2);
        let granted: Vec<_> =
            [0, 0, 0, 0, 1, 1, 1].into_iter().map(|second| budget.take_at(second)).collect();
        assert_eq!(granted, [Some(0), Some(0), None, None, Some(2), Some(0), None]);
    }
}
