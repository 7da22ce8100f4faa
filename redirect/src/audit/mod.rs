//! Capture that fails closed and proves it: sees at once that rules of a captured pod were changed, and that they work.
//!
//! ```text
//! installed ─▶ proven ─────────────▶ watched ──changed──▶ repaired ─▶ proven again
//!                │ no                   ▲ every period      │ over and over: contested, with a growing pause
//!                ▼                      │                   │ not within the bound: quarantined while strict
//!            unproven: reported, tried again, quarantined while strict (rules/host.rs)
//! ```
//!
//! - [`Watch`]: netlink sockets of the pod's namespace, kept open, so that hearing of a change and looking at the rules
//!   need no thread and no entering. A quiet audit costs three questions to the kernel: the ruleset's generation, and the
//!   route of a marked packet in each family. Only a new generation is followed by a dump and a comparison with
//!   [`Form`](crate::rules::form::Form).
//! - [`proof`]: a SYN from inside the pod that must be answered by the socket behind our rules. It never becomes a
//!   connection, so neither the proxy nor its log sees it.
//! - [`Contest`]: how fast repairs follow each other when somebody undoes them.
//!
//! The sockets end with the pod's listeners, and keep its namespace alive no longer than these do. Knows nothing of sources
//! and proxies; what it finds it returns.

mod contest;
pub(crate) mod proof;
mod wake;
mod watch;

pub(crate) use contest::{Contest, Pace};
pub(crate) use wake::Wake;
pub(crate) use watch::{Damage, Ear, Watch};
