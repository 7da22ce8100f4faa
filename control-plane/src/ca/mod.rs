//! The certificate authority: Istio's `CreateCertificate` (interop.md section 5) over TLS.
//!
//! `authenticate` says which node calls and for whom it may ask, `issue` reads a CSR and sets the terms, `authority` holds
//! the root key and signs, `server` joins them into the gRPC service. A request passes them in that order, so nothing of
//! a caller without a token is ever parsed.

pub mod authenticate;
pub mod authority;
pub mod issue;
pub mod server;

/// The wire messages, and both ends' stubs: the client is for tests that play a proxy.
#[allow(clippy::all, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("istio.v1.auth");
}

pub use authority::{Authority, Leaf, Purpose, SubjectName};
