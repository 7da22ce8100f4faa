//! Two SVIDs of one process that stand at the two ends of one connection, judged as a handshake would judge them, where
//! none is made because its bytes would only go from this process to itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ztunnel_model::IdentitySet;

use super::Error;
use super::revocation::{self, Revoked, Tracked};
use super::svid::Svid;
use super::verify::{self, VerifiedPeer};

/// A client and a server that would have accepted each other.
pub struct Vouched {
    client: Arc<Svid>,
    server: Arc<Svid>,
    peer: VerifiedPeer,
    tracked: [Option<Tracked>; 2],
}

impl Vouched {
    /// `addr` is where the server would have been dialled, for errors.
    pub fn judge(
        client: Arc<Svid>,
        server: Arc<Svid>,
        expected: &IdentitySet,
        addr: SocketAddr,
    ) -> Result<Self, Error> {
        let refused = |source| Error::Verification { peer: addr, source };
        verify::judge_server(client.trust(), expected, server.chain()).map_err(refused)?;
        let domain = server.identity().trust_domain();
        let peer = verify::judge_client(server.trust(), domain, client.chain()).map_err(refused)?;
        let tracked = [client.track(server.chain()), server.track(client.chain())];
        Ok(Self { client, server, peer, tracked })
    }

    /// Who the server would have found at the other end.
    pub fn client(&self) -> &VerifiedPeer {
        &self.peer
    }

    pub fn is_of(&self, client: &Arc<Svid>, server: &Arc<Svid>) -> bool {
        Arc::ptr_eq(&self.client, client) && Arc::ptr_eq(&self.server, server)
    }

    pub fn is_valid(&self) -> bool {
        let now = SystemTime::now();
        self.client.is_valid_at(now) && self.server.is_valid_at(now)
    }

    /// Resolves when either is revoked, which may be at once.
    pub async fn revoked(&self) -> Revoked {
        let [server, client] = &self.tracked;
        tokio::select! {
            revoked = revocation::revoked(server.as_ref()) => revoked,
            revoked = revocation::revoked(client.as_ref()) => revoked,
        }
    }
}
