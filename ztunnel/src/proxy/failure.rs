//! The one table that turns what went wrong into HTTP status, response flag and text (interop.md sections 2.5, 11.2
//! and 11.3).

use std::rc::Rc;

use http::StatusCode;

use crate::hbone::{self, client};
use crate::identity::manager::Unavailable;
use crate::net::{dial, stock};
use crate::policy::Denied;
use crate::relay::Broken;
use crate::route::{inbound, outbound};
use crate::telemetry::events::{self, Flag, Rejection};
use crate::tls;
use crate::tls::revocation::Revoked;

/// Why a tunnel could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialFailure {
    #[error(transparent)]
    Identity(#[from] Unavailable),
    #[error(transparent)]
    Stock(#[from] stock::Empty),
    #[error(transparent)]
    Dial(#[from] dial::Error),
    #[error("{0}")]
    Tls(#[from] tls::Error),
}

/// Why an outbound connection failed.
#[derive(Debug, thiserror::Error)]
pub enum Outbound {
    #[error(transparent)]
    Route(#[from] outbound::Refused),
    #[error("{0}")]
    Tunnel(Rc<hbone::pool::Error<DialFailure>>),
    #[error(transparent)]
    Stream(#[from] client::Error),
    #[error(transparent)]
    Stock(#[from] stock::Empty),
    #[error(transparent)]
    Dial(#[from] dial::Error),
    #[error("connection closed: {0}")]
    Revoked(Revoked),
    #[error(transparent)]
    Relay(#[from] Broken),
}

/// Why an inbound connection failed.
#[derive(Debug, thiserror::Error)]
pub enum Inbound {
    #[error("method {0} is not CONNECT")]
    Method(http::Method),
    #[error("\"{0}\" is not an authority (expected IP:PORT or HOST:PORT)")]
    Authority(String),
    #[error("the workload of this pod is not known")]
    UnknownWorkload,
    #[error(transparent)]
    Route(#[from] inbound::Refused),
    #[error("connection closed due to policy rejection: {0}")]
    Denied(#[from] Denied),
    #[error("connection closed due to policy change: {0}")]
    Revoked(Denied),
    #[error("connection closed: the peer's certificate is revoked")]
    CertificateRevoked,
    #[error(transparent)]
    Stock(#[from] stock::Empty),
    #[error(transparent)]
    Dial(#[from] dial::Error),
    #[error("cannot answer the CONNECT: {0}")]
    Answer(#[from] hbone::Http2Error),
    #[error("no memory is left for another connection of the pod (MEMORY_BUDGET, POD_MEMORY_BUDGET)")]
    NoRoom,
    #[error("the peer gave the stream up")]
    Abandoned,
    #[error(transparent)]
    Relay(#[from] Broken),
}

impl From<Rc<hbone::pool::Error<DialFailure>>> for Outbound {
    fn from(error: Rc<hbone::pool::Error<DialFailure>>) -> Self {
        Self::Tunnel(error)
    }
}

impl Outbound {
    /// Whether another endpoint may be tried: nothing of the application has been sent.
    pub fn may_try_another(&self) -> bool {
        match self {
            Self::Tunnel(error) => !matches!(&**error, hbone::pool::Error::Dial(DialFailure::Identity(_))),
            Self::Stream(client::Error::Status(status)) => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Stream(error) => error.is_unprocessed(),
            Self::Dial(_) => true,
            Self::Route(_) | Self::Stock(_) | Self::Revoked(_) | Self::Relay(_) => false,
        }
    }

    fn flag(&self) -> Flag {
        match self {
            Self::Tunnel(error) => match &**error {
                hbone::pool::Error::Dial(DialFailure::Identity(_)) => Flag::IdentityError,
                hbone::pool::Error::Dial(DialFailure::Dial(dial::Error::Timeout { .. })) => {
                    Flag::NetworkPolicy
                }
                hbone::pool::Error::Dial(DialFailure::Tls(error)) if error.is_revoked() => Flag::CertRevoked,
                hbone::pool::Error::Dial(DialFailure::Tls(_)) => Flag::TlsFailure,
                hbone::pool::Error::Dial(_) => Flag::Connect,
                hbone::pool::Error::Http2(_) => Flag::H2HandshakeFailure,
            },
            Self::Revoked(_) | Self::Stream(client::Error::Revoked(_)) => Flag::CertRevoked,
            Self::Stream(client::Error::Http2(_)) => Flag::H2HandshakeFailure,
            Self::Route(_) | Self::Stream(_) | Self::Stock(_) | Self::Dial(_) | Self::Relay(_) => {
                Flag::Connect
            }
        }
    }

    fn text(&self) -> String {
        match self.flag() {
            Flag::NetworkPolicy => {
                format!("{self}; a NetworkPolicy may block port {} between the pods", redirect::HBONE_PORT)
            }
            _ => self.to_string(),
        }
    }
}

impl Inbound {
    /// The answer to a CONNECT that was not accepted.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Method(_) | Self::Authority(_) | Self::Route(inbound::Refused::Mismatch { .. }) => {
                StatusCode::BAD_REQUEST
            }
            Self::Denied(_) | Self::Revoked(_) => StatusCode::UNAUTHORIZED,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn flag(&self) -> Flag {
        match self {
            Self::Denied(_) | Self::Revoked(_) => Flag::Deny,
            Self::CertificateRevoked => Flag::CertRevoked,
            Self::Answer(_) => Flag::H2HandshakeFailure,
            _ => Flag::Connect,
        }
    }
}

/// What the metric of refused handshakes calls a TLS failure.
pub fn tls_rejection(error: &tls::Error) -> Rejection {
    match error {
        tls::Error::Timeout { .. } => Rejection::Timeout,
        tls::Error::Io { .. } | tls::Error::NotConnected(_) => Rejection::Closed,
        tls::Error::Verification { .. } | tls::Error::NoClientCertificate { .. } => Rejection::Certificate,
        tls::Error::RefusedByPeer { .. } | tls::Error::Handshake { .. } => Rejection::Tls,
    }
}

/// The same for HTTP/2.
pub fn http2_rejection(error: &hbone::server::Error) -> Rejection {
    match error {
        hbone::server::Error::HandshakeTimeout => Rejection::Timeout,
        hbone::server::Error::Revoked(_) => Rejection::Certificate,
        hbone::server::Error::Handshake(_) | hbone::server::Error::Connection(_) => Rejection::Http2,
    }
}

impl From<Outbound> for events::Failure {
    fn from(failure: Outbound) -> Self {
        Self { flag: failure.flag(), error: failure.text() }
    }
}

impl From<Inbound> for events::Failure {
    fn from(failure: Inbound) -> Self {
        Self { flag: failure.flag(), error: failure.to_string() }
    }
}
