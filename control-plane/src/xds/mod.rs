//! The xDS server: delta ADS (interop.md section 4) from the index to the proxies.
//!
//! ```text
//!   index ──▶ Writer ─ store ─▶ Session ─▶ Response ─▶ grpc::Outbound ─▶ client
//!                                  ▲                                        │ ACK, NACK, subscriptions
//!                                  └──────────────── grpc::Inbound ◀────────┘
//! ```
//!
//! `store` is what there is, `session` the protocol of one client without I/O, `response` what the two make, `grpc` how
//! messages are framed, `stream` one client's task, `server` who is let in and how many, `proof` for how long, `clients` who
//! is connected and how it gets on. None of them knows what a resource means.
//!
//! What a client costs. One that wants everything and is up to date costs its stream, its token and one sequence number for each
//! type: resources and their encodings are in the store once. One that asks for single resources costs the keys it asked
//! for and the versions it was sent. A client that comes back costs the names and versions that it says it holds, until
//! they are compared; few may be at that at a time. A client that does not answer, or does not read, costs one response
//! of each type: changes wait for it in the store, where the later replaces the earlier, and after a deadline it is cut.
//!
//! That is also why gRPC's framing is our own: tonic keeps, for each stream, buffers as large as the largest message that
//! passed, which for thousands of idle clients is most of the memory of this process.

pub mod clients;
mod grpc;
mod proof;
mod response;
pub mod server;
pub mod session;
pub mod store;
mod stream;

pub use clients::{Client, Clients, Counters, Ended, TypeCounters};
pub use proof::Proof;
pub use response::Response;
pub use server::{Authenticate, Caller, Limits, Service, service};
pub use session::{Everything, Facts, Scope, Session};
pub use store::{Store, Writer, store};
