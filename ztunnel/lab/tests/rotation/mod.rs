//! Keys and roots of the CA that change, and a CA that is away for most of a certificate's life: traffic does not notice.

mod issuers;
mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use ztunnel_lab::capture::Capture;
use ztunnel_lab::{Lab, Mesh, traffic, wait_until};

use issuers::{Held, Issuer, held};
use load::{Load, MARKER, ONE_STREAM_A_TUNNEL, Outcome, echoes};

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(20);
const NODES: [&str; 2] = ["node1", "node2"];

/// A client and a server on different nodes.
struct Bed {
    lab: Lab,
    /// Connections that reached the server's application.
    arrived: Arc<AtomicUsize>,
}

impl Bed {
    fn new(ttl: &str) -> Self {
        let mesh = Mesh::new().pod("node1", "front/web").pod("node2", "shop/cart");
        let environment = [&ONE_STREAM_A_TUNNEL[..], &[("SECRET_TTL", ttl)]].concat();
        let lab = Lab::for_test(&mesh, &environment);
        let arrived = Arc::new(AtomicUsize::new(0));
        for pod in ["web", "cart"] {
            let count = arrived.clone();
            let application = move |stream| {
                count.fetch_add(1, Ordering::Relaxed);
                traffic::echo(stream)
            };
            traffic::serve(lab.pod(pod), PORT, application).expect("a free port");
        }
        Self { lab, arrived }
    }

    fn address(&self, pod: &str) -> SocketAddr {
        SocketAddr::new(self.lab.pod(pod).ipv4(), PORT)
    }

    fn load(&self, per_second: usize) -> Load {
        Load::start(&self.lab, "web", self.address("cart"), per_second)
    }

    fn all_held(&self) -> Vec<Held> {
        NODES.iter().flat_map(|node| held(&self.lab, node)).collect()
    }

    fn open(&self, from: &str, to: &str) -> TcpStream {
        let mut stream = self.lab.pod(from).connect(self.address(to), DEADLINE).expect("a connection");
        echoes(&mut stream).expect("it is answered");
        stream
    }

    fn passes(&self, from: &str, to: &str) -> bool {
        traffic::request(self.lab.pod(from), self.address(to), MARKER).is_ok_and(|reply| reply == MARKER)
    }

    fn arrived(&self) -> usize {
        self.arrived.load(Ordering::Relaxed)
    }
}

/// Nothing failed, and the load was what it was meant to be: at least `share` of the connections had a handshake.
fn unharmed(outcome: &Outcome, least: usize, share: f64) {
    let Outcome { connections, tunnels, elapsed, failures } = outcome;
    eprintln!("{connections} connections, {tunnels} handshakes in {elapsed:?}, {} failures", failures.len());
    let first = &failures[..failures.len().min(10)];
    assert!(failures.is_empty(), "{} of {connections} failed: {first:#?}", failures.len());
    assert!(*connections >= least, "{connections} connections in {elapsed:?}; {least} are needed");
    let wanted = (*connections as f64 * share) as usize;
    assert!(*tunnels >= wanted, "{tunnels} handshakes for {connections} connections; {wanted} are needed");
}

/// How often the CA signs with another key, and how many keys there are: two minutes of them.
const ROTATION: Duration = Duration::from_secs(10);
const ROTATIONS: u32 = 12;
/// Between two looks at the certificates: each is held for seconds.
const LOOK: Duration = Duration::from_millis(250);

#[test]
fn a_signing_key_that_changes_every_10_s_fails_no_connection() {
    // Renewed after 5 to 8 s, so in each rotation.
    let bed = Bed::new("16s");
    let lab = &bed.lab;
    let root = Issuer::root("lasting root");
    issuers::trust(lab, &[&issuers::first_root(lab), &root.pem()]);
    issuers::until(lab, &NODES, DEADLINE, "both roots are trusted", |held| held.roots.len() == 2);

    let (load, started) = (bed.load(200), Instant::now());
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for rotation in 1..=ROTATIONS {
        root.intermediate(&format!("issuer {rotation}")).signs(lab);
        while started.elapsed() < ROTATION * rotation {
            for held in bed.all_held().into_iter().filter(|held| held.issuer.starts_with("issuer ")) {
                seen.entry(held.identity).or_default().insert(held.issuer);
            }
            std::thread::sleep(LOOK);
        }
    }
    unharmed(&load.finish(), 18_000, 0.6);
    assert_eq!(seen.len(), 2, "both pods have certificates of the rotated keys: {seen:#?}");
    for (identity, issuers) in &seen {
        assert!(issuers.len() >= 10, "{identity} had certificates of {} keys: {issuers:#?}", issuers.len());
    }
}

#[test]
fn roots_that_overlap_change_without_an_error() {
    let bed = Bed::new("10s");
    let lab = &bed.lab;
    let (first, next) = (issuers::first_root(lab), Issuer::root("next root"));
    let load = bed.load(50);
    issuers::trust(lab, &[&first, &next.pem()]);
    issuers::until(lab, &NODES, DEADLINE, "both roots are trusted", |held| held.roots.len() == 2);
    next.signs(lab);
    issuers::until(lab, &NODES, DEADLINE, "the new key signed", |held| held.issuer == "next root");
    issuers::trust(lab, &[&next.pem()]);
    let only_next = |held: &Held| held.roots == ["next root"];
    issuers::until(lab, &NODES, DEADLINE, "the new root alone is trusted", only_next);
    // The roots of the certificate before count beside a certificate's own, so the old one is gone one renewal later.
    let before: BTreeSet<String> = bed.all_held().into_iter().map(|held| held.serial).collect();
    let renewed = |held: &Held| only_next(held) && !before.contains(&held.serial);
    issuers::until(lab, &NODES, DEADLINE, "and nothing is left of the old one", renewed);
    load.goes_on();
    unharmed(&load.finish(), 500, 0.6);
}

