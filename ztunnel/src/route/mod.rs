//! Where a connection goes. Pure functions over one snapshot: no socket, no clock, no retry.

pub mod balance;
pub mod inbound;
pub mod outbound;
