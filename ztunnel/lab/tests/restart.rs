//! Processes that are killed and started again: nobody is refused, and between the nodes there is never anything but
//! tunnels.

mod order;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use order::order;
use ztunnel_lab::capture::Capture;
use ztunnel_lab::{Lab, Mesh, steady, traffic, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);
/// How long nothing must come from a connection that waits.
const SILENCE: Duration = Duration::from_millis(500);
const PORT: u16 = 7000;
const MARKER: &[u8] = b"never in plaintext, whoever is down";
fn mesh() -> Mesh {
    let meshed = Mesh::new().pod("node1", "default/client").pod("node2", "default/server");
    meshed.outside("node1", "default/outside")
}

/// A lab, watched between client and server on both families.
struct Bed {
    lab: Lab,
    captures: Vec<Capture>,
    /// Connections that reached the application.
    arrived: Arc<AtomicUsize>,
}

impl Bed {
    fn new(environment: &[(&str, &str)]) -> Self {
        let lab = Lab::for_test(&mesh(), environment);
        let arrived = Arc::new(AtomicUsize::new(0));
        let count = arrived.clone();
        let application = move |stream| {
            count.fetch_add(1, Ordering::Relaxed);
            traffic::echo(stream)
        };
        traffic::serve(lab.pod("server"), PORT, application).expect("a free port");
        let (client, server) = (lab.pod("client"), lab.pod("server"));
        let ways = [(client.ipv4(), server.ipv4()), (client.ipv6(), server.ipv6())];
        let watch =
            |(from, to)| Capture::start(&lab.underlay(), from, to, MARKER).expect("it can be watched");
        let captures = ways.map(watch).into();
        Self { lab, captures, arrived }
    }

    fn server(&self) -> [IpAddr; 2] {
        let server = self.lab.pod("server");
        [server.ipv4(), server.ipv6()]
    }

    /// Connections, on both families, on which the marker was sent.
    fn send(&self, from: &str, count: usize) -> Vec<TcpStream> {
        let to = self.server().into_iter().cycle().take(count);
        let send = |ip| {
            let to = SocketAddr::new(ip, PORT);
            let mut stream = self.lab.pod(from).connect(to, DEADLINE).expect("a connection");
            stream.write_all(MARKER).expect("the kernel takes it");
            stream
        };
        to.map(send).collect()
    }

