//! Short certificates: renewed under traffic unnoticed, and what happens when the CA is away for longer than they last.
//!
//! These tests wait most of their time, so they are one program: its tests share the machine.

mod rotation;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use ztunnel_lab::capture::Capture;
use ztunnel_lab::{Lab, Mesh, traffic, wait_until};

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(10);
/// Longer than one certificate lives, so traffic crosses at least one end.
const TRAFFIC: Duration = Duration::from_secs(30);
/// Kept away from the end of a certificate: it is written in whole seconds.
const MARGIN: Duration = Duration::from_secs(2);
const MARKER: &[u8] = b"never in plaintext";

fn mesh() -> Mesh {
    Mesh::new().pod("node1", "front/web").pod("node1", "front/late").pod("node2", "shop/cart")
}

/// With one stream in a tunnel, a connection beside open ones needs a handshake of its own.
const ENVIRONMENT: [(&str, &str); 2] = [("SECRET_TTL", "20s"), ("POOL_MAX_STREAMS_PER_CONNECTION", "1")];

fn cart(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.pod("cart").ipv4(), PORT)
}

fn certificates(lab: &Lab, node: &str) -> Vec<Value> {
    lab.node(node).config_dump()["certificates"].as_array().cloned().unwrap_or_default()
}

fn serials(lab: &Lab) -> BTreeSet<String> {
    let all = ["node1", "node2"].into_iter().flat_map(|node| certificates(lab, node));
    // An identity's name beside the number tells whose certificate it was.
    all.map(|one| format!("{} {}", one["identity"], one["certChain"][0]["serialNumber"])).collect()
}

/// When each certificate of both nodes is over.
fn ends(lab: &Lab) -> Vec<OffsetDateTime> {
    let all: Vec<Value> = ["node1", "node2"].into_iter().flat_map(|node| certificates(lab, node)).collect();
    assert_eq!(all.len(), 3, "each pod has a certificate: {all:#?}");
    let end = |one: &Value| {
        let text = one["certChain"][0]["expirationTime"].as_str().expect("the dump tells when it ends");
        OffsetDateTime::parse(text, &Rfc3339).expect("the dump writes RFC 3339")
    };
    all.iter().map(end).collect()
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut reply = [0; MARKER.len()];
    stream.write_all(MARKER).and_then(|()| stream.read_exact(&mut reply)).is_ok() && reply == MARKER
}

/// A connection that stays open and so keeps its tunnel to itself.
fn hold(lab: &Lab, from: &str) -> TcpStream {
    let mut stream = lab.pod(from).connect(cart(lab), DEADLINE).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout above zero");
    assert!(echoes(&mut stream), "a new tunnel from {from} must work");
    stream
}

fn passes(lab: &Lab, from: &str) -> bool {
    traffic::request(lab.pod(from), cart(lab), MARKER).is_ok_and(|reply| reply == MARKER)
}

#[test]
fn certificates_are_renewed_under_traffic_without_a_failure() {
    let lab = Lab::for_test(&mesh(), &ENVIRONMENT);
    traffic::serve(lab.pod("cart"), PORT, traffic::echo).expect("the cart can listen");
    let started = Instant::now();
    let first = serials(&lab);
    let (mut seen, mut held, mut connections) = (first.clone(), Vec::new(), 0);
    while started.elapsed() < TRAFFIC {
        // Many round trips for each connection: else the ports of the pod would run out, not the certificates.
        traffic::round_trips(lab.pod("web"), cart(&lab), 100).unwrap_or_else(|error| {
            panic!("connection {connections} after {:?}: {error}", started.elapsed())
        });
        connections += 1;
        if connections % 20 == 0 {
            held.push(hold(&lab, "web"));
            seen.extend(serials(&lab));
        }
    }
    for stream in &mut held {
        assert!(echoes(stream), "a stream outlives the certificate of its tunnel's handshake");
    }
    assert!(held.len() > 20, "too few handshakes to mean anything: {}", held.len());
    assert!(serials(&lab).is_disjoint(&first), "a certificate was not renewed: {seen:#?}");
    for who in ["sa/web", "sa/late", "sa/cart"] {
        let count = seen.iter().filter(|one| one.contains(who)).count();
        assert!(count >= 3, "{who} had {count} certificates of 20 s in {TRAFFIC:?}: {seen:#?}");
    }
}

#[test]
fn without_the_ca_certificates_serve_to_their_end_then_nothing_passes_until_it_is_back() {
    let mut lab = Lab::for_test(&mesh(), &ENVIRONMENT);
    let arrived = Arc::new(AtomicUsize::new(0));
    let count = arrived.clone();
    let serve = move |stream| {
        count.fetch_add(1, Ordering::Relaxed);
        traffic::echo(stream)
    };
    traffic::serve(lab.pod("cart"), PORT, serve).expect("the cart can listen");
    lab.kill_controller();

    let ends = ends(&lab);
    let first_end = *ends.iter().min().expect("there are three");
    let last_end = *ends.iter().max().expect("there are three");
    let mut held = Vec::new();
    while OffsetDateTime::now_utc() < first_end - MARGIN {
        traffic::round_trips(lab.pod("web"), cart(&lab), 100).expect("it works until notAfter");
        if held.len() < 200 {
            held.push(hold(&lab, "web"));
        }
    }
    assert!(held.len() > 20, "too few handshakes to mean anything: {}", held.len());

    assert!(wait_until(3 * DEADLINE, || OffsetDateTime::now_utc() > last_end + MARGIN), "time passes");
    let before = arrived.load(Ordering::Relaxed);
    let (from, to) = (lab.pod("late").ipv4(), lab.pod("cart").ipv4());
    let capture = Capture::start(&lab.underlay(), from, to, MARKER).expect("the underlay can be watched");
    for _ in 0..5 {
        // This pod never had a tunnel, so it needs a certificate now.
        assert!(!passes(&lab, "late"), "a connection passed without a valid certificate");
    }
    // This one has tunnels, but they stand on certificates that are over.
    assert!(!passes(&lab, "web"), "an old tunnel took a new connection without a valid certificate");
    assert!(held.iter_mut().all(echoes), "what was established goes on");
    let wire = capture.finish().expect("the capture ends well");
    assert_eq!(wire.packets, 0, "without a certificate nothing is even dialled: {wire:?}");
    assert_eq!(arrived.load(Ordering::Relaxed), before, "the application must see nothing");
    let told = || {
        let log = lab.node("node1").log();
        log.lines().any(|line| {
            ["direction=\"outbound\"", "sa/late", "is over and was not renewed"]
                .iter()
                .all(|part| line.contains(part))
        })
    };
    assert!(wait_until(DEADLINE, told), "the access log says why");

    lab.start_controller().expect("the controller comes back");
    assert!(wait_until(DEADLINE, || passes(&lab, "late")), "traffic must come back with the CA");
}
