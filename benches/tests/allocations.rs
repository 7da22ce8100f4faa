//! What must not allocate: a route, a decision, and bytes that pass from socket to socket.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use allocation_counter::measure;
use benches::mesh;
use tokio::net::TcpStream;
use ztunnel::relay::{Side, relay, tcp};
use ztunnel::route::outbound::route;
use ztunnel::state::{Applier, Batch, Origin, Snapshot};
use ztunnel_model::OrigDst;
use ztunnel_model::codec::Address;
use ztunnel_model::policy::{Connection, Scope, decide};

const WORKLOADS: usize = 100;
const SERVICES: usize = 10;
const TIMES: usize = 1000;

fn snapshot() -> Snapshot {
    let mut applier = Applier::new(Some(&mesh::node(0)));
    let workloads = (0..WORKLOADS).map(|index| mesh::workload(index, SERVICES, 1));
    let services = (0..SERVICES).map(|index| Address::Service(Arc::new(mesh::service(index))));
    let addresses = workloads.map(|one| Address::Workload(Arc::new(one))).chain(services).collect();
    let policies = (0..SERVICES).map(|index| mesh::policy(index, Scope::Namespace)).collect();
    applier.apply(Origin::Discovery, Batch { addresses, policies, ..Batch::default() });
    applier.snapshot()
}

#[test]
fn a_route_allocates_nothing() {
    let (snapshot, own) = (snapshot(), mesh::workload(0, SERVICES, 1));
    let service = IpAddr::from(Ipv4Addr::from(0x0a60_0003));
    for (ip, port) in [(mesh::pod_address(7), 8080), (service, 80), (IpAddr::from([192, 0, 2, 1]), 443)] {
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
    let (snapshot, own) = (snapshot(), mesh::workload(0, SERVICES, 1));
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

/// Both ends of a connection.
fn pair() -> (std::net::TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    let near = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("it connects");
    (near, listener.accept().expect("it was connected to").0)
}

/// Allocations of a whole relay that carries so many messages there and back.
fn relayed(messages: usize) -> u64 {
    let ((mut client, near), (far, mut server)) = (pair(), pair());
    let echo = std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while server.read_exact(&mut buffer).is_ok() {
            server.write_all(&buffer).expect("the relay reads");
        }
    });
    let ask = std::thread::spawn(move || {
        let mut buffer = [7; 1024];
        for _ in 0..messages {
            client.write_all(&buffer).expect("the relay reads");
            client.read_exact(&mut buffer).expect("the relay writes");
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let seen = measure(|| {
        runtime.block_on(async {
            let [mut near, mut far] = [near, far].map(|stream| {
                stream.set_nonblocking(true).expect("an option");
                TcpStream::from_std(stream).expect("a runtime is here")
            });
            let near = tcp::halves(&mut near, Side::Application);
            relay(near, tcp::halves(&mut far, Side::Far), |_| {}, |_| {}).await.expect("clean ends");
        });
    });
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
