//! Captures pods' TCP and hands it to a proxy that has no capabilities.
//!
//! Owns everything that needs a capability in a pod's network namespace: the redirection rules, the listening
//! sockets that the rules point at, and the sockets with which the proxy dials. Knows pods only as (uid, namespace
//! file, addresses), told by a file, by istio-cni, or by Kubernetes and the CNI plugin, in which case [`locate`] proves which
//! namespace is the pod's; must not know workloads, services, policies, identities or what travels on the connections.
//!
//! The agent (`ztunnel-redirect`, [`agent`]) is the only user of most modules. The proxy links this crate for
//! [`client`], [`original_dst`](original_dst::original_dst) and the constants below.
//!
//! A pod's life, one straight line that the types enforce:
//!
//! ```text
//! source ──▶ Netns ──▶ Listeners ──▶ Ports ──▶ Installed ──▶ offered to every proxy
//!            by path    bound, or     proved     rules in       stays until the pod is withdrawn
//!            and inode  handed back   live       the kernel     or its namespace is gone
//! ```
//!
//! Rules are installed as soon as the listeners live, whether or not a proxy is connected: fail closed. A pod without a
//! proxy has its connections wait in the backlog of sockets which the agent keeps. Rules stay when the agent or the
//! proxy dies; only a withdrawal removes them, and nothing here removes them in a `Drop`.
//!
//! From then on they are audited and proven ([`audit`]), and the node's own table ([`rules::host`]) lets the kubelet's probes
//! through and shuts off whom nobody can vouch for. How all of it fares is told over HTTP ([`status`]).

pub mod agent;
pub mod audit;
pub mod broker;
pub mod client;
pub mod cni;
pub mod listener;
pub mod locate;
pub mod netns;
pub mod original_dst;
mod packet;
mod readiness;
mod retry;
pub mod rules;
pub mod sockets;
pub mod source;
pub mod status;
pub mod succession;
pub mod uninstall;
pub mod zds;

/// Where connections that leave a pod arrive (interop.md section 1.1).
pub const OUTBOUND_PORT: u16 = 15001;
/// Where plaintext connections to a pod arrive.
pub const PLAINTEXT_PORT: u16 = 15006;
/// Where HBONE tunnels to a pod arrive; reached directly, never redirected.
pub const HBONE_PORT: u16 = 15008;
/// On every socket of the proxy in a pod's namespace; "came from the proxy" for the rules (interop.md section 7.1).
pub const PACKET_MARK: u32 = 0x539;
