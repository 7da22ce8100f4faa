//! What must not allocate: a route, a decision, and bytes that pass from socket to socket.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use allocation_counter::measure;
use benches::{mesh, sockets};
use ztunnel::route::outbound::route;
use ztunnel_model::OrigDst;
use ztunnel_model::policy::{Connection, decide};

const WORKLOADS: usize = 100;
const SERVICES: usize = 10;
const TIMES: usize = 1000;
const MESSAGE: usize = 1024;

#[test]
fn a_route_allocates_nothing() {
    let (snapshot, own) = (mesh::snapshot(WORKLOADS, SERVICES), mesh::workload(0, SERVICES, 1));
    for (ip, port) in [(mesh::pod_address(7), 8080), (mesh::vip(3), 80), (IpAddr::from([192, 0, 2, 1]), 443)]
    {
        let to = OrigDst::new(SocketAddr::new(ip, port));
        // What a thread keeps for ever, such as its random numbers, is made by the first.
        assert!(route(&snapshot, &own, to, &[]).is_ok());
        let seen = measure(|| {
            for _ in 0..TIMES {
                std::hint::black_box(route(&snapshot, &own, to, &[])).expect("as before");
            }
        });
        assert_eq!(seen.count_total, 0, "towards {ip}: {seen:?}");
    }
}

#[test]
fn a_decision_allocates_nothing() {
    let (snapshot, own) = (mesh::snapshot(WORKLOADS, SERVICES), mesh::workload(0, SERVICES, 1));
    let (source, destination) =
        (SocketAddr::new(mesh::pod_address(1), 40_000), SocketAddr::new(own.addresses[0], 8080));
    let connection = Connection { identity: Some(&own.identity), source, destination };
    assert!(snapshot.policies_for(&own).count() > 0);
    let seen = measure(|| {
        for _ in 0..TIMES {
            assert!(decide(snapshot.policies_for(&own), &connection).is_allowed());
        }
    });
    assert_eq!(seen.count_total, 0, "{seen:?}");
}

/// Allocations of a whole relay that carries so many messages there and back.
fn relayed(messages: usize) -> u64 {
    let ((mut client, near), (far, server)) = (sockets::pair(), sockets::pair());
    let echo = std::thread::spawn(move || sockets::echo(server, MESSAGE));
    let ask = std::thread::spawn(move || {
        let mut buffer = [7; MESSAGE];
        for _ in 0..messages {
            client.write_all(&buffer).expect("the relay reads");
            client.read_exact(&mut buffer).expect("the relay writes");
        }
    });
    let runtime = sockets::runtime();
    let seen = measure(|| runtime.block_on(sockets::relayed(near, far)));
    ask.join().expect("no panic");
    echo.join().expect("no panic");
    seen.count_total
}

#[test]
fn bytes_from_socket_to_socket_allocate_nothing() {
    // The first on a thread also makes the thread's buffer.
    relayed(1);
    assert_eq!(relayed(10), relayed(5_000));
}
