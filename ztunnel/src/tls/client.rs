//! The handshake of the side that dials.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use ztunnel_model::{IdentitySet, canonical};

use super::error::Attempt;
use super::stream::Stream;
use super::svid::Svid;
use super::verify::VerifiedPeer;
use super::{Error, handshake, linger};

/// Proves to be `svid` to whoever answers on `tcp`, and that it is one of `expected`. The deadline covers the whole
/// handshake. A server with another identity is refused inside the handshake, so it learns of it by an alert.
pub async fn connect(
    svid: &Svid,
    expected: &IdentitySet,
    tcp: TcpStream,
    deadline: Duration,
) -> Result<(Stream, VerifiedPeer), Error> {
    let peer = canonical(tcp.peer_addr().map_err(Error::NotConnected)?);
    let attempt = || Attempt {
        peer,
        own: svid.identity().to_string(),
        root: Arc::clone(svid.root()),
        expected: format!("one of {expected}"),
        deadline,
    };
    // An address is a name that is never sent as SNI, and the verifier asks for identities instead of names.
    let name = ServerName::IpAddress(peer.ip().into());
    let side = UnbufferedClientConnection::new(Arc::new(svid.client_config(expected)), name)
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
