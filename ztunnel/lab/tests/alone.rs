//! The proxy as Istio's chart starts it: as root, beneath istio-cni, with no agent beside it. The agent of an external node
//! plays istio-cni.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ztunnel_lab::mesh::{self, Mesh};
use ztunnel_lab::{Lab, traffic, wait_until};

const NODE: &str = "node1";
const DEADLINE: Duration = Duration::from_secs(20);

fn field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// The process of this program that another one has started.
fn child(parent: i32, program: &str) -> Option<i32> {
    let all = fs::read_dir("/proc").expect("it is there").flatten();
    let mut pids = all.filter_map(|one| one.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        let runs = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path.ends_with(program));
        runs && field(*pid, "PPid") == parent.to_string()
    })
}

#[test]
fn it_starts_the_agent_and_keeps_no_capability() {
    let mesh = Mesh::new().external(NODE).pod(NODE, "shop/a").pod(NODE, "shop/b");
    let mut lab = Lab::for_test(&mesh, &[]);
    traffic::serve(lab.pod("b"), 7000, traffic::echo).expect("a free port");
    let served = |lab: &Lab, from: &str| {
        let to = SocketAddr::new(lab.pod("b").ipv4(), 7000);
        traffic::request(lab.pod(from), to, b"hello").is_ok_and(|reply| reply == b"hello")
    };
    assert!(wait_until(DEADLINE, || !served(&lab, "a")), "the pods are captured");
    lab.start_proxy_alone(NODE).expect("it starts");
    assert!(wait_until(DEADLINE, || served(&lab, "a")), "{}", lab.node(NODE).log());
    let parent = lab.node(NODE).proxy().expect("it was started").pid();
    let proxy = child(parent, "ztunnel").expect("it is the one that serves");
    for held in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(field(proxy, held).trim_start_matches('0'), "", "{held}");
    }
    assert_eq!(field(proxy, "NoNewPrivs"), "1");

    let agent = child(parent, "ztunnel-redirect").expect("it was started");
    kill(Pid::from_raw(agent), Signal::SIGKILL).expect("it runs");
    let another = || child(parent, "ztunnel-redirect").is_some_and(|now| now != agent);
    assert!(wait_until(DEADLINE, another), "it is started again");
    lab.edit("late.json", &mesh::pod(NODE, "shop/late", &[]).to_string());
    assert!(
        wait_until(DEADLINE, || served(&lab, "late")),
        "the new one tells of pods: {}",
        lab.node(NODE).log()
    );
    assert_eq!(child(parent, "ztunnel"), Some(proxy), "the proxy goes on");

    let agent = child(parent, "ztunnel-redirect").expect("it runs");
    kill(Pid::from_raw(parent), Signal::SIGTERM).expect("it runs");
    let ended = || [proxy, agent].iter().all(|pid| matches!(field(*pid, "State").get(..1), None | Some("Z")));
    assert!(wait_until(DEADLINE, ended), "both end with it");
}
