//! Every metric name, with its help text. Istio's names first (interop.md section 11.1), then our own.

/// A metric: the name of its samples and what it means.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    pub name: &'static str,
    pub help: &'static str,
}

macro_rules! names {
    ($($constant:ident = $name:literal, $help:literal;)*) => {
        $(pub const $constant: Name = Name { name: $name, help: $help };)*

        #[cfg(test)]
        pub(super) const ALL: &[Name] = &[$($constant),*];
    };
}

names! {
    BUILD = "istio_build", "Version of this component";
    TCP_OPENED = "istio_tcp_connections_opened_total", "TCP connections opened";
    TCP_CLOSED = "istio_tcp_connections_closed_total", "TCP connections closed";
    TCP_FAILED = "istio_tcp_connections_failed_total", "TCP connections that ended with a failure (unstable)";
    TCP_RECEIVED = "istio_tcp_received_bytes_total", "Bytes from client to server";
    TCP_SENT = "istio_tcp_sent_bytes_total", "Bytes from server to client";
    SOCKETS_OPEN = "istio_tcp_sockets_open", "Accepted sockets that are open (unstable)";
    PODS_ACTIVE = "workload_manager_active_proxy_count", "Pods that are served (unstable)";
    PODS_PENDING = "workload_manager_pending_proxy_count", "Pods that cannot be served yet (unstable)";
    PODS_STARTED = "workload_manager_proxies_started_total", "Pods whose service started (unstable)";
    PODS_STOPPED = "workload_manager_proxies_stopped_total", "Pods whose service stopped (unstable)";
    OPEN_FDS = "process_open_fds", "Open file descriptors";
    MAX_FDS = "process_max_fds", "Limit of open file descriptors";

    XDS_TERMINATIONS = "istio_xds_connection_terminations_total", "Tries to have an xDS stream that ended, by reason (unstable)";
    XDS_MESSAGES = "istio_xds_message_total", "xDS responses by type (unstable)";
    XDS_BYTES = "istio_xds_message_bytes_total", "Bytes of xDS resources by type (unstable)";
    CRL_REJECTIONS = "istio_crl_policy_rejections_total", "Connections refused or cut by a CRL (unstable)";
    CRL_UNTRACKED = "istio_crl_untracked_connections_total",
        "Tunnels that a later CRL will not cut because their peer's chain is too long to be kept (unstable)";

    XDS_CONNECTED = "ztunnel_xds_connected", "1 while there is an xDS stream, else 0";
    XDS_RESOURCES = "ztunnel_xds_resources", "xDS resources held, by type";
    XDS_REJECTED = "ztunnel_xds_rejected_resources_total", "xDS resources that were refused, by type";
    CERTIFICATE_EXPIRY = "ztunnel_certificate_expiry_seconds",
        "Seconds until the certificate of an identity is over; negative when it is";
    CERTIFICATE_FETCHES = "ztunnel_certificate_fetches_total", "Requests to the CA by their outcome";
    CERTIFICATES_EXPIRED = "ztunnel_certificates_expired_total",
        "Certificates that ended before a new one came";
    CERTIFICATES_REVOKED = "ztunnel_certificates_revoked_total", "Certificates of local pods that a CRL names";
    CERTIFICATES_HELD = "ztunnel_certificates_held", "Identities that certificates are kept for";
    HANDSHAKE_FAILURES = "ztunnel_inbound_handshake_failures_total",
        "Inbound connections that ended before an HBONE stream was accepted";
    IO_BACKEND = "ztunnel_io_backend", "1 for what reads and writes applications' sockets: epoll, or uring";
    POLICIES_MISSING = "ztunnel_policies_missing",
        "Policies that workloads of this node name but that are not known: nothing reaches these workloads until then";
    WORKERS = "ztunnel_workers", "Worker threads that take new connections";
    WORKER_CONNECTIONS = "ztunnel_worker_connections", "Accepted connections and tunnels that a worker carries";
    CONNECTIONS_SLOWED = "ztunnel_connections_slowed_total",
        "Times that a listener or a stream had to wait because a memory budget was used up";
    POD_WORKER = "ztunnel_pod_worker_seconds_total",
        "Time of the workers that a pod of this node took, sampled";
    POD_RECEIVED = "ztunnel_pod_received_bytes_total", "Bytes that were handed to the applications of a pod of this node";
    POD_SENT = "ztunnel_pod_sent_bytes_total", "Bytes that were taken from the applications of a pod of this node";
    POD_CONNECTIONS = "ztunnel_pod_connections_total",
        "Connections that a pod of this node opened (source) or was sent (destination)";
    POD_HANDSHAKES = "ztunnel_pod_handshakes_total", "TLS handshakes begun for a pod of this node, in either role";
    LOG_LINES_DROPPED = "ztunnel_log_lines_dropped_total", "Log lines dropped because their reader was slow";
    LABELS_DROPPED = "ztunnel_traffic_labels_dropped_total",
        "Connections counted without workload labels because too many label sets exist";
}

/// Families that say their unit: the suffix before `_total`.
pub const UNITS: &[&str] = &["bytes", "seconds"];

/// The labels of every `istio_tcp_connections_*` and `istio_tcp_*_bytes` sample, in the order of interop.md section
/// 11.2.
pub const TRAFFIC_LABELS: [&str; 27] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
];

/// Where `response_flags` stands in [`TRAFFIC_LABELS`].
pub(super) const FLAG_POSITION: usize = 21;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_the_flag_is_where_it_is_said_to_be() {
        assert_eq!(TRAFFIC_LABELS[FLAG_POSITION], "response_flags");
        let mut names: Vec<_> = ALL.iter().map(|name| name.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
