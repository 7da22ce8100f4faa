//! Enforcement: every inbound connection is registered first, then decided, and decided again whenever the state
//! changes, until it ends (interop.md section 9; better than 9.6: with the fresh workload record).
//!
//! `AuthorizedConnection` is the proof that a connection was allowed and is being watched; it is made here only, and
//! nothing else can dial the application. The decision itself is pure and lives in the model.

pub mod authorized;
pub mod enforcer;

pub use authorized::AuthorizedConnection;
pub use enforcer::{Denied, Enforcer, Facts};
