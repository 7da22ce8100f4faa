//! Pods of this node as the proxy serves them: who they are, which workers accept for them, and where their sockets
//! come from.
//!
//! ```text
//! PodAdded ─▶ certificate asked for ─▶ on every worker, one accepts ─▶ serving ─▶ PodRemoved ─▶ everything closed at once
//!     └◀─ back-off ── pending ◀── a worker could not ┘      └─ agent away: goes on, hands its listeners to the next agent
//! ```
//!
//! Runs on the control thread. Must not know how pods are found or captured: the agent does that.

pub mod demand;
mod homes;
pub mod manager;
mod view;

pub use manager::Manager;
pub use view::View;
