use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, CertificateError, ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use ztunnel_model::IdentitySet;

use super::svid::Svid;
use super::test_ca::{HOUR, Leaf, TestCa, identity};
use super::verify::{Refused, VerifiedPeer};
use super::{Error, Stream, client, server};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";
const DEADLINE: Duration = Duration::from_secs(10);

type Outcome = Result<(Stream, VerifiedPeer), Error>;

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let addr = listener.local_addr().expect("a bound listener has an address");
    let (dialled, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (dialled.expect("loopback connects"), accepted.expect("loopback accepts").0)
}

async fn handshake(dialler: &Svid, expected: &str, acceptor: &Svid) -> (Outcome, Outcome) {
    let (near, far) = tcp_pair().await;
    let expected = IdentitySet::one(identity(expected));
    tokio::join!(client::connect(dialler, &expected, near, DEADLINE), server::accept(acceptor, far, DEADLINE))
}

/// What the accepting side says when an arbitrary TLS client calls.
async fn accept_from(config: ClientConfig, acceptor: &Svid) -> Outcome {
    let (near, far) = tcp_pair().await;
    let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    tokio::spawn(
        async move { TlsConnector::from(Arc::new(config)).connect(name, near).await?.read_u8().await },
    );
    server::accept(acceptor, far, DEADLINE).await
}

/// What the dialling side says when an arbitrary TLS server answers.
async fn connect_to(dialler: &Svid, expected: &str, config: ServerConfig) -> Outcome {
    let (near, far) = tcp_pair().await;
    let expected = IdentitySet::one(identity(expected));
    let accept = TlsAcceptor::from(Arc::new(config)).accept(far);
    tokio::join!(client::connect(dialler, &expected, near, DEADLINE), accept).0
}

fn resolver(ca: &TestCa, leaf: &Leaf) -> Arc<SingleCertAndKey> {
    let (key, pem) = ca.leaf(leaf);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("the key is ECDSA");
    let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).expect("the leaf is PEM");
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![leaf], signer)))
}

fn refusal(outcome: Outcome) -> Refused {
    match outcome {
        Err(Error::Verification { source, .. }) => source,
        other => panic!("expected a refusal by the verifier, got {other:?}"),
    }
}

fn chain_error(outcome: Outcome) -> CertificateError {
    match refusal(outcome) {
        Refused::UnknownRoot { claimed, .. } => {
            assert!(!claimed.is_empty(), "the claimed identity is told");
            CertificateError::UnknownIssuer
        }
        Refused::Chain { claimed, source: rustls::Error::InvalidCertificate(error) } => {
            assert!(!claimed.is_empty(), "the claimed identity is told");
            error
        }
        other => panic!("expected a chain that does not verify, got {other:?}"),
    }
}

fn alert(outcome: Outcome) -> AlertDescription {
    match outcome {
        Err(Error::RefusedByPeer { alert, .. }) => alert,
        other => panic!("expected an alert from the peer, got {other:?}"),
    }
}

