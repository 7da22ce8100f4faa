//! The agent of an external node drives stock ztunnels over ZDS; they are played by the test.

#[expect(dead_code, reason = "each test file plays one end")]
mod zds;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use redirect::netns::Ident;
use redirect::zds::wire::proto;
use zds::{DEADLINE, End, Payload};
use ztunnel_lab::mesh::{self, Mesh};
use ztunnel_lab::{Lab, namespace, traffic, wait_until};

const NODE: &str = "node1";
const PORTS: [u16; 3] = [15001, 15006, 15008];
/// What the agent grants a ztunnel for an answer.
const ANSWER: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(500);

/// A part of the reason in the agent's log, and what is said.
type Mistake<'a> = (&'static str, &'a dyn Fn(&End));

fn bed() -> Lab {
    let pods = ["shop/a", "shop/b", "shop/c"];
    let mesh = pods.iter().fold(Mesh::new().external(NODE), |mesh, pod| mesh.pod(NODE, pod));
    Lab::for_test(&mesh.outside(NODE, "legacy/legacy"), &[])
}

fn socket(lab: &Lab) -> PathBuf {
    let status: serde_json::Value = serde_json::from_str(&lab.status().json()).expect("JSON");
    status["nodes"][0]["external"]["environment"]["INPOD_UDS"].as_str().expect("it is told").into()
}

fn uid(lab: &Lab, pod: &str) -> String {
    lab.pod(pod).spec().uid()
}

fn uids(lab: &Lab, pods: &[&str]) -> Vec<String> {
    let mut uids: Vec<String> = pods.iter().map(|pod| uid(lab, pod)).collect();
    uids.sort();
    uids
}

/// Which of the captured ports nobody listens on in a pod.
fn free_ports(lab: &Lab, pod: &str) -> Vec<u16> {
    let free = |port: &u16| std::net::TcpListener::bind(("::", *port)).is_ok();
    lab.pod(pod).run(move || PORTS.into_iter().filter(free).collect())
}

fn connected(end: &End) -> Vec<String> {
    end.snapshot(|_| "")
}

#[test]
fn each_pod_comes_with_its_network_namespace() {
    let lab = bed();
    let ztunnel = End::ztunnel(&socket(&lab));
    for _ in 0..3 {
        let (payload, inodes) = ztunnel.request();
        let Payload::Add(add) = payload else { panic!("{payload:?} is no Add") };
        let pod = lab.pods().iter().find(|pod| pod.spec().uid() == add.uid).expect("a pod of the lab");
        let info = add.workload_info.expect("it is told who it is");
        let spec = pod.spec();
        assert_eq!((&info.name, &info.namespace), (&spec.name, &spec.namespace));
        assert_eq!(info.service_account, spec.service_account);
        let netns = Ident::at(&namespace::path(pod.namespace())).expect("it is there");
        assert_eq!(inodes, [netns.inode]);
        assert_eq!(free_ports(&lab, pod.name()), PORTS, "the ports are the ztunnel's");
        ztunnel.hears_nothing(QUIET);
        ztunnel.ack("");
    }
    assert!(matches!(ztunnel.request(), (Payload::SnapshotSent(_), inodes) if inodes.is_empty()));
    ztunnel.ack("");
    ztunnel.hears_nothing(QUIET);
}

#[test]
fn pods_come_and_go_and_the_old_process_hears_only_of_those_that_go() {
    let mut lab = bed();
    let old = End::ztunnel(&socket(&lab));
    assert_eq!(connected(&old), uids(&lab, &["a", "b", "c"]));
    let new = End::ztunnel(&socket(&lab));
    assert_eq!(connected(&new), uids(&lab, &["a", "b", "c"]));
    lab.edit("late.json", &mesh::pod(NODE, "shop/late", &[]).to_string());
    let late = uid(&lab, "late");
    assert!(matches!(new.request().0, Payload::Add(add) if add.uid == late));
    new.ack("");
    old.hears_nothing(QUIET);
    let gone = uid(&lab, "b");
    lab.remove("pod-shop-b.json");
    for ztunnel in [&old, &new] {
        assert!(
            matches!(ztunnel.request(), (Payload::Del(del), inodes) if del.uid == gone && inodes.is_empty())
        );
        ztunnel.ack("");
    }
    // The newest leaves: the one before it serves what it has not heard of.
    drop(new);
    assert!(matches!(old.request().0, Payload::Add(add) if add.uid == late));
    old.ack("");
    lab.remove("late.json");
    assert!(matches!(old.request().0, Payload::Del(del) if del.uid == late));
}

