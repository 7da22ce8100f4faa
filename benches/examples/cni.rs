//! A new pod, from CNI ADD to the first byte through the mesh: `cargo run --release -p benches --example cni
//! [PODS [AT_ONCE]]` (1,000 one after the other unless told), as root.
//!
//! A lab of two nodes comes up. On the first the agent follows an API server in this process (`ztunnel-redirect --kubernetes`),
//! on the second a meshed pod serves an echo. Then pods come and go on the first as with a container runtime: namespace, link and
//! address are there already, as the plugins before ours in the chain make them; the clock starts; the real `ztunnel-cni`
//! is executed for ADD; when it has succeeded, a thread in the pod's namespace connects to the echo and sends a byte; with the
//! answer the clock stops. Every pod has a service account of its own, so none finds a certificate or a tunnel there. The
//! last hundred pods live on; the older ones get their DEL and end.
//!
//! All of it three times, with the pods' addresses told to the API and to the control plane 0, 5 and 60 s after the ADD: so much
//! later comes the pod's own xDS record. After 60 s a pod here is no more; for these the record never comes. That the pod
//! is bound to the node is known before the ADD, as in a cluster: else the CA would not sign for the node.
//!
//! Told are percentiles of the ADD alone and of the ADD to the first byte, beside those of a connection from such a
//! namespace without the mesh to a pod without it (`direct`): what the machine costs. Fails when the 99th of a hundred is above 50 ms
//! in a release build, one after the other, or when agent or proxy hold more descriptors in the end than before.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ztunnel_lab::cluster::{ApiServer, Node, Pod};
use ztunnel_lab::process::Process;
use ztunnel_lab::{Lab, Mesh, steady, traffic};

const BOUND: Duration = Duration::from_millis(50);
const DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(5), Duration::from_secs(60)];
/// Pods that live at a time.
const ALIVE: usize = 100;
/// The first pods, whose times do not count: the node is not new.
const WARM: usize = 10;
const BARE: usize = 100;
const ECHO: u16 = 8080;
/// Descriptors that may come and go.
const SLACK: usize = 8;
const DEADLINE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let pods: usize = arguments.next().unwrap_or(1_000);
    let at_once: usize = arguments.next().unwrap_or(1).clamp(1, ALIVE);
    let mesh = Mesh::new().outside("node1", "front/first");
    let mut lab = Lab::for_test(&mesh.pod("node2", "shop/echo").outside("node2", "shop/plain"), &[]);
    for server in ["echo", "plain"] {
        traffic::serve(lab.pod(server), ECHO, traffic::echo).expect("it can listen");
    }
    let node = Node::of(&lab).expect("the lab found its programs");
    let api = node.follow_kubernetes(&mut lab);
    let agent = node.start_agent(&lab, &api).expect("it starts");

    let [echo, plain] = ["echo", "plain"].map(|pod| SocketAddr::new(lab.pod(pod).ipv4(), ECHO));
    let direct = summary((0..BARE).map(|index| bare(&node, index, plain)).collect());
    println!("{pods} pods, {at_once} at once; direct: {direct}");
    let mut slow = false;
    for (round, delay) in DELAYS.into_iter().enumerate() {
        let name = |index: usize| format!("r{round}-{index}");
        api.bind((0..pods + WARM).map(name));
        come_and_go(&node, &api, (0..WARM).map(name), (0, ALIVE), delay, echo);
        let before = held(&lab, &agent);
        let times = std::thread::scope(|scope| {
            let lines = (0..at_once).map(|line| {
                let own = (WARM + line..WARM + pods).step_by(at_once).map(name);
                let (node, api, places) = (&node, &api, ALIVE / at_once);
                scope.spawn(move || come_and_go(node, api, own, (line * places, places), delay, echo))
            });
            let lines: Vec<_> = lines.collect();
            lines.into_iter().flat_map(|line| line.join().expect("no pod failed")).collect::<Vec<_>>()
        });
        let after = held(&lab, &agent);
        let (added, answered): (Vec<_>, Vec<_>) = times.into_iter().unzip();
        slow |= percentile(&mut answered.clone(), 0.99) > BOUND;
        println!("record after {delay:?}: ADD {}", summary(added));
        println!("record after {delay:?}: ADD to first byte {}", summary(answered));
        println!("record after {delay:?}: descriptors of agent and proxy {before:?}, then {after:?}");
        if before.iter().zip(&after).any(|(before, after)| *after > before + SLACK) {
            eprintln!("descriptors leak");
            return ExitCode::FAILURE;
        }
    }
    if slow && at_once == 1 && !cfg!(debug_assertions) {
        eprintln!("the 99th of a hundred is above {BOUND:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Pods one after the other, on so many places from the first. Returns how long each took to be added, and to be answered.
fn come_and_go(
    node: &Node,
    api: &ApiServer,
    names: impl Iterator<Item = String>,
    (first, places): (usize, usize),
    delay: Duration,
    echo: SocketAddr,
) -> Vec<(Duration, Duration)> {
    let (mut alive, mut times) = (VecDeque::new(), Vec::new());
    let end = |pod: Pod| {
        pod.delete(node);
        api.deleted(&pod.name);
    };
    for (index, name) in names.enumerate() {
        if alive.len() == places {
            alive.pop_front().into_iter().for_each(end);
        }
        api.created(&name);
        let pod = Pod::make(node, name, first + index % places);
        let start = Instant::now();
        pod.add(node).unwrap_or_else(|error| panic!("{name} is not added: {error}", name = pod.name));
        let added = start.elapsed();
        api.addressed(&pod.name, pod.ip, Instant::now() + delay);
        ask(&pod, echo);
        times.push((added, start.elapsed()));
        alive.push_back(pod);
    }
    alive.into_iter().for_each(end);
    times
}

/// Descriptors of agent and proxy, once all pods are gone and nothing more is closed.
fn held(lab: &Lab, agent: &Process) -> [usize; 2] {
    let proxy = lab.node("node1").proxy().expect("it runs");
    let count = || [agent, proxy].map(|process| process.open_files().expect("it runs"));
    steady(DEADLINE, count).expect("it comes to rest")
}

fn bare(node: &Node, index: usize, plain: SocketAddr) -> Duration {
    let pod = Pod::make(node, format!("bare-{index}"), index);
    let start = Instant::now();
    ask(&pod, plain);
    let took = start.elapsed();
    pod.remove(node);
    took
}

fn ask(pod: &Pod, server: SocketAddr) {
    pod.ask(server, b"x").unwrap_or_else(|error| panic!("{} is not answered: {error}", pod.name));
}

fn percentile(times: &mut [Duration], part: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * part) as usize]
}

fn summary(mut times: Vec<Duration>) -> String {
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|part| percentile(&mut times, part));
    format!("p50 {p50:.1?}, p90 {p90:.1?}, p99 {p99:.1?}, max {max:.1?} of {}", times.len())
}
