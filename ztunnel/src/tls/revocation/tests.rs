use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use ztunnel_model::IdentitySet;

use super::*;
use crate::tls::svid::Svid;
use crate::tls::test_ca::{Leaf, TestCa, identity};
use crate::tls::verify::{Refused, VerifiedPeer};
use crate::tls::{Error as TlsError, Stream, client, server};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";
const DEADLINE: Duration = Duration::from_secs(10);

type Outcome = Result<(Stream, VerifiedPeer), TlsError>;

fn serial(svid: &Svid, index: usize) -> Vec<u8> {
    svid.serial_of(index)
}

async fn handshake(dialler: &Svid, expected: &str, acceptor: &Svid) -> (Outcome, Outcome) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let addr = listener.local_addr().expect("a bound listener has an address");
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let (near, far) = (near.expect("loopback connects"), far.expect("loopback accepts").0);
    let expected = IdentitySet::one(identity(expected));
    tokio::join!(client::connect(dialler, &expected, near, DEADLINE), server::accept(acceptor, far, DEADLINE))
}

fn is_revoked(outcome: &Outcome) -> bool {
    outcome.as_ref().is_err_and(TlsError::is_revoked)
}

#[tokio::test]
async fn a_revoked_peer_is_refused_on_either_side_with_an_alert_that_says_so() {
    let ca = TestCa::new("root");
    let (cart, bank) = (ca.svid(CART), ca.svid(BANK));
    let (dialled, accepted) = handshake(&cart, BANK, &bank).await;
    assert!(dialled.is_ok() && accepted.is_ok(), "nothing is revoked yet");
    ca.1.deliver(&ca.crl(&[&serial(&bank, 0)])).expect("a CRL");
    let (dialled, accepted) = handshake(&cart, BANK, &bank).await;
    assert!(is_revoked(&dialled), "{dialled:?}");
    let text = dialled.expect_err("revoked").to_string();
    assert!(text.contains(BANK) && text.contains("revoked"), "{text}");
    let alert = match accepted {
        Err(TlsError::RefusedByPeer { alert, .. }) => alert,
        other => panic!("expected an alert, got {other:?}"),
    };
    assert_eq!(alert, rustls::AlertDescription::CertificateRevoked);
    assert!(is_revoked(&handshake(&bank, CART, &cart).await.1), "as a client");
    assert!(bank.revoked().is_err() && cart.revoked().is_ok(), "its own holder can tell");
    let (dialled, accepted) = handshake(&ca.svid(BANK), CART, &cart).await;
    assert!(dialled.is_ok() && accepted.is_ok(), "another certificate of the same identity is good");
    ca.1.deliver("").expect("no CRL at all");
    assert!(handshake(&cart, BANK, &bank).await.0.is_ok(), "taken back");
}

#[tokio::test]
async fn a_revoked_intermediate_takes_all_below_it() {
    let ca = TestCa::new("root");
    let intermediate = ca.intermediate("intermediate");
    let (key, leaf) = intermediate.leaf(&Leaf::of(&identity(BANK)));
    let key = crate::tls::svid::SecretKey::from_pkcs8_der(key);
    let chain = [leaf, intermediate.pem(), ca.pem()];
    let bank = Svid::new(&identity(BANK), key, &chain, &ca.1).expect("a good answer");
    let cart = ca.svid(CART);
    assert!(handshake(&cart, BANK, &bank).await.0.is_ok());
    // A CRL of the root names the intermediate; the intermediate's own CRL names somebody else.
    ca.1.deliver(&format!("{}{}", intermediate.crl(&[&[7]]), ca.crl(&[&serial(&bank, 1)])))
        .expect("two CRLs");
    assert!(is_revoked(&handshake(&cart, BANK, &bank).await.0));
}

#[tokio::test]
async fn a_crl_of_another_issuer_revokes_nobody_and_a_forged_one_condemns_whom_it_names() {
    let (ca, other, forger) = (TestCa::new("root"), TestCa::new("other"), TestCa::new("root"));
    let (cart, bank) = (ca.svid(CART), ca.svid(BANK));
    ca.1.deliver(&other.crl(&[&serial(&bank, 0)])).expect("a CRL");
    assert!(
        handshake(&cart, BANK, &bank).await.0.is_ok(),
        "serial numbers mean something under their issuer only"
    );
    ca.1.deliver(&forger.crl(&[&[1, 2, 3]])).expect("a CRL");
    assert!(handshake(&cart, BANK, &bank).await.0.is_ok(), "it names nobody here");
    ca.1.deliver(&forger.crl(&[&serial(&bank, 0)])).expect("a CRL");
    match handshake(&cart, BANK, &bank).await.0 {
        Err(TlsError::Verification { source: Refused::Revoked { source, .. }, .. }) => {
            assert!(source.unproven.is_some(), "{source}");
        }
        outcome => panic!("expected a refusal, got {outcome:?}"),
    }
    // Beside the true one it is the true one that counts.
    let both = format!("{}{}", forger.crl(&[&serial(&bank, 0)]), ca.crl(&[&serial(&bank, 0)]));
    ca.1.deliver(&both).expect("two CRLs");
    assert_eq!(bank.revoked().expect_err("revoked").unproven, None);
}

