//! Where it is measured: two nodes of the lab and their pods, new for each variant and round.
//!
//! ```text
//! node a: client, mouse, near            node b: far
//! ```
//!
//! `near` and `far` serve; each port is another server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ztunnel_lab::addresses::node_addresses;
use ztunnel_lab::lab::Options;
use ztunnel_lab::node::PodHandle;
use ztunnel_lab::{Lab, Mesh, bulk, namespace, traffic, wait_until};

use crate::load;
use crate::peer::{self, Peer};
use crate::relay::Route;
use crate::variant::Variant;

pub const ECHO: u16 = 9007;
pub const BULK: u16 = 9008;
pub const HTTP: u16 = 9009;
pub const ENDLESS: u16 = 9010;
const PORTS: [u16; 4] = [ECHO, BULK, HTTP, ENDLESS];
/// A relay's port for the server on the same node.
const NEAR: u16 = 1000;
const NODES: [&str; 2] = ["a", "b"];
const READY: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Lab(#[from] ztunnel_lab::Error),
    #[error(transparent)]
    Peer(#[from] peer::Error),
    #[error("{variant} does not serve within {READY:?}: {reason}\n{log}")]
    NotReady { variant: String, reason: String, log: String },
    #[error("interrupted")]
    Interrupted,
    #[error("{what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
}

/// Where the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// On the client's node.
    Near,
    Far,
}

pub struct Bed {
    lab: Lab,
    relayed: bool,
    /// How long the first connection took, which brought the tunnel up.
    pub first_connection: Duration,
}

/// Nobody keeps closed connections in TIME-WAIT: after some thousand new ones a second, what is measured would be how a client
/// looks for a free port.
fn forget_closed(lab: &Lab) -> std::io::Result<()> {
    let forget = || std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0");
    let nodes = lab.nodes().iter().map(|node| node.namespace());
    let mut each = nodes.chain(lab.pods().iter().map(|pod| pod.namespace()));
    each.try_for_each(|name| namespace::run(name, forget).map_err(std::io::Error::other)?)
}

impl Bed {
    pub fn make(variant: &Variant, congestion: &str) -> Result<Self, Error> {
        let mut mesh = Mesh::new();
        for (node, pod) in [("a", "client"), ("a", "mouse"), ("a", "near"), ("b", "far")] {
            let path = format!("perf/{pod}");
            mesh = match variant {
                Variant::Direct | Variant::Relay => mesh.outside(node, &path),
                Variant::Ours { .. } | Variant::Plain | Variant::Peer(_) => mesh.pod(node, &path),
            };
        }
        if matches!(variant, Variant::Peer(_)) {
            mesh = NODES.into_iter().fold(mesh, Mesh::external);
        }
        let mut options = Options { congestion: Some(congestion.to_owned()), ..Options::default() };
        match variant {
            Variant::Direct | Variant::Relay => options.without_processes = true,
            Variant::Ours { environment, .. } => options.environment.clone_from(environment),
            Variant::Plain => options.environment = vec![("SAME_NODE".to_owned(), "plain".to_owned())],
            Variant::Peer(_) => {}
        }
        let name = format!("perf{}", std::process::id());
        let lab = Lab::up(&name, &(&mesh).into(), options)?;
        forget_closed(&lab).map_err(|source| Error::Io { what: "settings of the pods", source })?;
        let relayed = *variant == Variant::Relay;
        let mut bed = Self { lab, relayed, first_connection: Duration::ZERO };
        bed.serve().map_err(|source| Error::Io { what: "servers", source })?;
        match variant {
            Variant::Relay => bed.start_relays()?,
            Variant::Peer(peer) => bed.start_peers(peer)?,
            Variant::Direct | Variant::Ours { .. } | Variant::Plain => {}
        }
        bed.wait_serving(variant)?;
        Ok(bed)
    }

    fn serve(&self) -> std::io::Result<()> {
        for pod in ["near", "far"] {
            let pod = self.lab.pod(pod);
            load::serve_echo(pod, ECHO)?;
            bulk::serve(pod, BULK)?;
            load::serve(pod, HTTP)?;
            load::serve_endless(pod, ENDLESS)?;
        }
        Ok(())
    }

