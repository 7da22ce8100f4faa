//! The certificate authority: Istio's `CreateCertificate` (interop.md section 5) over TLS.
//!
//! `authenticate` says which node calls and for whom it may ask, `issue` reads a CSR and sets the terms, `authority` signs
//! with a set of `material`, `ledger` remembers what was signed, `revocation` turns that and the operator's list into
//! CRLs, `running` keeps all of it going while its files change, `server` joins them into the gRPC service behind
//! `listener`. A request passes them in that order, so nothing of a caller without a token is ever parsed.

pub mod authenticate;
pub mod authority;
pub mod counters;
pub(crate) mod files;
pub mod issue;
pub mod ledger;
pub mod listener;
pub mod material;
pub mod revocation;
pub mod running;
pub mod server;

/// The wire messages, and both ends' stubs: the client is for tests that play a proxy.
#[allow(clippy::all, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("istio.v1.auth");
}

pub use authority::{Authority, Folders, Issued, Leaf, Purpose, SubjectName};
pub use material::Expiry;
pub use running::{Ca, Files};
