//! The handshake of the side that accepts.

use std::sync::Arc;
use std::time::Duration;

use rustls::server::UnbufferedServerConnection;
use tokio::net::TcpStream;
use ztunnel_model::canonical;

use super::error::Attempt;
use super::stream::Stream;
use super::svid::Svid;
use super::verify::VerifiedPeer;
use super::{Error, handshake, linger};

/// Serves as `svid` and demands a client certificate from the same trust domain. The deadline covers the whole handshake.
pub async fn accept(
    svid: &Svid,
    tcp: TcpStream,
    deadline: Duration,
) -> Result<(Stream, VerifiedPeer), Error> {
    let peer = canonical(tcp.peer_addr().map_err(Error::NotConnected)?);
    let attempt = || Attempt {
        peer,
        own: svid.identity().to_string(),
        root: Arc::clone(svid.root()),
        expected: format!("any identity of trust domain {}", svid.identity().trust_domain()),
        deadline,
    };
    let side = UnbufferedServerConnection::new(svid.server_config())
        .map_err(|source| Error::Handshake { peer, source })?;
    match tokio::time::timeout(deadline, handshake::run(side, tcp, svid)).await {
        Err(_) => Err(attempt().timeout()),
        Ok(Err((failed, tcp))) => {
            linger(tcp);
            Err(attempt().failed(failed))
        }
        Ok(Ok(established)) => Ok(established),
    }
}
