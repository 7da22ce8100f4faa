//! Two pods of one node with SAME_NODE=plain: no tunnel between them, and all else as if there were one.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use ztunnel_lab::traffic::accept;
use ztunnel_lab::{Lab, Mesh, traffic, wait_until};

#[macro_use]
mod backend;

const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u16 = 7000;
const TUNNEL: &str = "dst.hbone_addr=";

on_both_backends! {
    mesh(), &[("SAME_NODE", "plain")],
    both_ends_prove_count_and_log_who_they_are,
    bytes_arrive_unharmed_and_resets_are_carried,
    policy_decides_by_identity_and_ends_what_it_no_longer_allows,
}

fn mesh() -> Mesh {
    Mesh::new().pod("node1", "front/web").pod("node1", "front/other").pod("node1", "shop/cart")
}

fn lab(environment: &[(&str, &str)]) -> Lab {
    let lab = Lab::for_test(&mesh(), environment);
    serve(&lab);
    lab
}

fn serve(lab: &Lab) {
    traffic::serve(lab.pod("cart"), PORT, traffic::echo).expect("a free port");
}

fn plain() -> Lab {
    lab(&[("SAME_NODE", "plain")])
}

fn cart(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.pod("cart").ipv4(), PORT)
}

fn counted(lab: &Lab, name: &str, reporter: &str, security: &str) -> f64 {
    let labels = [("reporter", reporter), ("connection_security_policy", security)];
    lab.node("node1").metrics().sum(name, &labels)
}

/// Until the stream ends, however it does.
fn ends(mut stream: TcpStream) -> bool {
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout above zero");
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
    }
}

fn open(lab: &Lab, from: &str) -> TcpStream {
    let mut stream = lab.pod(from).connect(cart(lab), DEADLINE).expect("a connection");
    traffic::echoes(&mut stream).expect("the echo answers");
    stream
}

fn logged(lab: &Lab, parts: &[&str]) -> bool {
    wait_until(DEADLINE, || {
        lab.node("node1").log().lines().any(|line| parts.iter().all(|part| line.contains(part)))
    })
}

#[test]
fn unless_it_is_asked_for_neighbours_talk_through_a_tunnel() {
    let lab = lab(&[]);
    assert!(traffic::request(lab.pod("web"), cart(&lab), b"hello").is_ok_and(|said| said == b"hello"));
    assert!(logged(&lab, &["connection complete", "direction=\"inbound\"", TUNNEL]));
    assert_eq!(counted(&lab, "istio_tcp_connections_opened_total", "source", "mutual_tls"), 1.0);
}

fn both_ends_prove_count_and_log_who_they_are(lab: &mut Lab) {
    let lab = &*lab;
    let (client, pod) = (lab.pod("web"), lab.pod("cart"));
    for (from, ip, port) in [(client.ipv4(), pod.ipv4(), 7100), (client.ipv6(), pod.ipv6(), 7101)] {
        let listener = pod.listen(port).expect("a free port");
        let mut stream = client.connect(SocketAddr::new(ip, port), DEADLINE).expect("a connection");
        let (mut served, peer) = accept(&listener, DEADLINE).expect("it arrives at the application");
        assert_eq!(peer.ip().to_canonical(), from, "the application sees who called");
        stream.write_all(b"hello world").expect("sent");
        stream.shutdown(Shutdown::Write).expect("half-closed");
        let mut said = Vec::new();
        served.read_to_end(&mut said).expect("a clean end");
        assert_eq!(said, b"hello world");
        served.write_all(b"a reply of 22 bytes ..").expect("the other direction goes on");
        drop(served);
        said.clear();
        stream.read_to_end(&mut said).expect("a clean end");
        assert_eq!(said, b"a reply of 22 bytes ..");
    }
    for reporter in ["source", "destination"] {
        let closed = || counted(lab, "istio_tcp_connections_closed_total", reporter, "same_node") == 2.0;
        assert!(wait_until(DEADLINE, closed), "{}", lab.node("node1").metrics().0);
        assert_eq!(counted(lab, "istio_tcp_received_bytes_total", reporter, "same_node"), 22.0);
        assert_eq!(counted(lab, "istio_tcp_sent_bytes_total", reporter, "same_node"), 44.0);
    }
    let (web, cart) = ("spiffe://cluster.local/ns/front/sa/web", "spiffe://cluster.local/ns/shop/sa/cart");
    for direction in ["direction=\"inbound\"", "direction=\"outbound\""] {
        assert!(logged(lab, &["connection complete", direction, web, cart]));
    }
    assert!(!lab.node("node1").log().contains(TUNNEL), "{}", lab.node("node1").log());
}

fn bytes_arrive_unharmed_and_resets_are_carried(lab: &mut Lab) {
    let to = SocketAddr::new(lab.pod("cart").ipv4(), 7001);
    traffic::serve(lab.pod("cart"), 7001, traffic::sink).expect("a free port");
    for length in [0, 1, 300_000_000] {
        traffic::upload(lab.pod("web"), to, length).unwrap_or_else(|error| panic!("{length} bytes: {error}"));
    }
    for client_resets in [true, false] {
        let listener = lab.pod("cart").listen(7002 + u16::from(client_resets)).expect("a free port");
        let at = SocketAddr::new(to.ip(), 7002 + u16::from(client_resets));
        let client = lab.pod("web").connect(at, DEADLINE).expect("a connection");
        let (server, _) = accept(&listener, DEADLINE).expect("it arrives at the application");
        let (first, mut other) = if client_resets { (client, server) } else { (server, client) };
        socket2::SockRef::from(&first).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(first);
        let error = other.read(&mut [0]).expect_err("a reset is no clean end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    let nobody = SocketAddr::new(to.ip(), 7999);
    assert!(traffic::request(lab.pod("web"), nobody, b"x").is_err(), "nobody listens there");
}

fn policy_decides_by_identity_and_ends_what_it_no_longer_allows(lab: &mut Lab) {
    serve(lab);
    let (cut, mut kept) = (open(lab, "web"), open(lab, "other"));
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: others, namespace: shop}
spec:
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/front/sa/other]}}]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";
    lab.edit("policy.yaml", policy);
    assert!(ends(cut), "what is no longer allowed ends");
    assert!(logged(lab, &["direction=\"inbound\"", "connection closed due to policy change"]));
    traffic::echoes(&mut kept).expect("what is allowed goes on: strict takes a proven identity");
    assert!(traffic::request(lab.pod("web"), cart(lab), b"x").is_err());
    assert!(logged(lab, &["direction=\"outbound\"", "401 Unauthorized"]));
    assert!(traffic::request(lab.pod("other"), cart(lab), b"x").is_ok());
}

#[test]
fn a_revoked_certificate_is_cut_at_either_end() {
    let lab = plain();
    let (cut, mut kept) = (open(&lab, "web"), open(&lab, "other"));
    let list = "identities: [\"spiffe://cluster.local/ns/front/sa/web\"]\n";
    let (fresh, path) = (lab.ca_folder().join("revoked.new"), lab.ca_folder().join("revoked.yaml"));
    fs::write(&fresh, list).and_then(|()| fs::rename(&fresh, &path)).expect("the list is written");
    assert!(ends(cut));
    traffic::echoes(&mut kept).expect("who is not revoked goes on");
    assert!(
        traffic::request(lab.pod("web"), cart(&lab), b"x").is_err(),
        "nothing new for a revoked identity"
    );
    assert!(traffic::request(lab.pod("other"), cart(&lab), b"x").is_ok());
}
