//! The lab's own promise: pods reach each other over both families wherever they are, and nothing is left behind.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ztunnel_lab::lab::{Error, Options};
use ztunnel_lab::node::PodHandle;
use ztunnel_lab::traffic::accept;
use ztunnel_lab::{Lab, Mesh, namespace, traces, wait_until};

const SOON: Duration = Duration::from_secs(10);
fn mesh() -> Mesh {
    Mesh::new().pod("node1", "test/a").pod("node1", "test/b").pod("node2", "test/c")
}

fn up(name: &str) -> Result<Lab, Error> {
    Lab::up(name, &(&mesh()).into(), Options { without_processes: true, ..Options::default() })
}

fn unique(what: &str) -> String {
    format!("{what}{}", std::process::id())
}

fn reaches(from: &PodHandle, to: &PodHandle, address: IpAddr) {
    // Any port: a process that another test forks may hold the last listener open until it executes its program.
    let listener = to.listen(0).expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let mut near = from.connect(SocketAddr::new(address, port), SOON).expect("a way to the pod");
    let (mut far, peer) = accept(&listener, SOON).expect("the connection");
    assert!(from.spec().addresses.contains(&peer.ip().to_canonical()), "{} came as {peer}", from.name());
    near.write_all(b"ping").expect("sent");
    let mut bytes = [0; 4];
    far.read_exact(&mut bytes).expect("received");
    assert_eq!(&bytes, b"ping");
}

#[test]
fn pods_reach_each_other_and_leave_nothing_behind() {
    let name = unique("reach");
    let links = traces::links();
    let lab = up(&name).expect("a lab");
    let (a, b, c) = (lab.pod("a"), lab.pod("b"), lab.pod("c"));
    for (from, to) in [(a, b), (a, c), (c, a)] {
        reaches(from, to, to.ipv4());
        reaches(from, to, to.ipv6());
    }
    for netns in [a.namespace(), lab.node("node1").namespace(), &lab.underlay()] {
        assert!(Path::new("/run/netns").join(netns).exists(), "{netns} is not where ip netns looks");
        let setting = "/proc/sys/net/ipv4/tcp_congestion_control";
        let cubic = namespace::run(netns, move || fs::read_to_string(setting).expect("a setting"));
        assert_eq!(cubic.expect("in the namespace").trim(), "cubic");
    }
    let all = traces::of(&name);
    for what in ["network namespace", "mount", "/run/"] {
        assert!(all.iter().any(|trace| trace.starts_with(what)), "no {what} in {all:?}");
    }
    drop(lab);
    assert_eq!(traces::of(&name), Vec::<String>::new());
    assert_eq!(traces::links(), links);
}

#[test]
fn a_name_is_taken_once_and_down_is_idempotent() {
    let name = unique("twice");
    let lab = up(&name).expect("a lab");
    assert!(matches!(up(&name), Err(Error::Up(_))));
    lab.keep();
    let attached = Lab::attach(&name).expect("it is up");
    reaches(attached.pod("a"), attached.pod("c"), attached.pod("c").ipv4());
    drop(attached);
    assert!(Lab::down(&name).expect("taken down"));
    assert!(!Lab::down(&name).expect("nothing to take down"));
    assert_eq!(traces::of(&name), Vec::<String>::new());
    assert!(matches!(Lab::attach(&name), Err(Error::Down(_))));
}

#[test]
fn programs_inside_end_with_the_lab() {
    idle_if_told();
    let lab = up(&unique("inside")).expect("a lab");
    let mut program = lab.pod("a").run(|| this_program("programs_inside_end_with_the_lab", IDLES, "inside"));
    assert!(program.try_wait().expect("a child").is_none(), "the program runs");
    drop(lab);
    assert!(wait_until(SOON, || program.try_wait().expect("a child").is_some()), "it outlives its pod");
}

/// The maker is another process, killed while the lab comes up, at moments that differ.
#[test]
fn a_half_made_lab_is_taken_down() {
    if let Ok(name) = std::env::var(MAKES) {
        let _lab = up(&name).expect("a lab");
        idle();
    }
    for namespaces in [0, 2, 4] {
        let name = unique(&format!("half{namespaces}-"));
        let mut maker = this_program("a_half_made_lab_is_taken_down", MAKES, &name);
        let made = || traces::of(&name).iter().filter(|trace| trace.starts_with("network namespace")).count();
        assert!(wait_until(SOON, || made() >= namespaces), "the maker makes nothing");
        maker.kill().expect("killed");
        maker.wait().expect("ended");
        // Killed before its first trace, or after; either way nothing may stay.
        Lab::down(&name).expect("taken down");
        assert_eq!(traces::of(&name), Vec::<String>::new(), "after {namespaces} namespaces");
    }
}

/// Names the lab that this process is to make, instead of running the test.
const MAKES: &str = "ZTUNNEL_LAB_TEST_MAKES";
/// Says that this process is to do nothing.
const IDLES: &str = "ZTUNNEL_LAB_TEST_IDLES";

/// This program again, in another role.
fn this_program(test: &str, role: &str, value: &str) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test])
        .env(role, value)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("this program again")
}

fn idle_if_told() {
    if std::env::var_os(IDLES).is_some() {
        idle();
    }
}

/// Parking may end early, and whoever made this process may be gone before it ends it.
fn idle() -> ! {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        std::thread::park_timeout(Duration::from_secs(1));
    }
    std::process::exit(1);
}