#[test]
fn a_root_that_is_swapped_at_once_is_refused_by_its_name() {
    let mut bed = Bed::new("1h");
    // This node renews soon and the other does not.
    bed.lab.set_environment("SECRET_TTL", "10s");
    restart(&mut bed.lab, "node1");
    let first = held(&bed.lab, "node2")[0].issuer.clone();
    let mut established = [bed.open("web", "cart"), bed.open("cart", "web")];
    let next = Issuer::root("next root");
    next.signs(&bed.lab);
    issuers::trust(&bed.lab, &[&next.pem()]);
    issuers::until(&bed.lab, &["node1"], DEADLINE, "renewed", |held| held.roots == ["next root"]);

    let before = bed.arrived();
    let (web, cart) = (bed.lab.pod("web").ipv4(), bed.lab.pod("cart").ipv4());
    let capture = Capture::start(&bed.lab.underlay(), web, cart, MARKER).expect("it can be watched");
    for (from, to) in [("web", "cart"), ("cart", "web")] {
        assert!(!bed.passes(from, to), "{from} reached {to} although one of them does not trust the other");
    }
    assert!(established.iter_mut().all(|stream| echoes(stream).is_ok()), "what was established goes on");
    let wire = capture.finish().expect("a capture that ends well");
    assert_eq!((wire.with_marker, bed.arrived()), (0, before), "nothing passed: {wire:?}");
    let root =
        ["CN=next root", "is none of the roots trusted here", &first, "hand out the old and the new one"];
    told(&bed.lab, "node2", &["inbound handshake failed"], &root);
    told(&bed.lab, "node2", &["access", "direction=\"outbound\"", "sa/web"], &root);
    let own = ["UnknownCA: it does not trust the root of our certificate", "CN=next root"];
    told(&bed.lab, "node1", &["access", "direction=\"outbound\"", "sa/cart"], &own);
    told(&bed.lab, "node1", &["inbound handshake failed"], &own);

    restart(&mut bed.lab, "node2");
    assert!(bed.passes("web", "cart") && bed.passes("cart", "web"), "both trust the new root now");
}

/// Waits for a line of a proxy's log, and for what it has to say.
fn told(lab: &Lab, node: &str, line: &[&str], parts: &[&str]) {
    let log = || lab.node(node).log();
    let says = |text: &str, parts: &[&str]| parts.iter().all(|part| text.contains(part));
    let found = || log().lines().any(|one| says(one, line) && says(one, parts));
    assert!(wait_until(DEADLINE, found), "no line of {node} with {line:?} says {parts:?}:\n{}", log());
}

fn restart(lab: &mut Lab, node: &str) {
    lab.node_mut(node).kill_proxy();
    lab.start_proxy(node).expect("a new proxy");
    lab.wait_ready(node).unwrap_or_else(|error| panic!("{error}"));
}

/// How long the CA is away.
const AWAY: Duration = Duration::from_secs(50);
/// What is left of a certificate when the CA is back, at least.
const MARGIN: Duration = Duration::from_secs(2);
/// From the return of the CA to a new certificate on every node.
const RECOVERY: Duration = Duration::from_secs(2);

#[test]
fn the_ca_away_for_50_s_of_a_60_s_certificate_is_missed_by_nobody() {
    let mut bed = Bed::new("60s");
    let young = |held: &Held| held.end - OffsetDateTime::now_utc() > AWAY + MARGIN;
    issuers::until(&bed.lab, &NODES, 2 * AWAY, "all are young at once", young);
    let before: BTreeSet<String> = bed.all_held().into_iter().map(|held| held.serial).collect();
    bed.lab.kill_controller();
    let away = Instant::now();
    let load = bed.load(20);
    let ways = [("web", "cart"), ("cart", "web")];
    let mut established: Vec<_> =
        ways.into_iter().cycle().take(20).map(|(from, to)| bed.open(from, to)).collect();
    assert!(wait_until(AWAY + MARGIN, || away.elapsed() >= AWAY), "time passes");
    for node in NODES {
        let log = bed.lab.node(node).log();
        assert!(log.contains("certificate not renewed"), "{node} did not need the CA: {log}");
    }
    bed.lab.start_controller().expect("the controller comes back");
    let back = Instant::now();
    let renewed = |held: &Held| !before.contains(&held.serial);
    issuers::until(&bed.lab, &NODES, DEADLINE, "renewed", renewed);
    let took = back.elapsed();
    eprintln!("renewed {took:?} after the CA was back");
    assert!(took < RECOVERY, "renewed {took:?} after the CA was back");
    load.goes_on();
    for stream in &mut established {
        echoes(stream).expect("a stream outlives the time without the CA");
    }
    unharmed(&load.finish(), 900, 0.6);
}
