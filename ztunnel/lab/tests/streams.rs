//! What an application may expect of a TCP connection, also when it is a stream in a tunnel. By either backend.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use ztunnel_lab::traffic::accept;
use ztunnel_lab::{Lab, Mesh, traffic, wait_until};

#[macro_use]
mod backend;

const DEADLINE: Duration = Duration::from_secs(20);

on_both_backends! {
    mesh(), &[],
    every_way_between_pods_keeps_the_callers_address_and_is_counted,
    a_service_spreads_and_survives_a_dead_endpoint,
    the_server_may_speak_first_and_each_direction_ends_by_itself,
    both_ends_log_one_trace,
    resets_are_carried_both_ways,
    a_reset_after_a_half_close_is_carried_although_the_other_side_is_silent,
    one_byte_and_a_hundred_megabytes_arrive_unharmed,
    two_thousand_connections_at_once,
    a_pod_that_calls_itself_is_left_alone_and_cannot_loop,
}

fn mesh() -> Mesh {
    let service = "
apiVersion: v1
kind: Service
metadata: {name: both, namespace: default}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd00:96::1']
  selector: {serves: both}
  ports: [{port: 80, targetPort: 7000}]
";
    Mesh::new()
        .pod("node1", "default/client")
        .pod("node1", "default/near")
        .labelled("node2", "default/server", &[("serves", "both")])
        .labelled("node2", "default/second", &[("serves", "both")])
        .outside("node2", "default/outside")
        .file("service.yaml", service)
}

/// Both ends of one connection from a pod to another.
fn pair(lab: &Lab, from: &str, to: &str, port: u16) -> (TcpStream, TcpStream) {
    let listener = lab.pod(to).listen(port).expect("a free port");
    let addr = SocketAddr::new(lab.pod(to).ipv4(), port);
    let client = lab.pod(from).connect(addr, DEADLINE).expect("a connection");
    let (server, _) = accept(&listener, DEADLINE).expect("the connection arrives at the application");
    (client, server)
}

fn read_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Closes so that the peer sees RST.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
    drop(stream);
}

fn every_way_between_pods_keeps_the_callers_address_and_is_counted(lab: &mut Lab) {
    for (index, (to, mutual_tls)) in
        [("server", true), ("near", true), ("outside", false)].into_iter().enumerate()
    {
        for (family, port) in [(4, 7100 + index as u16), (6, 7200 + index as u16)] {
            let (client, pod) = (lab.pod("client"), lab.pod(to));
            let listener = pod.listen(port).expect("a free port");
            let (from, ip) =
                if family == 4 { (client.ipv4(), pod.ipv4()) } else { (client.ipv6(), pod.ipv6()) };
            let mut stream = client.connect(SocketAddr::new(ip, port), DEADLINE).expect("a connection");
            let (mut served, peer) =
                accept(&listener, DEADLINE).expect("the connection arrives at the application");
            assert_eq!(peer.ip().to_canonical(), from, "the application sees who called");
            stream.write_all(b"hello world").expect("sent");
            stream.shutdown(Shutdown::Write).expect("half-closed");
            assert_eq!(read_all(&mut served).expect("received"), b"hello world");
            served.write_all(b"a reply of 22 bytes ..").expect("sent");
            drop(served);
            assert_eq!(read_all(&mut stream).expect("received"), b"a reply of 22 bytes ..");
        }
        let policy = if mutual_tls { "mutual_tls" } else { "unknown" };
        let labels =
            [("reporter", "source"), ("destination_workload", to), ("connection_security_policy", policy)];
        let node = lab.node("node1");
        let counted = || node.metrics().sum("istio_tcp_connections_closed_total", &labels) == 2.0;
        assert!(wait_until(DEADLINE, counted), "{}", node.metrics().0);
        assert_eq!(node.metrics().sum("istio_tcp_received_bytes_total", &labels), 22.0);
        assert_eq!(node.metrics().sum("istio_tcp_sent_bytes_total", &labels), 44.0);
    }
    let labels = [("reporter", "destination"), ("destination_workload", "server")];
    assert_eq!(lab.node("node2").metrics().sum("istio_tcp_received_bytes_total", &labels), 22.0);
}

fn a_service_spreads_and_survives_a_dead_endpoint(lab: &mut Lab) {
    let first = lab.pod("server");
    traffic::serve(first, 7000, |mut stream| stream.write_all(b"1")).expect("a free port");
    let ask = |vip: &str| {
        let mut stream =
            lab.pod("client").connect(vip.parse().expect("a literal"), DEADLINE).expect("a connection");
        read_all(&mut stream)
    };
    // Nobody listens in the second pod: its endpoint is dead.
    for _ in 0..20 {
        assert_eq!(ask("10.96.0.1:80").expect("the living endpoint answers"), b"1");
    }
    traffic::serve(lab.pod("second"), 7000, |mut stream| stream.write_all(b"2")).expect("a free port");
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..60 {
        seen.insert(ask("[fd00:96::1]:80").expect("an answer"));
    }
    assert_eq!(seen.len(), 2, "both endpoints serve");
}

