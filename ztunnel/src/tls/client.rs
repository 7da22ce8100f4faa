//! The handshake of the side that dials.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};
use ztunnel_model::{IdentitySet, canonical};

use super::ahead::Ahead;
use super::error::Attempt;
use super::stream::{Stream, WRITE_LIMIT};
use super::svid::Svid;
use super::verify::{self, VerifiedPeer};
use super::{Error, linger};

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
        expected: format!("one of {expected}"),
        deadline,
    };
    // An address is a name that is never sent as SNI, and the verifier asks for identities instead of names.
    let name = ServerName::IpAddress(peer.ip().into());
    let handshake = TlsConnector::from(Arc::new(svid.client_config(expected)))
        .connect_with(name, Ahead::new(tcp), |session| session.set_buffer_limit(Some(WRITE_LIMIT)))
        .into_fallible();
    match tokio::time::timeout(deadline, verify::noting(handshake)).await {
        Err(_) => Err(attempt().timeout()),
        Ok(Err(((error, tcp), refused))) => {
            linger(tcp.into_tcp());
            Err(attempt().failed(error, refused))
        }
        Ok(Ok(stream)) => {
            let stream = Stream::new(TlsStream::Client(stream));
            let peer =
                VerifiedPeer::of(stream.tls()).map_err(|source| Error::Verification { peer, source })?;
            Ok((stream, peer))
        }
    }
}
