//! A node goes down with all its pods and comes up again in every order of its parts, while its container runtime starts a pod
//! as soon as it can: the pod starts once it is captured, and never says a byte in plaintext.

mod order;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use order::order;
use ztunnel_lab::capture::Capture;
use ztunnel_lab::cluster::{ApiServer, NAMESPACE, NODE, Node, Pod};
use ztunnel_lab::process::Process;
use ztunnel_lab::{Lab, Mesh, namespace, traffic, wait_until};

/// Until the pod talks, whatever was started last.
const DEADLINE: Duration = Duration::from_secs(60);
const PORT: u16 = 7000;
const MARKER: &[u8] = b"never in plaintext, whatever starts first";
const POD: &str = "web";

/// Power is cut: what ran is gone, and so is what was in memory.
fn cut_off(lab: &mut Lab, node: &Node, agent: Process) {
    agent.kill();
    lab.node_mut(NODE).kill_proxy();
    lab.kill_controller();
    for file in ["cni.sock", "redirect.sock", "redirect.captured.json"] {
        // Not all of them were there.
        let _ = std::fs::remove_file(node.folder().join(file));
    }
    namespace::run(node.namespace(), redirect::rules::host::withdraw).expect("the node").expect("root may");
    assert!(node.folder().join("enrolled.json").exists(), "it is on the disk");
}

/// As the kubelet does: a sandbox whose network cannot be made is removed, and another one made.
fn run_pod(
    node: &Node,
    place: usize,
    api: &ApiServer,
    to: SocketAddr,
    refused: &AtomicUsize,
) -> Result<Pod, String> {
    let started = Instant::now();
    loop {
        let pod = Pod::make(node, POD.to_owned(), place);
        match pod.add(node) {
            Ok(()) => {
                api.addressed(POD, pod.ip, Instant::now());
                pod.ask(to, MARKER).map_err(|error| format!("not answered: {error}"))?;
                return Ok(pod);
            }
            Err(error) if started.elapsed() > DEADLINE => return Err(error),
            Err(_) => pod.remove(node),
        }
        refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// ROUNDS=200 takes every order at least once; without it there are ten, far apart.
#[test]
fn in_whatever_order_a_node_comes_up_its_pod_is_captured_before_it_starts() {
    let rounds = std::env::var("ROUNDS").map_or(10, |rounds| rounds.parse().expect("ROUNDS is a number"));
    let mesh = Mesh::new().outside(NODE, "front/first").pod("node2", "shop/echo");
    let mut lab = Lab::for_test(&mesh, &[]);
    let echo = lab.pod("echo").ipv4();
    traffic::serve(lab.pod("echo"), PORT, traffic::echo).expect("a free port");
    let to = SocketAddr::new(echo, PORT);
    let node = Node::of(&lab).expect("the lab found its programs");
    let api = node.follow_kubernetes(&mut lab);
    api.bind([POD.to_owned()].into_iter());
    api.created(POD);
    // Each time with another address, as new sandboxes have.
    let places = [0, 1];
    let watch = |place: usize| {
        Capture::start(&lab.underlay(), Pod::address(place), echo, MARKER).expect("it can be watched")
    };
    let captures = places.map(watch);

    let mut agent = node.start_agent(&lab, &api).expect("it starts");
    // Before its first agent a node cannot know whose pods are meshed (README).
    let enrolled = || std::fs::read_to_string(node.folder().join("enrolled.json")).unwrap_or_default();
    let known = || enrolled().contains(NAMESPACE);
    assert!(wait_until(DEADLINE, known), "{}", lab.node(NODE).agent_log());
    let refused = AtomicUsize::new(0);
    let mut pod = run_pod(&node, places[0], &api, to, &refused).expect("a pod of a whole node");
    let mut too_early = 0;
    for round in 1..=rounds {
        api.go_away();
        cut_off(&mut lab, &node, agent);
        pod.remove(&node);
        let place = places[round % places.len()];
        let order = order(round * 37);
        let mut started = None;
        let ran = std::thread::scope(|scope| {
            let mut runtime = None;
            let before = refused.load(Ordering::Relaxed);
            let is_refused = || refused.load(Ordering::Relaxed) > before;
            for part in order {
                // In every other round the agent comes while a sandbox waits for it, in the rest after one was refused.
                if part == 1 && runtime.is_some() && round % 2 == 0 {
                    assert!(wait_until(DEADLINE, is_refused), "a pod of the mesh starts without an agent");
                    too_early += 1;
                }
                match part {
                    0 => api.come_back(),
                    1 => started = Some(node.start_agent(&lab, &api).expect("the agent")),
                    2 => lab.start_proxy(NODE).expect("the proxy"),
                    3 => lab.start_controller().expect("the controller"),
                    _ => runtime = Some(scope.spawn(|| run_pod(&node, place, &api, to, &refused))),
                }
            }
            runtime.and_then(|runtime| runtime.join().ok())
        });
        pod = match ran {
            Some(Ok(pod)) => pod,
            failed => panic!(
                "round {round}, {order:?}: {:?}\n{}\n{}",
                failed.map(|ran| ran.err()),
                lab.node(NODE).agent_log(),
                lab.node(NODE).log()
            ),
        };
        agent = started.expect("invariant: it is one of the parts");
    }
    println!("{rounds} rounds, {too_early} of them with a pod that was refused at first");
    // The second of the orders begins with the runtime.
    assert!(rounds < 2 || too_early > 0, "no pod was too early for its agent: nothing was tested");
    pod.remove(&node);
    agent.kill();
    for capture in captures {
        let seen = capture.finish().expect("a capture that ends well");
        assert!(seen.packets > 0, "nothing was seen at all");
        assert!(seen.ports.iter().eq([&redirect::HBONE_PORT]), "{seen:?}");
        assert_eq!(seen.with_marker, 0, "{seen:?}");
    }
}
