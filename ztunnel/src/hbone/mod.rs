//! HBONE: TCP connections as CONNECT streams in HTTP/2 over mutual TLS (interop.md sections 2 and 3).
//!
//! A tunnel is one TLS and HTTP/2 connection, a stream is one CONNECT in it. Everything of HTTP/2 stays in here. Must
//! not know policies, routes or where a stream comes from.
//!
//! ```text
//! tunnel (client): dialling ─▶ open ─▶ full ─▶ open … ─▶ closed (idle, GOAWAY, error, missed PING)
//! tunnel (server): handshake ─▶ serving ─▶ draining (GOAWAY sent, streams go on) ─▶ closed
//! ```

pub mod client;
mod gather;
pub mod headers;
pub mod keepalive;
pub mod pool;
pub mod server;
pub mod stream;

use std::time::Duration;

/// What HTTP/2 reports of a tunnel or a stream.
pub use h2::Error as Http2Error;

/// Settings of both roles (interop.md section 2.2).
#[derive(Clone, Debug)]
pub struct Settings {
    pub stream_window: u32,
    pub connection_window: u32,
    pub frame_size: u32,
    pub max_streams: usize,
    pub unused_release: Duration,
}

/// How long a TLS or an HTTP/2 handshake may take, each.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a peer may take to answer a CONNECT: it waits for its workload (5 s) and dials its application (10 s).
pub const RESPONSE_DEADLINE: Duration = Duration::from_secs(20);
/// How long a TCP connect may take.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// What HTTP/2 may queue for one stream before the application is no longer read.
const SEND_BUFFER: usize = 512 * 1024;