#[test]
fn what_a_text_may_hold() {
    let ca = TestCa::new("root");
    let (crl, root) = (ca.crl(&[&[5]]), ca.pem());
    for (text, count) in [("", 0), ("  \n", 0), (crl.as_str(), 1), (&format!("{root}{crl}note\n{crl}"), 2)] {
        assert_eq!(parse(text.as_bytes()).expect("good").len(), count, "{text}");
    }
    let der = CertificateRevocationListDer::from_pem_slice(crl.as_bytes()).expect("PEM");
    assert_eq!(parse(&der).expect("DER").len(), 1);
    let broken = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    for text in ["noise", root.as_str(), &format!("{crl}{broken}")] {
        parse(text.as_bytes()).expect_err(text);
    }
}

#[tokio::test]
async fn the_peer_of_a_live_tunnel_is_judged_again_as_of_its_handshake() {
    let ca = TestCa::new("root");
    let end = std::time::SystemTime::now() + Duration::from_secs(2);
    let bank = ca.svid_trusting(&Leaf { not_after: end, ..Leaf::of(&identity(BANK)) }, &[]);
    let (stream, _) = handshake(&ca.svid(CART), BANK, &bank).await.0.expect("good");
    let tracked = stream.tracked().expect("a short chain").clone();
    ca.1.deliver(&ca.crl(&[&[1]])).expect("a CRL of somebody else");
    tokio::time::timeout(Duration::from_millis(50), tracked.revoked()).await.expect_err("still good");
    while std::time::SystemTime::now() < end + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let waiting = tokio::spawn({
        let tracked = tracked.clone();
        async move { tracked.revoked().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "that it is over is not the CRL's affair");
    ca.1.deliver(&ca.crl(&[&serial(&bank, 0)])).expect("a CRL");
    let revoked = tokio::time::timeout(DEADLINE, waiting).await.expect("told").expect("no panic");
    assert_eq!((revoked.serial, revoked.unproven), (hex(&serial(&bank, 0)), None));
    tokio::time::timeout(DEADLINE, tracked.revoked()).await.expect("told at once, also late");
}

#[test]
fn a_chain_that_is_too_long_is_not_tracked() {
    let roots = Arc::new(RootCertStore::empty());
    let chain = |size: usize| vec![CertificateDer::from(vec![0; size])];
    let track = |chain: &[_]| Tracked::new(chain, roots.clone(), UnixTime::now(), Revocations::default());
    assert!(track(&chain(MOST_TRACKED)).is_some());
    assert!(track(&chain(MOST_TRACKED + 1)).is_none());
    assert!(track(&[]).is_none());
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("crl-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn put(&self, text: &str) {
        std::fs::write(self.0.join("new"), text).expect("a file");
        std::fs::rename(self.0.join("new"), self.0.join("ca-crl.pem")).expect("a file");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_file_is_followed_from_before_it_exists_and_a_bad_one_changes_nothing() {
    let folder = Folder::new("followed");
    let ca = TestCa::new("root");
    let bank = ca.svid(BANK);
    let following = tokio::spawn(ca.1.clone().follow_file(folder.0.join("ca-crl.pem")));
    let until = async |revoked: bool| {
        let start = Instant::now();
        while bank.revoked().is_err() != revoked {
            assert!(start.elapsed() < Duration::from_secs(2), "never: revoked={revoked}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    folder.put(&ca.crl(&[&serial(&bank, 0)]));
    until(true).await;
    folder.put("noise");
    tokio::time::sleep(Duration::from_millis(300)).await;
    until(true).await;
    std::fs::remove_file(folder.0.join("ca-crl.pem")).expect("it is there");
    tokio::time::sleep(Duration::from_millis(300)).await;
    until(true).await;
    folder.put("");
    until(false).await;
    ca.1.deliver(&ca.crl(&[&serial(&bank, 0)])).expect("a CRL");
    folder.put(&ca.crl(&[&[1]]));
    tokio::time::sleep(Duration::from_millis(300)).await;
    until(true).await;
    following.abort();
}