    fn start_relays(&mut self) -> Result<(), Error> {
        let [near, far] = ["near", "far"].map(|pod| self.lab.pod(pod).ipv4());
        let next = self.node_address("b");
        let program = std::env::current_exe().map_err(|source| Error::Io { what: "this program", source })?;
        for node in NODES {
            let routes = PORTS.into_iter().flat_map(|port| match node {
                "a" => vec![
                    Route { port, to: SocketAddr::new(next, port) },
                    Route { port: port + NEAR, to: SocketAddr::new(near, port) },
                ],
                _ => vec![Route { port, to: SocketAddr::new(far, port) }],
            });
            let arguments = ["relay".to_owned()].into_iter().chain(routes.map(|route| route.to_string()));
            self.lab.start_external(node, &program, arguments.collect(), Vec::new())?;
        }
        Ok(())
    }

    fn start_peers(&mut self, peer: &Peer) -> Result<(), Error> {
        for node in NODES {
            let start = peer.start(&self.lab.external_environment(node), |name| std::env::var(name).ok())?;
            self.lab.start_external(node, &start.program, start.arguments, start.environment)?;
        }
        let ready = peer.ready();
        for node in NODES {
            let node = self.lab.node(node);
            let answers =
                || node.http("GET", ready.port, &ready.path).is_ok_and(|answer| answer.status == 200);
            if !wait_until(READY, answers) {
                let reason = format!("{}{} of node {} is not 200", ready.port, ready.path, node.name());
                return Err(self.not_ready(&peer.name, reason));
            }
        }
        Ok(())
    }

    /// Until a request passes; the first that does is the one that is timed.
    fn wait_serving(&mut self, variant: &Variant) -> Result<(), Error> {
        let mut reason = String::new();
        for place in [Place::Far, Place::Near] {
            let (client, to) = (self.client().clone(), self.to(place, ECHO));
            let mut took = Duration::ZERO;
            let passes = || {
                let started = std::time::Instant::now();
                match traffic::round_trips(&client, to, 1) {
                    Ok(_) => {
                        took = started.elapsed();
                        true
                    }
                    Err(error) => {
                        reason = error.to_string();
                        false
                    }
                }
            };
            if !wait_until(READY, passes) {
                return Err(self.not_ready(variant.name(), reason));
            }
            if place == Place::Far {
                self.first_connection = took;
            }
        }
        Ok(())
    }

    fn not_ready(&self, variant: &str, reason: String) -> Error {
        let log = NODES.map(|node| self.lab.node(node).log());
        let log = log.iter().flat_map(|log| {
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(10)..].join("\n").into_bytes()
        });
        let log = String::from_utf8_lossy(&log.collect::<Vec<_>>()).into_owned();
        Error::NotReady { variant: variant.to_owned(), reason, log }
    }

    pub fn client(&self) -> &PodHandle {
        self.lab.pod("client")
    }

    pub fn mouse(&self) -> &PodHandle {
        self.lab.pod("mouse")
    }

    /// Where a client connects to for a port of a server.
    pub fn to(&self, place: Place, port: u16) -> SocketAddr {
        match (place, self.relayed) {
            (Place::Near, false) => SocketAddr::new(self.lab.pod("near").ipv4(), port),
            (Place::Far, false) => SocketAddr::new(self.lab.pod("far").ipv4(), port),
            (Place::Near, true) => SocketAddr::new(self.node_address("a"), port + NEAR),
            (Place::Far, true) => SocketAddr::new(self.node_address("a"), port),
        }
    }

    fn node_address(&self, node: &str) -> IpAddr {
        let number = self.lab.cluster().node_number(node).expect("invariant: a node of this bed");
        node_addresses(number).0.into()
    }

    /// The proxies and their nodes' agents, which make sockets for them; nothing where nobody is between the pods.
    pub fn proxies(&self) -> Vec<i32> {
        let nodes = NODES.into_iter().map(|node| self.lab.node(node));
        let each = nodes.flat_map(|node| [node.proxy(), node.agent()]);
        each.flatten().map(|process| process.pid()).collect()
    }
}