fn the_server_may_speak_first_and_each_direction_ends_by_itself(lab: &mut Lab) {
    let (mut client, mut server) = pair(lab, "client", "server", 7000);
    server.write_all(b"220 ready").expect("sent");
    let mut greeting = [0; 9];
    client.read_exact(&mut greeting).expect("the server's first words");
    client.shutdown(Shutdown::Write).expect("half-closed");
    assert!(read_all(&mut server).expect("a clean end").is_empty());
    let ten_megabytes = traffic::pattern(10_000_000);
    let sender = {
        let bytes = ten_megabytes.clone();
        std::thread::spawn(move || server.write_all(&bytes).map(|()| drop(server)))
    };
    assert!(read_all(&mut client).expect("the other direction goes on") == ten_megabytes);
    sender.join().expect("no panic").expect("all sent");
}

fn both_ends_log_one_trace(lab: &mut Lab) {
    let (client, server) = pair(lab, "client", "server", 7700);
    drop((client, server));
    let trace = |node: &str, direction: &str| {
        let log = lab.node(node).log();
        let ours = |line: &&str| {
            line.contains("connection complete")
                && line.contains("dst.hbone_addr=")
                && line.contains(":7700")
                && line.contains(&format!("direction=\"{direction}\""))
        };
        let line = log.lines().find(ours)?;
        Some(line.split_once("trace.id=")?.1.split(' ').next()?.to_owned())
    };
    let both = || (trace("node1", "outbound"), trace("node2", "inbound"));
    assert!(wait_until(DEADLINE, || matches!(both(), (Some(_), Some(_)))), "{:?}", both());
    let (here, there) = both();
    assert_eq!(here, there);
    assert_eq!(here.map(|id| id.len()), Some(32));
}

fn resets_are_carried_both_ways(lab: &mut Lab) {
    for (port, to) in [(7000, "server"), (7001, "outside")] {
        let (client, mut server) = pair(lab, "client", to, port);
        reset(client);
        let error = server.read(&mut [0]).expect_err("a reset is no clean end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "client resets, {to}");
        let (mut client, server) = pair(lab, "client", to, port + 10);
        reset(server);
        let error = client.read(&mut [0]).expect_err("a reset is no clean end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "server resets, {to}");
    }
}

fn a_reset_after_a_half_close_is_carried_although_the_other_side_is_silent(lab: &mut Lab) {
    for (port, to) in [(7000, "server"), (7001, "outside")] {
        for port in [port, port + 10] {
            let (client, server) = pair(lab, "client", to, port);
            let (first, mut other) = if port < 7010 { (client, server) } else { (server, client) };
            first.shutdown(Shutdown::Write).expect("half-closed");
            assert!(read_all(&mut other).expect("a clean end").is_empty());
            assert!(other.take_error().expect("an option").is_none(), "half-closed is not reset");
            reset(first);
            let seen = || other.take_error().expect("an option").is_some();
            assert!(wait_until(DEADLINE, seen), "port {port} of {to}");
        }
    }
}

fn one_byte_and_a_hundred_megabytes_arrive_unharmed(lab: &mut Lab) {
    traffic::serve(lab.pod("server"), 7000, traffic::sink).expect("a free port");
    let to = SocketAddr::new(lab.pod("server").ipv4(), 7000);
    for length in [0, 1, 100_000_000] {
        traffic::upload(lab.pod("client"), to, length)
            .unwrap_or_else(|error| panic!("{length} bytes: {error}"));
    }
}

fn two_thousand_connections_at_once(lab: &mut Lab) {
    traffic::serve(lab.pod("server"), 7000, traffic::echo).expect("a free port");
    let to = SocketAddr::new(lab.pod("server").ipv4(), 7000);
    let threads: Vec<_> = (0..20)
        .map(|_| {
            let pod = lab.pod("client").clone();
            std::thread::spawn(move || traffic::idle(&pod, to, 100))
        })
        .collect();
    let streams: Vec<_> =
        threads.into_iter().map(|thread| thread.join().expect("no panic").expect("all connect")).collect();
    let uid = lab.pod("client").spec().uid();
    let live = || {
        let dump = lab.node("node1").config_dump();
        dump["workloadState"][&uid]["connections"]["outbound"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(live(), 2000);
    drop(streams);
    assert!(wait_until(DEADLINE, || live() == 0), "{} connections are still listed", live());
}

fn a_pod_that_calls_itself_is_left_alone_and_cannot_loop(lab: &mut Lab) {
    let (mut client, mut server) = pair(lab, "server", "server", 7000);
    client.write_all(b"x").expect("sent");
    server.read_exact(&mut [0]).expect("received");
    let own = SocketAddr::new(lab.pod("server").ipv4(), redirect::PLAINTEXT_PORT);
    // The refusal may be quicker than the end of connect.
    let refused = lab.pod("client").connect(own, DEADLINE).and_then(|mut looped| looped.read(&mut [0]));
    let error = refused.expect_err("a call to the proxy's own port is refused");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    let outbound =
        lab.node("node2").metrics().sum("istio_tcp_connections_opened_total", &[("reporter", "source")]);
    assert_eq!(outbound, 0.0, "a pod that calls its own address is not captured");
}