    fn arrived(&self) -> usize {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Whether the sockets to dial with have come: from then on no descriptor is made by itself.
    fn stocked(&self) {
        let open =
            || ["node1", "node2"].map(|node| self.lab.node(node).proxy().expect("it runs").open_files().ok());
        steady(DEADLINE, open).expect("proxies at rest");
    }

    fn only_tunnels_were_seen(self) {
        for capture in self.captures {
            let seen = capture.finish().expect("a capture that ends well");
            assert!(seen.packets > 0, "nothing was seen at all");
            assert!(seen.ports.iter().eq([&redirect::HBONE_PORT]), "{seen:?}");
            assert_eq!(seen.with_marker, 0, "{seen:?}");
        }
    }
}

/// The marker comes back.
fn answered(stream: &mut TcpStream) -> io::Result<()> {
    let mut reply = [0; MARKER.len()];
    stream.read_exact(&mut reply)?;
    if reply == MARKER { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn all_answered(streams: &mut [TcpStream]) {
    for (index, stream) in streams.iter_mut().enumerate() {
        answered(stream).unwrap_or_else(|error| panic!("connection {index}: {error}"));
    }
}

fn round_trip(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(MARKER)?;
    answered(stream)
}

fn silent(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(SILENCE)).expect("an option");
    let silence = stream.read(&mut [0]).expect_err("nothing answers while there is no proxy");
    assert!(matches!(silence.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{silence}");
    stream.set_read_timeout(Some(DEADLINE)).expect("an option");
}

#[test]
fn a_killed_proxy_refuses_nobody_and_leaks_nothing() {
    let mut bed = Bed::new(&[]);
    let mut established = bed.send("client", 10);
    all_answered(&mut established);
    bed.lab.node_mut("node1").kill_proxy();
    for stream in &mut established {
        assert!(round_trip(stream).is_err(), "the proxy held its connections, they end with it");
    }
    // Rules stay and the agent keeps the listeners: connections are accepted by the kernel and wait.
    let mut waiting = bed.send("client", 10);
    silent(&mut waiting[0]);
    assert_eq!(bed.arrived(), 10, "the application sees nothing meanwhile");
    bed.lab.start_proxy("node1").expect("a new proxy");
    all_answered(&mut waiting);
    bed.only_tunnels_were_seen();
}

#[test]
fn a_killed_proxy_of_the_server_lets_nobody_past() {
    let mut bed = Bed::new(&[]);
    let mut established = bed.send("client", 10);
    all_answered(&mut established);
    bed.lab.node_mut("node2").kill_proxy();
    for stream in &mut established {
        assert!(round_trip(stream).is_err(), "the proxy held its connections, they end with it");
    }
    let mut waiting = bed.send("client", 10);
    waiting.extend(bed.send("outside", 2));
    silent(&mut waiting[0]);
    silent(&mut waiting[10]);
    assert_eq!(
        bed.arrived(),
        10,
        "neither mutual TLS nor plaintext reaches the application without its proxy"
    );
    bed.lab.start_proxy("node2").expect("a new proxy");
    all_answered(&mut waiting);
    bed.only_tunnels_were_seen();
}

#[test]
fn a_killed_agent_is_not_missed_and_its_successor_adopts_what_the_proxy_kept() {
    // With one stream in a tunnel, each connection takes a socket of the stock at both ends.
    let mut bed = Bed::new(&[("POOL_MAX_STREAMS_PER_CONNECTION", "1")]);
    bed.stocked();
    let mut before = bed.send("client", 1);
    all_answered(&mut before);
    for node in ["node1", "node2"] {
        bed.lab.node_mut(node).kill_agent();
    }
    round_trip(&mut before[0]).expect("an established connection does not need the agent");
    let mut fresh = bed.send("client", 1);
    answered(&mut fresh[0]).expect("a new connection is served out of the stock");
    let mut more = bed.send("client", 20);
    for node in ["node1", "node2"] {
        bed.lab.start_agent(node).expect("a new agent");
    }
    all_answered(&mut more);
    for node in ["node1", "node2"] {
        let log = || bed.lab.node(node).agent_log();
        assert!(wait_until(DEADLINE, || log().contains("adopting the listeners")), "{}", log());
    }
    for _ in 0..100 {
        all_answered(&mut bed.send("client", 2));
    }
    round_trip(&mut before[0]).expect("the old connection still works");
    bed.only_tunnels_were_seen();
}

/// All processes of all nodes are gone at once, so that nobody holds a listener, and come back in some order, while a client
/// tries all the time. ROUNDS=200 takes every order at least once; without it there are ten, far apart.
#[test]
fn in_whatever_order_they_start_requests_pass_in_the_end_and_only_tunnels_are_seen() {
    let rounds = std::env::var("ROUNDS").map_or(10, |rounds| rounds.parse().expect("ROUNDS is a number"));
    let mut bed = Bed::new(&[]);
    all_answered(&mut bed.send("client", 2));
    for round in 0..rounds {
        for node in ["node1", "node2"] {
            bed.lab.node_mut(node).kill_proxy();
            bed.lab.node_mut(node).kill_agent();
        }
        bed.lab.kill_controller();
        let [to, _] = bed.server().map(|ip| SocketAddr::new(ip, PORT));
        let passes =
            |lab: &Lab| traffic::request(lab.pod("client"), to, MARKER).is_ok_and(|said| said == MARKER);
        assert!(!passes(&bed.lab), "nobody serves");
        let order = order(round * 37);
        for part in order {
            let started = match part {
                0 => bed.lab.start_controller(),
                1 => bed.lab.start_agent("node1"),
                2 => bed.lab.start_agent("node2"),
                3 => bed.lab.start_proxy("node1"),
                _ => bed.lab.start_proxy("node2"),
            };
            started.unwrap_or_else(|error| panic!("round {round}, {order:?}: {error}"));
        }
        assert!(wait_until(DEADLINE, || passes(&bed.lab)), "round {round}, {order:?}");
    }
    bed.only_tunnels_were_seen();
}
