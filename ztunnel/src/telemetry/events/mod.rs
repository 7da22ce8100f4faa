//! Events that are counted and logged by the same struct, so that neither can be forgotten.
//!
//! `Connection` is the central one: made when the ends of a connection are known, counts its bytes, and writes the
//! access log line when it ends, however it ends.

mod connection;
mod trace;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tracing::{Level, event};
use ztunnel_model::{Identity, Service, Workload, WorkloadUid};

use super::Metrics;

pub use connection::Connection;
pub use trace::Trace;

/// Which end of a connection tells about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    Source,
    Destination,
}

impl Reporter {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination => "inbound",
        }
    }
}

/// How a connection ended (interop.md section 11.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// Success; a reset while bytes flow is one too.
    None,
    Deny,
    /// A failed dial, and every error without its own flag.
    Connect,
    TlsFailure,
    H2HandshakeFailure,
    /// No answer to a TCP connect to an HBONE peer: most likely something between drops port 15008.
    NetworkPolicy,
    /// Our own certificate is not available.
    IdentityError,
    CertRevoked,
}

impl Flag {
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// What a peer says of a workload that we have no record of (interop.md section 2.6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    pub cluster: Option<String>,
    pub namespace: Option<String>,
    pub workload_name: Option<String>,
    pub service_name: Option<String>,
    pub revision: Option<String>,
    pub region: Option<String>,
    pub zone: Option<String>,
}

/// What is known of one end. A record wins over baggage, which anybody can write.
#[derive(Clone, Debug)]
pub enum Endpoint {
    Workload(Arc<Workload>),
    Baggage(Box<Baggage>),
    Unknown,
}

impl Endpoint {
    fn name(&self) -> Option<&str> {
        match self {
            Self::Workload(workload) => {
                non_empty(&workload.name).or_else(|| non_empty(&workload.canonical_name))
            }
            Self::Baggage(baggage) => baggage.service_name.as_deref(),
            Self::Unknown => None,
        }
    }

    fn namespace(&self) -> Option<&str> {
        match self {
            Self::Workload(workload) => non_empty(&workload.namespace),
            Self::Baggage(baggage) => baggage.namespace.as_deref(),
            Self::Unknown => None,
        }
    }

    fn cluster(&self) -> Option<&str> {
        match self {
            Self::Workload(workload) => non_empty(&workload.cluster_id),
            Self::Baggage(baggage) => baggage.cluster.as_deref(),
            Self::Unknown => None,
        }
    }
}

/// What protects a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    MutualTls,
    /// Both ends are pods of this proxy, which has checked the certificates of both and moves the bytes itself.
    SameNode,
    Plaintext,
}

/// Everything that is known of a connection when it opens.
#[derive(Clone, Debug)]
pub struct Facts {
    pub reporter: Reporter,
    pub src: SocketAddr,
    /// The TCP destination; port 15008 for HBONE at both ends.
    pub dst: SocketAddr,
    /// The CONNECT authority.
    pub hbone_addr: Option<String>,
    pub source: Endpoint,
    pub destination: Endpoint,
    /// The service that the connection was meant for.
    pub destination_service: Option<Arc<Service>>,
    pub source_principal: Option<Identity>,
    /// When `None`, metrics name the identity of the destination's record.
    pub destination_principal: Option<Identity>,
    pub security: Security,
    /// `None` for plaintext that arrives: nobody gave it one.
    pub trace: Option<Trace>,
}

/// Why a connection did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub flag: Flag,
    pub error: String,
}

impl Failure {
    pub fn new(flag: Flag, error: impl fmt::Display) -> Self {
        Self { flag, error: error.to_string() }
    }
}

/// A connection refused before its ends were known: logged, but in no traffic metric.
#[derive(Clone, Debug)]
pub struct EarlyDeny {
    pub reporter: Reporter,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub error: String,
}

impl EarlyDeny {
    pub fn emit(&self) {
        event!(
            target: "access",
            parent: None,
            Level::WARN,
            src.addr = %self.src,
            dst.addr = %self.dst,
            direction = self.reporter.direction(),
            error = self.error.as_str(),
            "connection failed"
        );
    }
}

/// Why an inbound connection ended before an HBONE stream was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// Not TLS, or TLS that we do not speak.
    Tls,
    /// TLS without a usable client certificate.
    Certificate,
    /// Our own certificate is not available.
    Identity,
    /// Not HTTP/2, or broken HTTP/2.
    Http2,
    /// HTTP/2, but not a CONNECT that we can serve.
    Request,
    Timeout,
    /// Closed by the peer or the network.
    Closed,
}

