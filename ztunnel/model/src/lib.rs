//! The vocabulary of the mesh: identities, addresses, hops, workloads, services and policies, the pure policy
//! decision, and the codecs between these types and their written forms (WDS protobuf, static YAML).
//!
//! Knows nothing of sockets, clocks, runtimes or files: it turns values into values.

pub mod address;
pub mod codec;
pub mod hop;
pub mod identity;
pub mod policy;
pub mod service;
pub mod text;
pub mod workload;

pub use address::{LocalAddr, Network, NetworkAddress, OrigDst, PeerAddr, canonical};
pub use hop::{Authority, Hop};
pub use identity::{Identity, IdentitySet};
pub use service::{NamespacedHostname, Service, ServicePort};
pub use text::Text;
pub use workload::{Workload, WorkloadUid};
