//! ZDS version 1, the protocol between Istio's node agent and its ztunnel (`proto/zds.proto`): SOCK_SEQPACKET, one
//! message a packet, at most 1024 bytes, a pod's network namespace by SCM_RIGHTS.
//!
//! ```text
//! ztunnel                                 agent
//!   ZdsHello{V1} ────────────────────────▶  within 5 s
//!   ◀──────────── Add{uid, info} + 1 fd, or Keep{uid}, each pod; each answered
//!   Ack{error} ──────────────────────────▶  within 5 s; an error keeps the connection
//!   ◀──────────────────────── SnapshotSent  answered
//!   ◀────────────────────────── Add, Del as pods come and go, each answered
//! ```
//!
//! [`server`] is the agent's end: this agent writes the rules and a stock ztunnel opens the listeners. The other end is a
//! source of pods ([`crate::source::zds`]): istio-cni writes the rules and this agent opens the sockets.

pub mod server;
pub mod wire;
