//! A mesh on one machine: nodes and pods are network namespaces, everything else is real. One agent and one proxy per
//! node and one controller run as separate processes of the real binaries.
//!
//! A folder of Kubernetes manifests describes it, and edits there are live: `manifests` reads the folder and adds what a
//! cluster would, `follow` carries it out.
//!
//! Owns the topology, the files that the processes read, and their life. A feature of the product (`ztunnelctl lab`)
//! and the bed of its tests. Needs root, changes nothing outside its namespaces but one host-wide setting: `cubic`
//! joins `net.ipv4.tcp_allowed_congestion_control`, because a namespace can only choose from that list.
//!
//! ```text
//! NAME.underlay: bridge 172.30.0.1/24, fd00:30::1/64; the controller
//!   └─ NAME.node1: 172.30.0.11, fd00:30::11; agent, proxy; bridge 10.244.1.1/24, fd00:244:1::1/64
//!        └─ NAME.POD: 10.244.1.10, fd00:244:1::10, …
//! ```

pub mod addresses;
pub mod binaries;
pub mod bulk;
pub mod capture;
#[cfg(feature = "cluster")]
pub mod cluster;
mod error;
mod files;
mod follow;
pub mod http;
pub mod lab;
pub mod manifests;
pub mod measure;
pub mod mesh;
pub mod namespace;
pub mod network;
pub mod node;
pub mod process;
mod processes;
mod record;
pub mod status;
mod teardown;
mod topology;
pub mod tour;
pub mod traces;
pub mod traffic;
pub mod wait;

pub use follow::follow;
pub use lab::{Error, Lab, Manifests};
pub use mesh::Mesh;
pub use wait::{steady, wait_until};
