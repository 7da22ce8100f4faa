//! A real proxy in a large mesh: `cargo build --release --bins && cargo run --release -p benches --example proxy
//! [WORKLOADS [SERVICES]]` (1,000,000 in 66,000 unless told), as root.
//!
//! A lab of two nodes comes up. Then its proxies are started anew under an xDS server in this process, which has the lab's
//! pods and a generated mesh: told are the time from the start of the process until it is ready and serves its pods, and
//! its resident memory. Then 10,000 resources a second change while requests run between two pods through both proxies, in
//! turns with as many seconds without changes: told are the latencies of round trips on an open connection and of new
//! connections. The server has the lowest priority, because in a cluster it is on another machine.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use benches::mesh;
use control_plane::ca::authenticate::Nodes;
use control_plane::ca::server::Access;
use control_plane::ca::{Ca, Files, Folders};
use control_plane::index::{self, Index};
use control_plane::resource::{Changes, Kind, Resource};
use control_plane::server;
use control_plane::source::layers::Layers;
use control_plane::xds::{self, Writer};
use ztunnel_lab::{Lab, Mesh, namespace, traffic, wait_until};
use ztunnel_model::codec::Address;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The lab's underlay.
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(172, 30, 0, 1)), 15_112);
const ECHO: u16 = 8080;
const BATCH: usize = 1_000;
const ROUNDS: usize = 6;
const ROUND: Duration = Duration::from_secs(5);
const READY_DEADLINE: Duration = Duration::from_secs(120);

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let workloads: usize = arguments.next().unwrap_or(1_000_000);
    let services: usize = arguments.next().unwrap_or(66_000);
    let mut lab = Lab::for_test(&Mesh::new().pod("node1", "front/web").pod("node2", "shop/cart"), &[]);
    let (mut writer, store) = xds::store();
    let folders = [lab.manifests().to_owned(), parent(lab.added_manifests())];
    writer.apply(Index::new(index::Config::default()).apply(Layers::open(&folders, None).1));
    let generated =
        (0..services).map(service).chain((0..workloads).map(|index| workload(index, services, 1)));
    writer.apply(Changes { set: generated.collect(), removed: Vec::new() });
    writer.complete();
    serve(&lab, store);

    lab.set_environment("XDS_ADDRESS", &format!("https://{SERVER}"));
    for node in ["node2", "node1"] {
        lab.node_mut(node).kill_proxy();
        let start = Instant::now();
        lab.start_proxy(node).expect("it starts");
        assert!(wait_until(READY_DEADLINE, || lab.node(node).is_ready()), "{node} becomes ready");
        let took = start.elapsed();
        let proxy = lab.node(node).proxy().expect("it runs");
        let (resident, peak) = (memory(proxy.pid(), "VmRSS:"), memory(proxy.pid(), "VmHWM:"));
        println!(
            "{node}: {workloads} workloads in {services} services: ready in {took:.2?}, RSS {resident} MB (peak {peak} MB)"
        );
    }

    traffic::serve(lab.pod("cart"), ECHO, traffic::echo).expect("the cart can listen");
    let (mut quiet, mut busy) = (Times::default(), Times::default());
    for round in 0..ROUNDS {
        quiet.measure(&lab, ROUND);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| change(&mut writer, round, workloads, services, &stop));
            busy.measure(&lab, ROUND);
            stop.store(true, Ordering::Relaxed);
        });
    }
    println!("nothing changes:     {}", quiet.summary());
    println!("10,000 changes/s:    {}", busy.summary());
}

