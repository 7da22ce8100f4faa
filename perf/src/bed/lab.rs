//! A bed of the lab: two nodes and their pods, new for each variant and round.
//!
//! ```text
//! node a: client, mouse, near            node b: far
//! ```
//!
//! `near` and `far` serve; each port is another server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ztunnel_lab::addresses::node_addresses;
use ztunnel_lab::lab::Options;
use ztunnel_lab::{Lab, Mesh, namespace, traffic, wait_until};

use super::{BULK, Bed, ECHO, ENDLESS, Ends, HTTP, Measured, Place, SERVERS, Server};
use crate::peer::{self, Peer};
use crate::relay::Route;
use crate::scenario::{Outcome, Scenario};
use crate::variant::{Kind, Variant};

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
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

/// A variant of the lab, and the congestion control of every namespace.
pub struct InLab {
    pub variant: Variant,
    pub congestion: String,
}

impl Measured for InLab {
    fn name(&self) -> &str {
        self.variant.name()
    }

    fn kind(&self) -> Kind {
        self.variant.kind()
    }

    fn measures(&self, scenario: &Scenario) -> bool {
        self.variant.measures(scenario)
    }

    fn bed(&self) -> Result<Box<dyn Bed + '_>, Box<dyn std::error::Error>> {
        Ok(Box::new(LabBed::make(&self.variant, &self.congestion)?))
    }
}

struct LabBed {
    lab: Lab,
    relayed: bool,
    first_connection: Duration,
}

/// Nobody keeps closed connections in TIME-WAIT: after some thousand new ones a second, what is measured would be how a client
/// looks for a free port.
fn forget_closed(lab: &Lab) -> io::Result<()> {
    let forget = || std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0");
    let nodes = lab.nodes().iter().map(|node| node.namespace());
    let mut each = nodes.chain(lab.pods().iter().map(|pod| pod.namespace()));
    each.try_for_each(|name| namespace::run(name, forget).map_err(io::Error::other)?)
}

impl LabBed {
    fn make(variant: &Variant, congestion: &str) -> Result<Self, Error> {
        let mut mesh = Mesh::new();
        for (node, pod) in [("a", "client"), ("a", "mouse"), ("a", "near"), ("b", "far")] {
            let path = format!("perf/{pod}");
            mesh = match variant {
                Variant::Direct | Variant::Relay => mesh.outside(node, &path),
                Variant::Ours { .. } | Variant::Plain | Variant::Workers { .. } | Variant::Peer(_) => {
                    mesh.pod(node, &path)
                }
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
            Variant::Workers { count, .. } => {
                options.environment = vec![("ZTUNNEL_WORKER_THREADS".to_owned(), count.to_string())];
            }
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
            Variant::Direct | Variant::Ours { .. } | Variant::Plain | Variant::Workers { .. } => {}
        }
        bed.wait_serving(variant)?;
        Ok(bed)
    }

    fn serve(&self) -> io::Result<()> {
        for pod in ["near", "far"] {
            let at = self.lab.pod(pod).netns();
            SERVERS.iter().try_for_each(|serve| serve(&at).map(drop))?;
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
            let (client, to) = (self.lab.pod("client"), self.server(place).port(ECHO));
            let mut took = Duration::ZERO;
            let passes = || {
                let started = std::time::Instant::now();
                match traffic::round_trips(client, to, 1) {
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

    fn server(&self, place: Place) -> Server {
        match (place, self.relayed) {
            (Place::Near, false) => Server { address: self.lab.pod("near").ipv4(), shift: 0 },
            (Place::Far, false) => Server { address: self.lab.pod("far").ipv4(), shift: 0 },
            (Place::Near, true) => Server { address: self.node_address("a"), shift: NEAR },
            (Place::Far, true) => Server { address: self.node_address("a"), shift: 0 },
        }
    }

    fn node_address(&self, node: &str) -> IpAddr {
        let number = self.lab.cluster().node_number(node).expect("invariant: a node of this bed");
        node_addresses(number).0.into()
    }

    fn ends(&self) -> Ends {
        let nodes = NODES.into_iter().map(|node| self.lab.node(node));
        let proxies = nodes.flat_map(|node| [node.proxy(), node.agent()]);
        Ends {
            client: self.lab.pod("client").netns(),
            mouse: Some(self.lab.pod("mouse").netns()),
            far: self.server(Place::Far),
            near: Some(self.server(Place::Near)),
            // Its pods forget closed connections.
            new_connections: vec![HTTP],
            proxies: proxies.flatten().map(|process| process.pid()).collect(),
            first_connection: Some(self.first_connection),
        }
    }
}

impl Bed for LabBed {
    fn run(&self, scenario: &Scenario, time: Duration) -> io::Result<Outcome> {
        scenario.run(&self.ends(), time)
    }
}