#[test]
fn a_refused_pod_is_offered_again_and_harms_no_other() {
    let lab = bed();
    let bad = uid(&lab, "a");
    let ztunnel = End::ztunnel(&socket(&lab));
    let named = ztunnel.snapshot(|uid| if uid == bad { "Address already in use" } else { "" });
    assert_eq!(named, uids(&lab, &["a", "b", "c"]), "each is named before the snapshot ends");
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let started = Instant::now();
        let (payload, inodes) = ztunnel.request();
        assert!(matches!(payload, Payload::Add(add) if add.uid == bad), "only what was refused");
        assert_eq!(inodes.len(), 1);
        pauses.push(started.elapsed());
        ztunnel.ack("Address already in use");
    }
    assert!(pauses[2] > pauses[0], "it backs off: {pauses:?}");
    assert!(matches!(ztunnel.request().0, Payload::Add(add) if add.uid == bad));
    ztunnel.ack("");
    ztunnel.hears_nothing(2 * QUIET);
    let log = lab.node(NODE).agent_log();
    let reported = |line: &str| line.contains(&bad) && line.contains("Address already in use");
    assert!(log.lines().any(reported), "{log}");
}

#[test]
fn who_does_not_answer_is_cut_off_and_holds_nobody_up() {
    let lab = bed();
    let socket = socket(&lab);
    let silent = End::connect(&socket);
    let never = End::ztunnel(&socket);
    assert!(matches!(never.request().0, Payload::Add(_)));
    let good = End::ztunnel(&socket);
    let started = Instant::now();
    assert_eq!(connected(&good), uids(&lab, &["a", "b", "c"]));
    assert!(started.elapsed() < ANSWER, "the good one does not wait for the others");
    never.closes();
    silent.closes();
    assert!(started.elapsed() < 2 * ANSWER);
    good.hears_nothing(QUIET);
    let log = lab.node(NODE).agent_log();
    for reason in ["no Hello within 5 s", "no answer to Add of pod"] {
        assert!(log.contains(reason), "no {reason} in {log}");
    }
}

#[test]
fn who_breaks_the_protocol_is_cut_off_at_once() {
    let lab = bed();
    let socket = socket(&lab);
    let mistakes: [Mistake<'_>; 6] = [
        ("ZDS version 0", &|end| end.send_bytes(&[8, 0], &[])),
        ("ZDS version 7", &|end| end.send_bytes(&[8, 7], &[])),
        ("undecodable", &|end| end.send_bytes(b"\xff\xff\xff", &[])),
        ("truncated", &|end| end.send_bytes(&[0; 2000], &[])),
        ("unexpected descriptor", &|end| end.send_bytes(&[8, 1], &[0])),
        ("no acknowledgement", &|end| {
            end.send(&proto::ZdsHello { version: 1 }, &[]);
            end.request();
            // A field that nobody knows, since a packet without a byte would read as the end of the connection.
            end.send_bytes(&[0x1a, 0], &[]);
        }),
    ];
    for (reason, make) in mistakes {
        let end = End::connect(&socket);
        make(&end);
        end.closes();
        let logged = || lab.node(NODE).agent_log().contains(reason);
        assert!(wait_until(DEADLINE, logged), "no {reason} in {}", lab.node(NODE).agent_log());
    }
    let chatty = End::ztunnel(&socket);
    connected(&chatty);
    chatty.ack("");
    assert!(chatty.closes() < ANSWER, "nothing was asked");
    let good = End::ztunnel(&socket);
    assert_eq!(connected(&good), uids(&lab, &["a", "b", "c"]), "the next is served");
}

