//! The handshake of the side that accepts.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsStream};
use ztunnel_model::canonical;

use super::ahead::Ahead;
use super::error::Attempt;
use super::stream::{Stream, WRITE_LIMIT};
use super::svid::Svid;
use super::verify::{self, VerifiedPeer};
use super::{Error, linger};

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
        expected: format!("any identity of trust domain {}", svid.identity().trust_domain()),
        deadline,
    };
    let handshake = TlsAcceptor::from(svid.server_config())
        .accept_with(Ahead::new(tcp), |session| session.set_buffer_limit(Some(WRITE_LIMIT)))
        .into_fallible();
    match tokio::time::timeout(deadline, verify::noting(handshake)).await {
        Err(_) => Err(attempt().timeout()),
        Ok(Err(((error, tcp), refused))) => {
            linger(tcp.into_tcp());
            Err(attempt().failed(error, refused))
        }
        Ok(Ok(stream)) => {
            let stream = Stream::new(TlsStream::Server(stream));
            let peer =
                VerifiedPeer::of(stream.tls()).map_err(|source| Error::Verification { peer, source })?;
            Ok((stream, peer))
        }
    }
}
