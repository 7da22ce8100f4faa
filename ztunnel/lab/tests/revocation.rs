//! An identity that the operator revokes loses what it has open, on every node, and gets nothing new.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ztunnel_lab::{Lab, Mesh, traffic, wait_until};

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a stream may outlive the revocation of one of its ends.
const CUT: Duration = Duration::from_secs(2);

fn open(lab: &Lab, from: &str) -> TcpStream {
    let cart = SocketAddr::new(lab.pod("cart").ipv4(), PORT);
    let mut stream = lab.pod(from).connect(cart, DEADLINE).expect("a connection");
    traffic::echoes(&mut stream).expect("the echo answers");
    stream
}

#[test]
fn a_revoked_identity_is_cut_everywhere_and_nobody_else_is() {
    let lab = Lab::for_test(
        &Mesh::new().pod("node1", "front/web").pod("node1", "front/other").pod("node2", "shop/cart"),
        &[],
    );
    traffic::serve(lab.pod("cart"), PORT, traffic::echo).expect("the cart can listen");
    let (mut cut, mut kept) = (open(&lab, "web"), open(&lab, "other"));
    let list = "identities: [\"spiffe://cluster.local/ns/front/sa/web\"]\n";
    let (fresh, path) = (lab.ca_folder().join("revoked.new"), lab.ca_folder().join("revoked.yaml"));
    fs::write(&fresh, list).and_then(|()| fs::rename(&fresh, &path)).expect("the list is written");
    let since = Instant::now();
    let ended = match cut.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
    };
    assert!(ended && since.elapsed() < CUT, "still open after {:?}", since.elapsed());
    traffic::echoes(&mut kept).expect("who is not revoked goes on");
    let labels = [("reporter", "destination")];
    let counted = || lab.node("node2").metrics().sum("istio_crl_policy_rejections_total", &labels) > 0.0;
    assert!(wait_until(DEADLINE, counted), "the tunnel's end is counted");
    let cart = SocketAddr::new(lab.pod("cart").ipv4(), PORT);
    assert!(traffic::request(lab.pod("web"), cart, b"x").is_err(), "nothing new for a revoked identity");
    assert!(traffic::request(lab.pod("other"), cart, b"x").is_ok());
    assert!(fs::read_to_string(lab.node("node1").log_path()).is_ok_and(|log| log.contains("is revoked")));
}