#[test]
fn pods_stay_captured_while_no_ztunnel_is_there() {
    let mut lab = bed();
    traffic::serve(lab.pod("b"), 7000, traffic::echo).expect("a free port");
    let to = SocketAddr::new(lab.pod("b").ipv4(), 7000);
    let open = |lab: &Lab, from: &str| traffic::request(lab.pod(from), to, b"hello").is_ok();
    let closed = |lab: &Lab| !open(lab, "a") && !open(lab, "legacy");
    assert!(wait_until(DEADLINE, || closed(&lab)), "rules without a ztunnel refuse, in and out");
    connected(&End::ztunnel(&socket(&lab)));
    assert!(closed(&lab), "nor does one that has left open anything");
    lab.node_mut(NODE).kill_agent();
    assert!(closed(&lab), "nor does the end of the agent");
    lab.start_agent(NODE).expect("it starts");
    assert_eq!(connected(&End::ztunnel(&socket(&lab))), uids(&lab, &["a", "b", "c"]));
    assert!(closed(&lab));
}

#[test]
fn a_namespace_that_cannot_be_captured_is_kept_by_who_serves_it() {
    let mut lab = bed();
    connected(&End::ztunnel(&socket(&lab)));
    lab.node_mut(NODE).kill_agent();
    let (file, away) =
        (namespace::path(lab.pod("b").namespace()), namespace::path(&format!("{}.away", lab.name())));
    assert!(fs::metadata(&file).expect("it is there").ino() > 0);
    fs::write(&away, "").expect("a mount point");
    nix::mount::mount(Some(&file), &away, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)
        .expect("root");
    nix::mount::umount2(&file, nix::mount::MntFlags::MNT_DETACH).expect("it was mounted");
    lab.start_agent(NODE).expect("it starts");
    let ztunnel = End::ztunnel(&socket(&lab));
    let mut kept = Vec::new();
    let mut added = Vec::new();
    loop {
        match ztunnel.request().0 {
            Payload::Add(add) => added.push(add.uid),
            Payload::Keep(keep) => kept.push(keep.uid),
            Payload::SnapshotSent(_) => break ztunnel.ack(""),
            other => panic!("{other:?} in a snapshot"),
        }
        ztunnel.ack("");
    }
    assert_eq!((added.len(), kept), (2, vec![uid(&lab, "b")]));
    nix::mount::mount(Some(&away), &file, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)
        .expect("root");
    assert!(
        matches!(ztunnel.request().0, Payload::Add(add) if add.uid == uid(&lab, "b")),
        "it is there again"
    );
    ztunnel.ack("");
    namespace::remove(&format!("{}.away", lab.name())).expect("it was made");
}

#[test]
fn a_proxy_of_this_project_may_take_a_turn() {
    let mut lab = bed();
    traffic::serve(lab.pod("b"), 7000, traffic::echo).expect("a free port");
    let to = SocketAddr::new(lab.pod("b").ipv4(), 7000);
    let served =
        |lab: &Lab| traffic::request(lab.pod("a"), to, b"hello").is_ok_and(|reply| reply == b"hello");
    assert!(wait_until(DEADLINE, || !served(&lab)), "the agent captures the pods");
    lab.start_proxy(NODE).expect("it starts");
    assert!(wait_until(DEADLINE, || served(&lab)), "listeners are opened for it");
    assert!(free_ports(&lab, "a").is_empty());
    lab.node_mut(NODE).kill_proxy();
    assert!(wait_until(DEADLINE, || free_ports(&lab, "a") == PORTS), "the ports are the ztunnel's again");
    assert!(!served(&lab), "and the rules stay");
}