impl Rejection {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Certificate => "certificate",
            Self::Identity => "identity",
            Self::Http2 => "http2",
            Self::Request => "request",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
        }
    }
}

/// An inbound connection that did not become a tunnel. Counted always; logged once, within a budget of lines.
#[derive(Clone, Debug)]
pub struct HandshakeFailed {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub rejection: Rejection,
    pub error: String,
}

impl HandshakeFailed {
    pub fn emit(&self, metrics: &Metrics) {
        metrics.count_handshake_failure(self.rejection);
        if let Some(suppressed) = metrics.handshake_lines.take() {
            event!(
                target: "ztunnel::proxy::inbound",
                parent: None,
                Level::WARN,
                src.addr = %self.src,
                dst.addr = %self.dst,
                reason = self.rejection.as_str(),
                error = self.error.as_str(),
                suppressed_before = (suppressed > 0).then_some(suppressed),
                "inbound handshake failed"
            );
        }
    }
}

/// A workload of this node names a policy that is not known. Told when it begins, before any connection is refused for
/// it, within a budget of lines.
/// [`Metrics::policies_missing`] says how many there are.
#[derive(Clone, Debug)]
pub struct PolicyMissing<'a> {
    pub workload: &'a WorkloadUid,
    pub policy: &'a str,
}

impl PolicyMissing<'_> {
    pub fn emit(&self, metrics: &Metrics) {
        if let Some(suppressed) = metrics.policy_lines.take() {
            event!(
                target: "ztunnel::state",
                parent: None,
                Level::WARN,
                workload = self.workload.as_str(),
                policy = self.policy,
                suppressed_before = (suppressed > 0).then_some(suppressed),
                "policy is not known: nothing reaches the workload until it comes"
            );
        }
    }
}

/// Connections of a pod wait because memory is short.
pub struct ConnectionSlowed<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
    pub reporter: Reporter,
    /// Whose budget is used up: `process` or `pod`.
    pub budget: &'static str,
}

impl ConnectionSlowed<'_> {
    pub fn emit(&self, metrics: &Metrics) {
        metrics.connections_slowed.with_label_values(&[self.reporter.as_str(), self.budget]).inc();
        if let Some(suppressed) = metrics.slowed_lines.take() {
            event!(
                target: "ztunnel::proxy",
                parent: None,
                Level::WARN,
                namespace = self.namespace,
                pod = self.pod,
                reporter = self.reporter.as_str(),
                budget = self.budget,
                suppressed_before = (suppressed > 0).then_some(suppressed),
                "memory is short: the next connection is accepted later"
            );
        }
    }
}

/// What the policies decided about a connection.
#[derive(Clone)]
pub struct PolicyDecision<'a> {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub identity: Option<&'a Identity>,
    pub decision: &'a dyn fmt::Display,
}

impl PolicyDecision<'_> {
    /// `at_info` is the operator's wish to see decisions without debugging everything.
    pub fn emit(&self, at_info: bool) {
        policy(at_info, self.src, self.dst, self.identity, &self.decision.to_string(), "policy decision");
    }
}

/// What a dry-run policy would have decided.
#[derive(Clone, Debug)]
pub struct DryRun<'a> {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub identity: Option<&'a Identity>,
    pub outcome: &'a ztunnel_model::policy::DryRun,
}

impl DryRun<'_> {
    pub fn emit(&self, at_info: bool) {
        // The texts that users of the field search for (interop.md section 9.2).
        use ztunnel_model::policy::DryRun;
        let outcome = match self.outcome {
            DryRun::DenyMatch(key) => format!("dry-run deny match: {key}"),
            DryRun::AllowMatch(key) => format!("dry-run allow match: {key}"),
            DryRun::NoAllowMatched => "no dry-run allow matched".to_owned(),
        };
        policy(at_info, self.src, self.dst, self.identity, &outcome, "dry-run policy decision");
    }
}

fn policy(
    at_info: bool,
    src: SocketAddr,
    dst: SocketAddr,
    identity: Option<&Identity>,
    decision: &str,
    message: &'static str,
) {
    macro_rules! emit {
        ($level:expr) => {
            event!(
                target: "ztunnel::policy",
                parent: None,
                $level,
                src.addr = %src,
                src.identity = identity.map(ToString::to_string),
                dst.addr = %dst,
                decision,
                "{message}"
            )
        };
    }
    if at_info { emit!(Level::INFO) } else { emit!(Level::DEBUG) }
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
pub(super) mod tests;
