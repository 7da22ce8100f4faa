//! Two peers with certificates of one CA, and the TLS between them over loopback.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use control_plane::ca::authority::{Authority, Leaf, Purpose, SubjectName};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use ztunnel::hbone::HANDSHAKE_DEADLINE;
use ztunnel::tls::revocation::Revocations;
use ztunnel::tls::svid::{SecretKey, Svid};
use ztunnel::tls::{self, Stream};
use ztunnel_model::{Hop, Identity, IdentitySet};

use crate::sockets;

/// Longer than any measurement.
const VALID_FOR: Duration = Duration::from_secs(24 * 3600);
const BACKDATE: Duration = Duration::from_secs(60);

pub struct Peers {
    pub client: Svid,
    pub server: Svid,
}

impl Peers {
    pub fn new() -> Self {
        let authority = Authority::ephemeral().expect("a CA can be made");
        Self { client: svid(&authority, "client"), server: svid(&authority, "server") }
    }

    /// The server, at an address.
    pub fn hop(&self, addr: SocketAddr) -> Hop {
        Hop { addr, expected: IdentitySet::one(self.server.identity().clone()) }
    }

    /// Both ends of a new connection.
    pub async fn connected(&self) -> (Stream, Stream) {
        let (near, far) = sockets::pair();
        let (near, far) = (sockets::asynchronous(near), sockets::asynchronous(far));
        let expected = IdentitySet::one(self.server.identity().clone());
        let (client, server) = tokio::join!(
            tls::client::connect(&self.client, &expected, near, HANDSHAKE_DEADLINE),
            tls::server::accept(&self.server, far, HANDSHAKE_DEADLINE)
        );
        (
            client.expect("the server is whom we expect").0,
            server.expect("the client is of our trust domain").0,
        )
    }
}

impl Default for Peers {
    fn default() -> Self {
        Self::new()
    }
}

fn svid(authority: &Authority, account: &str) -> Svid {
    let identity = Identity::new("cluster.local", "bench", account).expect("names without '/'");
    let now = SystemTime::now();
    let leaf = Leaf {
        names: vec![SubjectName::Uri(identity.to_string())],
        purpose: Purpose::Workload,
        not_before: now - BACKDATE,
        not_after: now + VALID_FOR,
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key can be made");
    let chain = authority.issue(&leaf, &key).expect("the CA can sign").chain;
    let key = SecretKey::from_pkcs8_der(key.serialize_der());
    Svid::new(&identity, key, &chain, &Revocations::default()).expect("the CA's answer is good")
}
