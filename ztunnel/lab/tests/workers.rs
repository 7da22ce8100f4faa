//! Workers: who is carried where, how many there are while the CPUs change, and what happens when memory is short.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use ztunnel_lab::traffic::echoes;
use ztunnel_lab::{Lab, Mesh, traffic, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);
const PORT: u16 = 7000;

fn lab(environment: &[(&str, &str)]) -> Lab {
    let pods = Mesh::new().pod("node1", "front/web").pod("node1", "front/other").pod("node2", "shop/cart");
    let lab = Lab::for_test(&pods, environment);
    traffic::serve(lab.pod("cart"), PORT, traffic::echo).expect("a free port");
    lab
}

fn open(lab: &Lab, from: &str) -> io::Result<TcpStream> {
    let cart = SocketAddr::new(lab.pod("cart").ipv4(), PORT);
    let mut stream = lab.pod(from).connect(cart, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    echoes(&mut stream)?;
    Ok(stream)
}

/// What the workers of a node carry, by worker.
fn carried(lab: &Lab, node: &str) -> Vec<f64> {
    let metrics = lab.node(node).metrics();
    ["0", "1"].map(|worker| metrics.sum("ztunnel_worker_connections", &[("worker", worker)])).to_vec()
}

fn workers(lab: &Lab, node: &str) -> f64 {
    lab.node(node).metrics().sum("ztunnel_workers", &[])
}

/// Lets the thread that looks at the CPUs see these.
fn allow(lab: &Lab, node: &str, cpus: &CpuSet) {
    let pid = lab.node(node).proxy().expect("it runs").pid();
    sched_setaffinity(Pid::from_raw(pid), cpus).expect("CPUs that there are");
}

#[test]
fn what_a_pod_does_stays_together_and_apart_from_the_others() {
    let lab = lab(&[("ZTUNNEL_WORKER_THREADS", "2")]);
    let webs: Vec<TcpStream> = (0..6).map(|_| open(&lab, "web").expect("it is served")).collect();
    let other = open(&lab, "other").expect("it is served");
    // Two pods on one node; on the other, what two clients send to one pod: a tunnel of each.
    let mut own = carried(&lab, "node1");
    own.sort_by(f64::total_cmp);
    assert_eq!(own, [1.0, 6.0]);
    assert_eq!(carried(&lab, "node2"), [1.0, 1.0]);
    drop((webs, other));
    assert!(wait_until(DEADLINE, || carried(&lab, "node1") == [0.0, 0.0]));
}

#[test]
fn the_number_of_workers_follows_the_cpus_and_no_connection_ends_for_it() {
    let lab = lab(&[("ZTUNNEL_WORKER_THREADS", "0")]);
    let all = sched_getaffinity(Pid::from_raw(0)).expect("this thread may run somewhere");
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or(false)).collect();
    assert!(cpus.len() >= 2, "two CPUs are needed to take one away");
    let mut one = CpuSet::new();
    one.set(cpus[0]).expect("a CPU's number");
    let many = cpus.len() as f64;
    let nodes = ["node1", "node2"];
    assert_eq!(nodes.map(|node| workers(&lab, node)), [many, many]);

    let mut before: Vec<TcpStream> =
        ["web", "other", "web"].map(|pod| open(&lab, pod).expect("it is served")).into();
    for (allowed, count) in [(&one, 1.0), (&all, many), (&one, 1.0)] {
        for node in nodes {
            allow(&lab, node, allowed);
        }
        let follows = || nodes.iter().all(|node| workers(&lab, node) == count);
        assert!(wait_until(DEADLINE, follows), "{count} workers");
        for stream in &mut before {
            echoes(stream).expect("it lives on where it was");
        }
        let mut new: Vec<TcpStream> = ["web", "other", "web", "other"]
            .map(|pod| open(&lab, pod).expect("new ones are accepted"))
            .into();
        for stream in &mut new {
            echoes(stream).expect("and carried");
        }
        before.extend(new);
    }
}

#[test]
fn a_pod_beyond_its_budget_waits_and_nobody_fails() {
    // Sixteen connections of a pod.
    let lab = lab(&[("POD_MEMORY_BUDGET", "128Ki")]);
    let held: Vec<TcpStream> = (0..12).map(|_| open(&lab, "web").expect("it is served")).collect();
    let slowed =
        |lab: &Lab| lab.node("node1").metrics().sum("ztunnel_connections_slowed_total", &[("budget", "pod")]);
    assert_eq!(slowed(&lab), 0.0);
    std::thread::scope(|scope| {
        let crowd: Vec<_> = (0..40)
            .map(|_| {
                scope.spawn(|| {
                    let mut stream = open(&lab, "web")?;
                    (0..50).try_for_each(|_| echoes(&mut stream))
                })
            })
            .collect();
        for one in crowd {
            one.join().expect("no panic").expect("it comes later, but it comes");
        }
        // Others have a budget of their own.
        open(&lab, "other").expect("it is served");
    });
    assert!(slowed(&lab) > 0.0, "somebody had to wait");
    assert!(lab.node("node1").log().contains("memory is short"));
    drop(held);
    open(&lab, "web").expect("there is room");
}

#[test]
fn a_process_beyond_its_budget_slows_down_and_goes_on() {
    let lab = lab(&[("MEMORY_BUDGET", "1Mi")]);
    for _ in 0..3 {
        open(&lab, "web").expect("it comes later, but it comes");
    }
    let slowed =
        lab.node("node1").metrics().sum("ztunnel_connections_slowed_total", &[("budget", "process")]);
    assert!(slowed > 0.0, "a proxy takes more than that");
}
