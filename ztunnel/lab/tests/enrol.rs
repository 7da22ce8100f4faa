//! Pods join and leave the mesh while they talk: whatever is open stays open.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ztunnel_lab::mesh::{self, Mesh};
use ztunnel_lab::{Lab, traffic, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u16 = 7000;
const STREAMS: usize = 50;
const PODS: [(&str, &str); 2] = [("node1", "front/client"), ("node2", "shop/server")];

fn bed() -> Lab {
    let mesh = PODS.into_iter().fold(Mesh::new(), |mesh, (node, path)| mesh.outside(node, path));
    let lab = Lab::for_test(&mesh, &[]);
    traffic::serve(lab.pod("server"), PORT, traffic::echo).expect("a free port");
    lab
}

fn server(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.pod("server").ipv4(), PORT)
}

/// Labels both pods, the server first as a rollout may.
fn label(lab: &mut Lab, mode: &str) {
    for (node, path) in PODS.into_iter().rev() {
        let file = format!("pod-{}.json", path.replace('/', "-"));
        lab.edit(&file, &mesh::pod(node, path, &[("istio.io/dataplane-mode", mode)]).to_string());
    }
}

/// Connections that the server's proxy accepted from the mesh so far.
fn tunnelled(lab: &Lab) -> f64 {
    let labels = [("connection_security_policy", "mutual_tls"), ("reporter", "destination")];
    lab.node("node2").metrics().sum("istio_tcp_connections_opened_total", &labels)
}

/// Waits until new connections go through a tunnel, or past the proxies.
fn settled(lab: &Lab, meshed: bool) {
    let is_settled = || {
        let before = tunnelled(lab);
        let asked = traffic::request(lab.pod("client"), server(lab), b"x");
        asked.is_ok() && (tunnelled(lab) > before) == meshed
    };
    assert!(wait_until(DEADLINE, is_settled), "new connections do not follow the label (meshed: {meshed})");
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    if &answer == b"ping" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn all_live(streams: &mut [TcpStream], when: &str) {
    let failures: Vec<_> = streams.iter_mut().filter_map(|stream| echo(stream).err()).collect();
    assert!(failures.is_empty(), "{when}: {} of {} broken: {failures:?}", failures.len(), streams.len());
}

/// Rules and routing in both pods.
fn rules(lab: &Lab) -> Vec<BTreeSet<Vec<u8>>> {
    let dump = |name: &str| lab.pod(name).run(|| redirect::rules::dump().expect("a dump"));
    ["client", "server"].into_iter().map(|name| dump(name).into_iter().collect()).collect()
}

#[test]
fn connections_outlive_joining_leaving_and_joining_again() {
    let mut lab = bed();
    let (before, to) = (rules(&lab), server(&lab));
    let open = |lab: &Lab| traffic::idle(lab.pod("client"), to, STREAMS).expect("connections");
    let mut streams = open(&lab);
    for round in 0..3 {
        label(&mut lab, "ambient");
        settled(&lab, true);
        all_live(&mut streams, &format!("round {round}: joined"));
        streams.extend(open(&lab));
        label(&mut lab, "none");
        settled(&lab, false);
        all_live(&mut streams, &format!("round {round}: left"));
        streams.extend(open(&lab));
    }
    assert_ne!(rules(&lab), before, "captured connections are still translated");
    drop(streams);
    assert!(wait_until(DEADLINE, || rules(&lab) == before), "the pods are as they were before");
}
