//! Certificates of the pods on this node: asked for, cached, renewed at half life, never served after their end.
//!
//! `schedule` decides when (pure, time injected), `ca_client` asks the CA (a fresh key and CSR every time), `manager` holds
//! one entry for each identity that somebody holds a [`PodSvid`] of. The module must not know pods, connections or
//! policy: it is told an identity and gives a checked [`crate::tls::svid::Svid`].
//!
//! ```text
//!             first PodSvid                      answer checked
//!  (nothing) ───────────────▶ Initializing ───────────────────────▶ Available ──┐ half life: renewed; the old one is
//!      ▲                        │      ▲                             │      ▲   │ served until the new one is here
//!      │ last PodSvid           │ fails │ back-off, again      notAfter│      └───┘
//!      │ dropped, grace over    ▼      │                             ▼
//!      └───────────────────  Unavailable: reason  ◀──────────────────┘
//! ```

pub mod ca_client;
pub mod manager;
pub mod schedule;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

pub use manager::{CertificateState, Counters, Handle, Manager, PodSvid, Unavailable};

/// What the operator decides about the CA and the certificates.
#[derive(Clone, Debug)]
pub struct Config {
    /// CA_ADDRESS; the scheme `http` means plaintext, any other or none means TLS.
    pub ca_address: Uri,
    /// CA_ROOT_CA.
    pub ca_root: RootSource,
    /// ALT_CA_HOSTNAME: a second name that the CA's certificate may carry.
    pub alt_hostname: Option<String>,
    /// CA_HEADER_*: name and value of extra gRPC metadata.
    pub headers: Vec<(String, String)>,
    /// AUTH_TOKEN; `None` sends no authorization.
    pub token: Option<TokenSource>,
    /// CLUSTER_ID.
    pub cluster_id: String,
    /// SECRET_TTL: the certificate lifetime to ask for.
    pub secret_ttl: Duration,
}

/// Where the roots come from that the CA's own server certificate must reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// Read again for every request, so that a rotated file is followed.
    Path(PathBuf),
    System,
    /// PEM text.
    Inline(String),
}

/// Where the bearer token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// Read again for every request: Kubernetes rotates it.
    Path(PathBuf),
    Literal(String),
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(redacted)"),
        }
    }
}
