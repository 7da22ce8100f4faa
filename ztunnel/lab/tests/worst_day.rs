//! Crashes, restarts, drains and pods that vanish.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ztunnel_lab::{Lab, traffic, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u16 = 7000;
const MESH: &str = "
nodes: [{name: node1}, {name: node2}]
pods:
- {name: client, node: node1}
- {name: server, node: node2}
- {name: victim, node: node2}
";

fn bed(environment: &[(&str, &str)]) -> Lab {
    let lab = Lab::for_test(MESH, environment);
    for pod in ["server", "victim"] {
        traffic::serve(lab.pod(pod), PORT, traffic::echo).expect("a free port");
    }
    lab
}

fn address(lab: &Lab, pod: &str) -> SocketAddr {
    SocketAddr::new(lab.pod(pod).ipv4(), PORT)
}

fn open(lab: &Lab) -> TcpStream {
    let stream = lab.pod("client").connect(address(lab, "server"), DEADLINE).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("an option");
    stream
}

fn round_trip(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

#[test]
fn a_killed_proxy_refuses_nobody_and_leaks_nothing() {
    let mut lab = bed(&[]);
    lab.node_mut("node1").kill_proxy();
    // Rules stay and the agent keeps the listeners: the connection is accepted by the kernel and waits.
    let mut waiting = open(&lab);
    waiting.set_read_timeout(Some(Duration::from_millis(500))).expect("an option");
    let silence = round_trip(&mut waiting).expect_err("nothing answers while there is no proxy");
    assert!(matches!(silence.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{silence}");
    let arrived = lab.node("node2").metrics().sum("istio_tcp_connections_opened_total", &[]);
    assert_eq!(arrived, 0.0, "no byte left the node, in plaintext or otherwise");
    lab.start_proxy("node1").expect("a new proxy");
    waiting.set_read_timeout(Some(DEADLINE)).expect("an option");
    waiting.read_exact(&mut [0]).expect("the connection that waited is served");
}

#[test]
fn a_restarted_agent_adopts_what_the_proxy_kept() {
    let mut lab = bed(&[]);
    let mut before = open(&lab);
    round_trip(&mut before).expect("it works");
    lab.node_mut("node1").kill_agent();
    round_trip(&mut before).expect("an established connection does not need the agent");
    lab.start_agent("node1").expect("a new agent");
    let adopted = || lab.node("node1").agent_log().contains("adopting the listeners");
    assert!(wait_until(DEADLINE, adopted), "{}", lab.node("node1").agent_log());
    for _ in 0..200 {
        round_trip(&mut open(&lab)).expect("new connections work, with sockets of the new agent");
    }
    round_trip(&mut before).expect("the old connection still works");
}

#[test]
fn sigterm_drains() {
    let mut lab = bed(&[("CONNECTION_TERMINATION_DEADLINE", "15s")]);
    let mut stream = open(&lab);
    round_trip(&mut stream).expect("it works");
    lab.node("node2").terminate_proxy();
    let draining = || lab.node("node2").log().contains("draining");
    assert!(wait_until(DEADLINE, draining));
    round_trip(&mut stream).expect("an open stream goes on while the proxy drains");
    drop(stream);
    let mut status = None;
    wait_until(DEADLINE, || {
        status = lab.node_mut("node2").proxy_status();
        status.is_some()
    });
    assert!(status.expect("the proxy ends when its last stream does").success());
}

#[test]
fn the_drain_has_a_deadline() {
    let mut lab = bed(&[("CONNECTION_TERMINATION_DEADLINE", "1s")]);
    let mut stream = open(&lab);
    round_trip(&mut stream).expect("it works");
    let started = Instant::now();
    lab.node("node2").terminate_proxy();
    assert!(wait_until(DEADLINE, || lab.node_mut("node2").proxy_status().is_some()), "the deadline ends it");
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(round_trip(&mut stream).is_err(), "what was still open is cut");
}

#[test]
fn a_pod_that_vanishes_under_load_frees_every_descriptor() {
    let mut lab = bed(&[]);
    let idle = |lab: &Lab| {
        let node = lab.node("node2");
        [node.proxy(), node.agent()].map(|process| process.map_or(0, |process| process.open_files()))
    };
    let rest = idle(&lab);
    let streams = traffic::idle(lab.pod("client"), address(&lab, "victim"), 300).expect("all connect");
    let loaded = idle(&lab);
    assert!(loaded[0] > 300, "the load is there: {loaded:?}");
    lab.delete_pod("victim");
    // What one pod needs at rest is a handful of listeners, tunnels and stocked sockets.
    // The agent lets go of everything: three listeners for each pod is all that it ever holds.
    let freed = || idle(&lab)[0] < 100 && idle(&lab)[1] + 3 <= rest[1];
    assert!(wait_until(DEADLINE, freed), "{:?} descriptors are still open", idle(&lab));
    drop(streams);
    round_trip(&mut open(&lab)).expect("the other pod of the node is unharmed");
}
