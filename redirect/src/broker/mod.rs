//! The socket between the agent and the proxies: SOCK_SEQPACKET, one protobuf message a packet, descriptors by
//! SCM_RIGHTS (`proto/broker.proto`).
//!
//! ```text
//! proxy                                   agent
//!   Hello{version, held: n} ────────────▶  peer's uid checked before a byte is read
//!   Held{uid} + 3 fds, n times ─────────▶  adopted where the agent has no listeners of its own
//!   ◀──────────────────────── Welcome{version}   or Refused{reason}, then the end
//!   ◀──────────────── PodAdded{…} + 3 fds, each pod, then SnapshotSent
//!   Refill{uid, count} ─────────────────▶
//!   ◀─────────────────────── Sockets{uid} + fds
//!   PodReady / PodFailed ───────────────▶  for the log
//!   ◀──────────────────────── PodAdded, PodRemoved as pods come and go
//!   ◀──────────────────────── PodLeaving: the pod lives on, and is no longer captured
//!   PodDrained ─────────────────────────▶  none of its connections is left
//! ```
//!
//! Another agent says `Succeed` instead of Hello, as root, and the connection ends when this agent makes way.
//!
//! Whatever is wrong with one connection (another user, an unknown version, a truncated or undecodable packet, a queue
//! that nobody reads) ends that connection with a reason in the log, and no other. Several proxies may be connected at
//! once. The socket file belongs to the proxy's user and the agent's group; the kernel's word on the peer's uid decides.

pub mod server;
pub mod wire;
