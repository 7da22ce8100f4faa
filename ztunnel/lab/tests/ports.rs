//! Ports that the proxy takes for connections which keep their client's address.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ztunnel_lab::{Lab, Mesh, namespace, traffic};

const DEADLINE: Duration = Duration::from_secs(20);
const PORTS: [u16; 2] = [7000, 7001];
/// For each of them; together more than there are ports to dial from.
const EACH: usize = 8;

#[test]
fn a_clients_ports_are_used_again_for_every_destination() {
    let lab = Lab::for_test(&Mesh::new().pod("node1", "front/web").pod("node2", "shop/cart"), &[]);
    let cart = lab.pod("cart");
    let narrow = || fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40009");
    namespace::run(cart.namespace(), narrow).expect("in the namespace").expect("a setting");
    for port in PORTS {
        traffic::serve(cart, port, traffic::echo).expect("a free port");
    }
    for ip in [cart.ipv4(), cart.ipv6()] {
        let open = |port| {
            let mut stream = lab.pod("web").connect(SocketAddr::new(ip, port), DEADLINE)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            traffic::echoes(&mut stream).map(|()| stream)
        };
        let both = PORTS.into_iter().flat_map(|port| std::iter::repeat_n(port, EACH));
        let held: Result<Vec<TcpStream>, _> = both.map(open).collect();
        assert_eq!(held.expect("each has a port to come from").len(), EACH * PORTS.len());
    }
}
