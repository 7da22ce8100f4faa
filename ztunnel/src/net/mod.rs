//! Sockets that came from the agent: listeners that accept inside a pod, and unconnected sockets to dial from there.
//!
//! The proxy never opens a socket in a pod's namespace itself, since that needs capabilities that it does not have.

pub mod dial;
pub mod listen;
pub mod socket;
pub mod stock;
