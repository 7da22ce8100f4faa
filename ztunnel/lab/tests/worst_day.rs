//! Drains, and pods that vanish.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ztunnel_lab::mesh::{self, Mesh};
use ztunnel_lab::{Lab, namespace, steady, traffic, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u16 = 7000;
const VICTIM: &str = "default/victim";
const VICTIM_FILE: &str = "pod-default-victim.json";
fn mesh() -> Mesh {
    Mesh::new().pod("node1", "default/client").pod("node2", "default/server").pod("node2", VICTIM)
}

fn bed(environment: &[(&str, &str)]) -> Lab {
    let lab = Lab::for_test(&mesh(), environment);
    traffic::serve(lab.pod("server"), PORT, traffic::echo).expect("a free port");
    lab
}

fn address(lab: &Lab, pod: &str) -> SocketAddr {
    SocketAddr::new(lab.pod(pod).ipv4(), PORT)
}

fn open(lab: &Lab) -> TcpStream {
    lab.pod("client").connect(address(lab, "server"), DEADLINE).expect("a connection")
}

#[test]
fn sigterm_drains() {
    let mut lab = bed(&[("CONNECTION_TERMINATION_DEADLINE", "15s")]);
    let mut stream = open(&lab);
    traffic::echoes(&mut stream).expect("it works");
    lab.node("node2").terminate_proxy();
    let draining = || lab.node("node2").log().contains("draining");
    assert!(wait_until(DEADLINE, draining));
    traffic::echoes(&mut stream).expect("an open stream goes on while the proxy drains");
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
    traffic::echoes(&mut stream).expect("it works");
    let started = Instant::now();
    lab.node("node2").terminate_proxy();
    assert!(wait_until(DEADLINE, || lab.node_mut("node2").proxy_status().is_some()), "the deadline ends it");
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(traffic::echoes(&mut stream).is_err(), "what was still open is cut");
}

/// Of the proxy and of the agent of the victim's node.
fn descriptors(lab: &Lab) -> [usize; 2] {
    let node = lab.node("node2");
    [node.proxy(), node.agent()].map(|it| it.expect("started").open_files().expect("it runs"))
}

/// Descriptors while the victim is not in the mesh; afterwards it is again.
fn descriptors_without_victim(lab: &mut Lab) -> [usize; 2] {
    let uid = lab.pod("victim").spec().uid();
    let mode = |mode| mesh::pod("node2", VICTIM, &[("istio.io/dataplane-mode", mode)]).to_string();
    lab.edit(VICTIM_FILE, &mode("none"));
    let gone = |lab: &Lab| lab.node("node2").config_dump()["workloadState"].get(&uid).is_none();
    assert!(wait_until(DEADLINE, || gone(lab)), "the proxy still serves the victim");
    let without = steady(DEADLINE, || descriptors(lab)).expect("processes at rest");
    lab.edit(VICTIM_FILE, &mode("ambient"));
    lab.wait_ready("node2").unwrap_or_else(|error| panic!("{error}"));
    without
}

/// Idle connections to the victim; each is at least two descriptors of its proxy.
fn load(lab: &Lab, without: [usize; 2]) -> Vec<TcpStream> {
    let streams = traffic::idle(lab.pod("client"), address(lab, "victim"), 300).expect("all connect");
    assert!(descriptors(lab)[0] > without[0] + 300, "the load is there: {:?}", descriptors(lab));
    streams
}

fn freed(lab: &Lab, without: [usize; 2]) {
    let back = || descriptors(lab).iter().zip(without).all(|(&now, before)| now <= before);
    assert!(
        wait_until(DEADLINE, back),
        "{:?} are open, {without:?} before the victim came",
        descriptors(lab)
    );
}

#[test]
fn a_pod_that_vanishes_under_load_frees_every_descriptor() {
    let mut lab = bed(&[]);
    traffic::serve(lab.pod("victim"), PORT, traffic::echo).expect("a free port");
    let mut other = open(&lab);
    traffic::echoes(&mut other).expect("it works");
    let without = descriptors_without_victim(&mut lab);
    let streams = load(&lab, without);
    lab.remove(VICTIM_FILE);
    freed(&lab, without);
    drop(streams);
    traffic::echoes(&mut other).expect("the other pod of the node is unharmed");
    traffic::echoes(&mut open(&lab)).expect("and takes new connections");
}

/// As when a runtime crashes: the pod's processes and its namespace end, and nobody told the agent.
#[test]
fn a_namespace_that_vanishes_under_load_frees_every_descriptor_and_itself() {
    serve_if_told();
    let mut lab = bed(&[]);
    let mut application = Application::start(&lab);
    let mut other = open(&lab);
    traffic::echoes(&mut other).expect("it works");
    let without = descriptors_without_victim(&mut lab);
    let streams = load(&lab, without);
    assert!(links(&lab).contains("pod11:"), "{}", links(&lab));
    application.kill();
    namespace::remove(lab.pod("victim").namespace()).expect("it is there");
    freed(&lab, without);
    let told = || lab.node("node2").agent_log().contains("the pod's namespace is gone");
    assert!(wait_until(DEADLINE, told), "{}", lab.node("node2").agent_log());
    // A namespace lives as long as any socket in it, and its link as long as the namespace.
    assert!(wait_until(DEADLINE, || !links(&lab).contains("pod11:")), "{}", links(&lab));
    traffic::echoes(&mut other).expect("the other pod of the node is unharmed");
    lab.remove(VICTIM_FILE);
    let told = || lab.node("node2").agent_log().contains("pod withdrawn");
    assert!(wait_until(DEADLINE, told), "{}", lab.node("node2").agent_log());
    freed(&lab, without);
    drop(streams);
    traffic::echoes(&mut other).expect("it still is");
    traffic::echoes(&mut open(&lab)).expect("and takes new connections");
}

/// Links of the victim's node.
fn links(lab: &Lab) -> String {
    let look = || std::fs::read_to_string("/proc/thread-self/net/dev").expect("it is always there");
    namespace::run(lab.node("node2").namespace(), look).expect("the node is there")
}

/// Says that this process is to be the victim's application.
const SERVES: &str = "ZTUNNEL_LAB_TEST_SERVES";

/// This program again, as the victim's application: a process of its own can die without a word.
struct Application(Child);

impl Application {
    fn start(lab: &Lab) -> Self {
        let child = lab.pod("victim").run(|| {
            Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", "a_namespace_that_vanishes_under_load_frees_every_descriptor_and_itself"])
                .env(SERVES, "")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        });
        let application = Self(child.expect("this program again"));
        let answers = || {
            traffic::request(lab.pod("client"), address(lab, "victim"), b"x").is_ok_and(|reply| reply == b"x")
        };
        assert!(wait_until(DEADLINE, answers), "the application does not answer");
        application
    }

    fn kill(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("ended");
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve_if_told() {
    if std::env::var_os(SERVES).is_none() {
        return;
    }
    let listener = TcpListener::bind(("::", PORT)).expect("a free port");
    while let Ok((stream, _)) = traffic::accept(&listener, 3 * DEADLINE) {
        std::thread::spawn(|| traffic::echo(stream));
    }
    std::process::exit(1);
}