/// Changes spread over the mesh, 10,000 a second.
fn change(writer: &mut Writer, round: usize, workloads: usize, services: usize, stop: &AtomicBool) {
    idle_priority();
    let mut due = Instant::now();
    for step in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let spread = |index: usize| (step * BATCH + index).wrapping_mul(7_919) % workloads;
        let set = (0..BATCH).map(|index| workload(spread(index), services, 2 + round * 1_000 + step));
        writer.apply(Changes { set: set.collect(), removed: Vec::new() });
        due += Duration::from_millis(100);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Under a certificate of the lab's CA.
fn serve(lab: &Lab, store: xds::Store) {
    let nodes = Arc::new(Nodes::open(&parent(lab.ca_folder()).join("nodes.json")).expect("the lab's tokens"));
    let state = parent(lab.ca_folder()).join("second-ca");
    std::fs::create_dir(&state).expect("a folder of the lab");
    let folders = Folders { material: lab.ca_folder(), state: state.clone() };
    let ca = Ca::open(Files { folders, revoked: state.join("revoked.yaml") }).expect("the lab's CA");
    let service = xds::service(store, nodes.clone(), Arc::new(xds::Everything), xds::Limits::default());
    let config =
        server::Config { hosts: vec![SERVER.ip().to_string()], max_ttl: Duration::from_secs(86_400) };
    let underlay = lab.underlay();
    std::thread::spawn(move || {
        namespace::run(&underlay, move || {
            idle_priority();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind(SERVER).await.expect("the port is free");
                let access = Access::of(nodes);
                let for_ever = std::future::pending();
                server::serve(listener, Arc::new(ca), access, Some(service), config, for_ever).await
            })
        })
        .expect("the namespace is there")
        .expect("it serves");
    });
}

#[derive(Default)]
struct Times {
    round_trips: Vec<Duration>,
    connections: Vec<Duration>,
}

impl Times {
    fn measure(&mut self, lab: &Lab, long: Duration) {
        let cart = SocketAddr::new(lab.pod("cart").ipv4(), ECHO);
        let seen = lab.pod("web").run(move || Self::of(cart, long)).expect("answers");
        self.round_trips.extend(seen.round_trips);
        self.connections.extend(seen.connections);
    }

    fn of(cart: SocketAddr, long: Duration) -> std::io::Result<Self> {
        let mut times = Self::default();
        let mut open = TcpStream::connect(cart)?;
        open.set_nodelay(true)?;
        let start = Instant::now();
        while start.elapsed() < long {
            let asked = Instant::now();
            round_trip(&mut TcpStream::connect(cart)?)?;
            times.connections.push(asked.elapsed());
            for _ in 0..10 {
                let sent = Instant::now();
                round_trip(&mut open)?;
                times.round_trips.push(sent.elapsed());
            }
        }
        Ok(times)
    }

    fn summary(&mut self) -> String {
        let [trips, connections] = [&mut self.round_trips, &mut self.connections].map(|times| {
            times.sort_unstable();
            let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
            format!("p50 {:.1?}, p99 {:.1?}, p99.9 {:.1?} of {}", at(0.5), at(0.99), at(0.999), times.len())
        });
        format!("round trips {trips}; new connections {connections}")
    }
}

fn round_trip(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]))
}

fn workload(index: usize, services: usize, revision: usize) -> Resource {
    let workload = mesh::workload(index, services, revision);
    resource(workload.uid.to_string(), Some(&workload.node), Address::Workload(Arc::new(workload.clone())))
}

fn service(index: usize) -> Resource {
    let service = mesh::service(index);
    resource(service.key.to_string(), None, Address::Service(Arc::new(service.clone())))
}

fn resource(name: String, node: Option<&str>, address: Address) -> Resource {
    Resource {
        kind: Kind::Address,
        name: name.into(),
        aliases: Vec::new(),
        belongs_to: Vec::new(),
        node: node.map(Into::into),
        body: address.encode().into(),
    }
}

fn parent(file: PathBuf) -> PathBuf {
    file.parent().expect("invariant: a file is in a folder").to_owned()
}

/// Of this thread: the lowest.
fn idle_priority() {
    rustix::process::setpriority_process(None, 19).expect("to be nice is allowed");
}

/// Megabytes of a process.
fn memory(pid: i32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}
