//! The client side of delta xDS (the aggregated discovery service), as an ambient-mode node proxy needs it.
//!
//! - [`delta`] is the protocol without I/O: events and time in, requests and responses out.
//! - [`transport`] opens streams: gRPC over TLS, token and roots read anew each time.
//! - [`client`] joins the two on the control thread and serves demands from other threads.
//!
//! Owns the protocol: subscriptions, versions, answers, reconnecting. Must not know what a resource means: bodies are
//! bytes, and the consumer's [`client::Sink`] says which of them it could apply. [`proto`] has the messages and both ends
//! of the service; the control plane uses its server side.

pub mod backoff;
pub mod client;
pub mod delta;
pub mod node;
pub mod resource;
mod subscription;
pub mod transport;

pub use node::Node;
pub use resource::{Decoded, Rejection, Resource, ResourceName, TypeUrl, Update, Version};
pub use subscription::{Mode, Outcome};

/// The messages of package `envoy.service.discovery.v3`, and the service's client and server.
pub mod proto {
    tonic::include_proto!("envoy.service.discovery.v3");
}

#[cfg(test)]
mod wire_tests;