/// In TLS 1.3 a client learns of its refusal by its first read.
async fn alert_at_first_read(outcome: Outcome) -> String {
    let (mut stream, _) = outcome.expect("the client's own handshake is over before the server judges");
    stream.read_u8().await.expect_err("the server refuses").to_string()
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is_and_bytes_pass() {
    let ca = TestCa::new("root");
    let (dialled, accepted) = handshake(&ca.svid(CART), BANK, &ca.svid(BANK)).await;
    let (mut near, server_peer) = dialled.expect("the client accepts");
    let (mut far, client_peer) = accepted.expect("the server accepts");
    assert_eq!(server_peer.identity(), &identity(BANK));
    assert_eq!(client_peer.identity(), &identity(CART));
    near.write_all(b"ping").await.expect("writing works");
    near.flush().await.expect("flushing works");
    let mut got = [0; 4];
    far.read_exact(&mut got).await.expect("reading works");
    assert_eq!(&got, b"ping");
    far.shutdown().await.expect("closing works");
    assert_eq!(near.read(&mut got).await.expect("a close is not an error"), 0);
}

/// What a session of a stock rustls server with one of our clients is, and with one of our servers a stock client.
#[tokio::test]
async fn the_session_is_what_the_mesh_speaks() {
    let ca = TestCa::new("root");
    let (near, far) = tcp_pair().await;
    let bank = ca.svid(BANK);
    let expected = IdentitySet::one(identity(BANK));
    let acceptor = TlsAcceptor::from(bank.server_config());
    let cart = ca.svid(CART);
    let dial = client::connect(&cart, &expected, near, DEADLINE);
    let (dialled, accepted) = tokio::join!(dial, acceptor.accept(far));
    let (near, accepted) = (dialled.expect("accepted").0, accepted.expect("accepted"));
    assert_eq!(near.alpn(), Some(&b"h2"[..]));
    mesh_session(accepted.get_ref().1);

    let (near, far) = tcp_pair().await;
    let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    let connector = TlsConnector::from(Arc::new(cart.client_config(&expected)));
    let (dialled, accepted) =
        tokio::join!(connector.connect(name, near), server::accept(&bank, far, DEADLINE));
    assert_eq!(accepted.expect("accepted").0.alpn(), Some(&b"h2"[..]));
    mesh_session(dialled.expect("accepted").get_ref().1);
}

fn mesh_session(session: &rustls::CommonState) {
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(
        session.negotiated_cipher_suite().map(|s| s.suite()),
        Some(rustls::CipherSuite::TLS13_AES_256_GCM_SHA384)
    );
    assert_eq!(session.negotiated_key_exchange_group().map(|g| g.name()), Some(rustls::NamedGroup::X25519));
    assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn no_name_is_sent_and_one_key_share_only() {
    let (near, far) = tcp_pair().await;
    let ca = TestCa::new("root");
    let cart = ca.svid(CART);
    let expected = IdentitySet::one(identity(BANK));
    let hello = async {
        let acceptor = tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), far);
        let start = acceptor.await.expect("a client hello comes");
        let hello = start.client_hello();
        assert_eq!(hello.server_name(), None);
        let suites =
            [rustls::CipherSuite::TLS13_AES_256_GCM_SHA384, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256];
        assert_eq!(hello.cipher_suites()[..2], suites);
        use rustls::NamedGroup as Group;
        let groups = [Group::X25519, Group::secp256r1, Group::secp384r1, Group::X25519MLKEM768];
        assert_eq!(hello.named_groups(), Some(&groups[..]));
    };
    let (outcome, ()) = tokio::join!(client::connect(&cart, &expected, near, DEADLINE), hello);
    assert!(matches!(outcome, Err(Error::Io { .. })), "the server went away in the handshake: {outcome:?}");
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused_with_an_alert() {
    let ca = TestCa::new("root");
    let (dialled, accepted) = handshake(&ca.svid(CART), CART, &ca.svid(BANK)).await;
    let expected = IdentitySet::one(identity(CART));
    let error = dialled.expect_err("the server is somebody else");
    assert!(error.to_string().contains(BANK) && error.to_string().contains(CART), "{error} names both");
    assert_eq!(refusal(Err(error)), Refused::Unexpected { identity: identity(BANK), expected });
    assert_eq!(alert(accepted), AlertDescription::AccessDenied);
}

#[tokio::test]
async fn an_untrusted_root_is_refused_on_either_side() {
    let (ca, rogue) = (TestCa::new("root"), TestCa::new("rogue"));
    let rogue_bank = rogue.svid_trusting(&Leaf::of(&identity(BANK)), &[&ca]);
    let (dialled, accepted) = handshake(&ca.svid(CART), BANK, &rogue_bank).await;
    assert_eq!(chain_error(dialled), CertificateError::UnknownIssuer);
    assert_eq!(alert(accepted), AlertDescription::UnknownCA);

    let rogue_cart = rogue.svid_trusting(&Leaf::of(&identity(CART)), &[&ca]);
    let (dialled, accepted) = handshake(&rogue_cart, BANK, &ca.svid(BANK)).await;
    assert_eq!(chain_error(accepted), CertificateError::UnknownIssuer);
    assert!(alert_at_first_read(dialled).await.contains("UnknownCA"));
}

#[tokio::test]
async fn an_untrusted_root_is_named_with_those_that_are_trusted_and_what_to_do() {
    let (ca, other) = (TestCa::new("new root"), TestCa::new("old root"));
    let bank = other.svid_trusting(&Leaf::of(&identity(BANK)), &[&ca]);
    let text = handshake(&ca.svid(CART), BANK, &bank).await.0.expect_err("no overlap").to_string();
    for part in ["CN=old root", "CN=new root", "key id", "hand out the old and the new one", BANK] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}

#[tokio::test]
async fn who_is_refused_is_told_which_root_of_its_own_is_not_trusted() {
    let (ca, other) = (TestCa::new("new root"), TestCa::new("old root"));
    let issuing = other.intermediate("issuing");
    let told = "the TLS alert UnknownCA: it does not trust the root of our certificate, \"CN=old root\"";
    let refused = |text: String| assert!(text.contains(told) && !text.contains("issuing"), "{text}");
    let server = issuing.svid_below(&other, BANK, &ca);
    refused(handshake(&ca.svid(CART), BANK, &server).await.1.expect_err("no overlap").to_string());
    let client = issuing.svid_below(&other, CART, &ca);
    refused(alert_at_first_read(handshake(&client, BANK, &ca.svid(BANK)).await.0).await);
}

#[tokio::test]
async fn the_roots_of_the_certificate_before_count_until_its_end() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let peer = old.svid_trusting(&Leaf::of(&identity(BANK)), &[&new]);
    let end = SystemTime::now() + Duration::from_secs(2);
    let before = old.svid_trusting(&Leaf { not_after: end, ..Leaf::of(&identity(CART)) }, &[]);
    let alone = new.svid(CART);
    assert_eq!(chain_error(handshake(&alone, BANK, &peer).await.0), CertificateError::UnknownIssuer);
    let cart = alone.succeeding(&before).expect("a union");
    let (dialled, accepted) = handshake(&cart, BANK, &peer).await;
    assert!(dialled.is_ok() && accepted.is_ok());
    assert!(handshake(&peer, CART, &cart).await.1.is_ok(), "as a server");
    let stranger = TestCa::new("stranger").svid_trusting(&Leaf::of(&identity(BANK)), &[&new]);
    let told =
        |error: Error| error.to_string().split_once("trusted here, ").expect("it names them").1.to_owned();
    let all = told(handshake(&cart, BANK, &stranger).await.0.expect_err("a third root"));
    assert!(all.contains("CN=new") && all.contains("CN=old"), "both are trusted now: {all}");
    // What the predecessor itself took over does not pass on.
    let third = TestCa::new("third");
    let next = third.svid(CART).succeeding(&cart).expect("a union");
    assert_eq!(chain_error(handshake(&next, BANK, &peer).await.0), CertificateError::UnknownIssuer);
    while SystemTime::now() < end + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = told(handshake(&cart, BANK, &peer).await.0.expect_err("the predecessor is over"));
    assert!(left.contains("CN=new") && !left.contains("CN=old"), "only its own: {left}");
    assert_eq!(chain_error(handshake(&peer, CART, &cart).await.1), CertificateError::UnknownIssuer);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_either_side() {
    let ca = TestCa::new("root");
    let expired = |text| {
        let (not_before, not_after) = (SystemTime::now() - 2 * HOUR, SystemTime::now() - HOUR);
        ca.svid_trusting(&Leaf { not_before, not_after, ..Leaf::of(&identity(text)) }, &[])
    };
    let (dialled, accepted) = handshake(&ca.svid(CART), BANK, &expired(BANK)).await;
    assert!(matches!(chain_error(dialled), CertificateError::ExpiredContext { .. }));
    assert_eq!(alert(accepted), AlertDescription::CertificateExpired);

    let (dialled, accepted) = handshake(&expired(CART), BANK, &ca.svid(BANK)).await;
    assert!(matches!(chain_error(accepted), CertificateError::ExpiredContext { .. }));
    assert!(alert_at_first_read(dialled).await.contains("CertificateExpired"));
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused() {
    let ca = TestCa::new("root");
    let stranger = "spiffe://elsewhere.example/ns/shop/sa/cart";
    let (dialled, accepted) = handshake(&ca.svid(stranger), BANK, &ca.svid(BANK)).await;
    let error = accepted.expect_err("another trust domain");
    assert!(error.to_string().contains(stranger), "{error} names the peer");
    let trust_domain = "cluster.local".to_owned();
    assert_eq!(refusal(Err(error)), Refused::TrustDomain { identity: identity(stranger), trust_domain });
    assert!(alert_at_first_read(dialled).await.contains("AccessDenied"));
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let ca = TestCa::new("root");
    let mut config = ca.svid(CART).client_config(&IdentitySet::one(identity(BANK)));
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let error = accept_from(config, &ca.svid(BANK)).await.expect_err("no certificate");
    assert!(matches!(error, Error::NoClientCertificate { .. }), "{error}");
    assert_eq!(error.reason(), "no_client_certificate");
}

#[tokio::test]
async fn any_other_number_of_spiffe_sans_than_one_is_refused_on_either_side() {
    let ca = TestCa::new("root");
    let odd = "spiffe://cluster.local/not/an/identity".to_owned();
    let web = "https://shop.example/".to_owned();
    for uris in
        [vec![BANK.to_owned(), CART.to_owned()], vec![BANK.to_owned(), odd.clone()], vec![web], vec![]]
    {
        let spiffe = uris.iter().filter(|uri| uri.starts_with("spiffe:")).count();
        let leaf = Leaf { uris, ..Leaf::of(&identity(BANK)) };
        let mut server = ServerConfig::clone(&ca.svid(BANK).server_config());
        server.cert_resolver = resolver(&ca, &leaf);
        let refused = refusal(connect_to(&ca.svid(CART), BANK, server).await);
        assert!(matches!(&refused, Refused::SpiffeSans(sans) if sans.len() == spiffe), "{refused:?}");

        let mut client = ca.svid(BANK).client_config(&IdentitySet::one(identity(CART)));
        client.client_auth_cert_resolver = resolver(&ca, &leaf);
        let refused = refusal(accept_from(client, &ca.svid(CART)).await);
        assert!(matches!(&refused, Refused::SpiffeSans(sans) if sans.len() == spiffe), "{refused:?}");
    }
    let leaf = Leaf { uris: vec![odd], ..Leaf::of(&identity(BANK)) };
    let mut server = ServerConfig::clone(&ca.svid(BANK).server_config());
    server.cert_resolver = resolver(&ca, &leaf);
    let refused = refusal(connect_to(&ca.svid(CART), BANK, server).await);
    assert!(matches!(refused, Refused::NotAnIdentity(_)), "{refused:?}");
}

#[tokio::test]
async fn a_certificate_for_the_other_role_alone_is_refused() {
    let ca = TestCa::new("root");
    let leaf = Leaf { usages: vec![ExtendedKeyUsagePurpose::ServerAuth], ..Leaf::of(&identity(CART)) };
    let mut config = ca.svid(CART).client_config(&IdentitySet::one(identity(BANK)));
    config.client_auth_cert_resolver = resolver(&ca, &leaf);
    let error = chain_error(accept_from(config, &ca.svid(BANK)).await);
    assert!(matches!(error, CertificateError::InvalidPurposeContext { .. }), "{error:?}");
}

#[tokio::test]
async fn alpn_without_h2_is_refused_and_none_at_all_is_accepted() {
    let ca = TestCa::new("root");
    let mut config = ca.svid(CART).client_config(&IdentitySet::one(identity(BANK)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let error = accept_from(config, &ca.svid(BANK)).await.expect_err("no common protocol");
    assert!(
        matches!(&error, Error::Handshake { source: rustls::Error::NoApplicationProtocol, .. }),
        "{error}"
    );

    let (near, far) = tcp_pair().await;
    let mut config = ca.svid(CART).client_config(&IdentitySet::one(identity(BANK)));
    config.alpn_protocols = Vec::new();
    let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    let connector = TlsConnector::from(Arc::new(config));
    let bank = ca.svid(BANK);
    let (dialled, accepted) =
        tokio::join!(connector.connect(name, near), server::accept(&bank, far, DEADLINE));
    dialled.expect("the client is content");
    assert_eq!(accepted.expect("no ALPN is accepted").0.alpn(), None);
}

#[tokio::test]
async fn garbage_and_silence_end_as_errors_of_their_own() {
    let ca = TestCa::new("root");
    let bank = ca.svid(BANK);
    let (mut near, far) = tcp_pair().await;
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("writing works");
    let error = server::accept(&bank, far, DEADLINE).await.expect_err("not TLS");
    assert!(matches!(error, Error::Handshake { .. }), "{error}");

    // A message in parts whose bytes come to stand where the header of a record was.
    let (mut near, far) = tcp_pair().await;
    near.write_all(&[&[22, 3, 1, 0, 4, 1, 0, 16, 0, 22, 3, 1, 0, 100], [0; 100].as_slice()].concat())
        .await
        .expect("writing works");
    near.shutdown().await.expect("closing works");
    assert!(server::accept(&bank, far, DEADLINE).await.is_err());

    let (near, far) = tcp_pair().await;
    let error = server::accept(&bank, far, Duration::from_millis(20)).await.expect_err("silence");
    assert!(error.is_timeout(), "{error}");
    drop(near);

    let (near, far) = tcp_pair().await;
    drop(near);
    let error = server::accept(&bank, far, DEADLINE).await.expect_err("closed");
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
