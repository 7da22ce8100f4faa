use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::AlertDescription;

use super::handshake::Failed;
use super::verify::Refused;

/// Why a mesh handshake gave no stream. Every variant says who was on the other end, as far as it is known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("TLS handshake with {peer} did not finish within {}ms (expected {expected})", deadline.as_millis())]
    Timeout { peer: SocketAddr, expected: String, deadline: Duration },
    #[error("TLS handshake with {peer} broke off: {source} (expected {expected})")]
    Io { peer: SocketAddr, expected: String, source: io::Error },
    #[error("the socket has no peer: {0}")]
    NotConnected(#[source] io::Error),
    #[error("{peer} is refused: {source}")]
    Verification { peer: SocketAddr, source: Refused },
    #[error("{peer} is refused: it sent no client certificate (expected {expected})")]
    NoClientCertificate { peer: SocketAddr, expected: String },
    #[error("{peer} refused our handshake as {own} with the TLS alert {alert:?}{}", meaning(*alert, root))]
    RefusedByPeer { peer: SocketAddr, own: String, root: Arc<str>, alert: AlertDescription },
    #[error("{peer} does not speak TLS as the mesh does: {source}")]
    Handshake { peer: SocketAddr, source: rustls::Error },
}

impl Error {
    /// A short stable word for metric labels and flags.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "tls_timeout",
            Self::Io { .. } | Self::NotConnected(_) => "tls_io",
            Self::Verification { source: Refused::Revoked { .. }, .. } => "peer_revoked",
            Self::Verification { .. } => "peer_identity",
            Self::NoClientCertificate { .. } => "no_client_certificate",
            Self::RefusedByPeer { .. } => "refused_by_peer",
            Self::Handshake { .. } => "tls_handshake",
        }
    }

    /// The other end was reached and is not (or could not prove to be) who it has to be.
    pub fn is_verification(&self) -> bool {
        matches!(self, Self::Verification { .. } | Self::NoClientCertificate { .. })
    }

    /// A CRL names the peer's certificate.
    pub fn is_revoked(&self) -> bool {
        matches!(self.refused(), Some(Refused::Revoked { .. }))
    }

    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }

    /// What the verifier found, when it was the verifier that refused.
    pub fn refused(&self) -> Option<&Refused> {
        match self {
            Self::Verification { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// What an alert of the peer's says about our own certificate, whose root this is.
pub(super) fn meaning(alert: AlertDescription, root: &str) -> String {
    match alert {
        AlertDescription::UnknownCA => format!(": it does not trust the root of our certificate, {root}"),
        _ => String::new(),
    }
}

/// The facts that a failed handshake reports beside its cause.
pub(super) struct Attempt {
    pub(super) peer: SocketAddr,
    pub(super) own: String,
    /// Of our own certificate.
    pub(super) root: Arc<str>,
    pub(super) expected: String,
    pub(super) deadline: Duration,
}

impl Attempt {
    pub(super) fn timeout(self) -> Error {
        Error::Timeout { peer: self.peer, expected: self.expected, deadline: self.deadline }
    }

    pub(super) fn failed(self, failed: Failed) -> Error {
        let Self { peer, own, root, expected, .. } = self;
        match failed {
            Failed::Peer(source) | Failed::Tls(_, Some(source)) => {
                Error::Verification { peer, source: *source }
            }
            Failed::Tls(source, None) => match *source {
                rustls::Error::NoCertificatesPresented => Error::NoClientCertificate { peer, expected },
                rustls::Error::AlertReceived(alert) => Error::RefusedByPeer { peer, own, root, alert },
                source => Error::Handshake { peer, source },
            },
            Failed::Io(source) => Error::Io { peer, expected, source },
        }
    }
}
