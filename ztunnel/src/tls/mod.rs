//! Mutual TLS between mesh peers, and TLS to the control plane. The only place that knows rustls.
//!
//! It owns what a handshake needs and proves: a pod's [`svid::Svid`], the [`verify::VerifiedPeer`] that only a finished
//! handshake makes, the two handshakes with their deadline, and the byte stream that they leave behind, whose records
//! are its own (`record`): rustls makes the handshake and every key. It must not know how certificates are obtained
//! (`identity`), what is dialled or why (`route`, `hbone`), nor any policy.
//!
//! Choices that hold for every mesh connection (interop.md section 2.1): TLS 1.3 alone, AES-GCM alone with the 256-bit
//! suite first, X25519 before the NIST curves so that one small key share is sent, ALPN `h2`, no SNI, and no resumption
//! in either direction: a session that could be resumed would outlive the check of the certificate behind it.

pub mod client;
pub mod control;
mod describe;
mod error;
mod handshake;
mod record;
pub mod revocation;
pub mod server;
mod stream;
pub mod svid;
pub mod verify;
pub mod vouch;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub use error::Error;
pub use record::Records;
pub use stream::Stream;

const ALPN_H2: &[u8] = b"h2";

/// The cryptography of mesh connections; the control plane's channel uses the provider's defaults instead.
static MESH: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::{cipher_suite, kx_group};
    Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256],
        // rustls sends a key share for the first group only.
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1, kx_group::X25519MLKEM768],
        ..aws_lc_rs::default_provider()
    })
});

fn mesh_provider() -> Arc<CryptoProvider> {
    Arc::clone(&MESH)
}

/// Keeps a socket whose handshake failed until the peer has had time to read the alert: closing it at once, with bytes
/// of the peer unread, would send RST and take the alert with it. Bounded in time and bytes; nobody waits for it.
fn linger(mut tcp: TcpStream) {
    tokio::spawn(tokio::time::timeout(LINGER, async move {
        let _ = tcp.shutdown().await;
        let _ = tokio::io::copy(&mut tcp.take(LINGER_BYTES), &mut tokio::io::sink()).await;
    }));
}

const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 * 1024;

#[cfg(test)]
pub(crate) mod test_ca;
#[cfg(test)]
mod tests;
