//! What of a pod's traffic is not captured: the node's health probes, UDP, and what stays within the pod.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::unistd::{Uid, setfsuid};
use socket2::{Domain, Socket, Type};
use ztunnel_lab::traffic::accept;
use ztunnel_lab::{Lab, Mesh, namespace, network, traffic, wait_until};

const DEADLINE: Duration = Duration::from_secs(10);
const PORT: u16 = 7000;
/// The node's own health probes come from these; the rules know them.
const PROBE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
const PROBE_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);
/// Their neighbours, which are nobody in particular.
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 126);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xfffe);

/// Plaintext through the proxy is refused everywhere, so whatever plaintext arrives has not passed it.
fn mesh() -> Mesh {
    let strict = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: default}
spec: {mtls: {mode: STRICT}}
";
    Mesh::new().pod("node1", "default/client").pod("node2", "default/server").file("strict.yaml", strict)
}

fn ips(lab: &Lab, pod: &str) -> [IpAddr; 2] {
    [lab.pod(pod).ipv4(), lab.pod(pod).ipv6()]
}

/// Users of the node.
const KUBELET: u32 = 0;
const SOMEBODY: u32 = 1000;

/// Connections of any kind that the proxies of both nodes saw.
fn seen_by_proxies(lab: &Lab) -> f64 {
    let names = ["istio_tcp_connections_opened_total", "istio_tcp_connections_failed_total"];
    let nodes = ["node1", "node2"].map(|node| lab.node(node).metrics());
    nodes.iter().flat_map(|metrics| names.map(|name| metrics.sum(name, &[]))).sum()
}

fn denials(lab: &Lab) -> f64 {
    lab.node("node2").metrics().sum("istio_tcp_connections_failed_total", &[("response_flags", "DENY")])
}

/// Asks the server's echo from an address of its node, as a user of it.
fn ask_from_node(lab: &Lab, user: u32, from: IpAddr, to: IpAddr) -> io::Result<Vec<u8>> {
    let ask = move || -> io::Result<Vec<u8>> {
        // Of this thread only; a socket is the user's who made it.
        setfsuid(Uid::from_raw(user));
        let socket = Socket::new(Domain::for_address(SocketAddr::new(to, PORT)), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect_timeout(&SocketAddr::new(to, PORT).into(), DEADLINE)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"healthy?")?;
        let mut reply = [0; 8];
        stream.read_exact(&mut reply)?;
        Ok(reply.to_vec())
    };
    namespace::run(lab.node("node2").namespace(), ask).expect("the node is there")
}

#[test]
fn probes_of_the_node_reach_the_application_and_nobody_else_does() {
    let lab = Lab::for_test(&mesh(), &[]);
    traffic::serve(lab.pod("server"), PORT, traffic::echo).expect("a free port");
    let addresses =
        [(PROBE_V4.into(), 32), (OTHER_V4.into(), 32), (PROBE_V6.into(), 128), (OTHER_V6.into(), 128)];
    network::configure(lab.node("node2").namespace(), "pods0", addresses.into(), Vec::new())
        .expect("addresses for the node");
    let [four, six] = ips(&lab, "server");
    let kubelets = [(OTHER_V4.into(), four), (OTHER_V6.into(), six)].map(|(from, to)| (KUBELET, from, to));
    let probes = [(PROBE_V4.into(), four), (PROBE_V6.into(), six)].map(|(from, to)| (SOMEBODY, from, to));
    for (user, from, to) in kubelets.into_iter().chain(probes) {
        let reply =
            ask_from_node(&lab, user, from, to).unwrap_or_else(|error| panic!("from {from}: {error}"));
        assert_eq!(reply, b"healthy?");
    }
    assert_eq!(seen_by_proxies(&lab), 0.0, "probes go past the proxy");
    for (count, (other, to)) in [(OTHER_V4.into(), four), (OTHER_V6.into(), six)].into_iter().enumerate() {
        let error = ask_from_node(&lab, SOMEBODY, other, to).expect_err("plaintext is refused");
        assert!(
            matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset),
            "{other} must be refused by policy, not {error}"
        );
        assert!(
            wait_until(DEADLINE, || denials(&lab) == (count + 1) as f64),
            "{other} is denied and counted"
        );
    }
}

#[test]
fn udp_between_pods_passes_untouched() {
    let lab = Lab::for_test(&mesh(), &[]);
    let open = |pod: &str, ip: IpAddr, port: u16| {
        let socket = lab.pod(pod).run(move || UdpSocket::bind((ip, port))).expect("a free port");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout above zero");
        socket
    };
    for (from, to) in ips(&lab, "client").into_iter().zip(ips(&lab, "server")) {
        // Numbers that mean something to the rules, in TCP.
        for port in [PORT, redirect::OUTBOUND_PORT, redirect::PLAINTEXT_PORT, redirect::HBONE_PORT] {
            let (client, server) = (open("client", from, 0), open("server", to, port));
            let (here, there) = (client.local_addr().expect("bound"), SocketAddr::new(to, port));
            let mut buffer = [0; 16];
            client.send_to(b"question", there).expect("sent");
            let (length, peer) = server.recv_from(&mut buffer).expect("it arrives");
            assert_eq!((&buffer[..length], peer), (&b"question"[..], here));
            server.send_to(b"answer", peer).expect("sent");
            let (length, peer) = client.recv_from(&mut buffer).expect("it arrives");
            assert_eq!((&buffer[..length], peer), (&b"answer"[..], there));
        }
    }
    assert_eq!(seen_by_proxies(&lab), 0.0);
}

#[test]
fn loopback_within_a_pod_is_left_alone() {
    let lab = Lab::for_test(&mesh(), &[]);
    for ip in
        [Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(127, 0, 0, 2).into(), IpAddr::from(Ipv6Addr::LOCALHOST)]
    {
        // An application that listens on loopback alone can only be reached on it.
        let listener = lab.pod("server").run(move || TcpListener::bind((ip, PORT))).expect("a free port");
        let to = listener.local_addr().expect("bound");
        let mut client = lab.pod("server").connect(to, DEADLINE).expect("a connection");
        let (mut served, peer) = accept(&listener, DEADLINE).expect("it arrives");
        assert_eq!(Ok(peer), client.local_addr().map_err(|error| error.kind()), "nobody is in between");
        client.write_all(b"x").expect("sent");
        served.read_exact(&mut [0]).expect("it arrives");
    }
    assert_eq!(seen_by_proxies(&lab), 0.0);
}
