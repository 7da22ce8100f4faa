//! Where it is measured, as scenarios and rounds see it: the ends of connections. Knows not whether they are pods of the lab or of
//! somebody's cluster.

pub mod lab;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread::JoinHandle;
use std::time::Duration;

use ztunnel_lab::bulk;
use ztunnel_lab::namespace::Namespace;

use crate::load;
use crate::scenario::{Outcome, Scenario};
use crate::variant::Kind;

pub const ECHO: u16 = 9007;
pub const BULK: u16 = 9008;
pub const HTTP: u16 = 9009;
pub const ENDLESS: u16 = 9010;
/// HTTP is served on [`HTTP`] and on these: a client keeps the port of a connection that it has closed for a minute, of about 28,000
/// for each port of a server.
pub const HTTP_MORE: [u16; 16] =
    [9020, 9021, 9022, 9023, 9024, 9025, 9026, 9027, 9028, 9029, 9030, 9031, 9032, 9033, 9034, 9035];

type Serve = fn(&Namespace) -> io::Result<JoinHandle<()>>;

/// Of every pod that serves. Each ends when it has been quiet for minutes.
pub const SERVERS: [Serve; 4] = [
    |at| load::serve_echo(at, ECHO),
    |at| bulk::serve(at, BULK),
    |at| load::serve(at, &[&[HTTP][..], &HTTP_MORE].concat()),
    |at| load::serve_endless(at, ENDLESS),
];

/// What is compared with others.
pub trait Measured {
    fn name(&self) -> &str;

    fn kind(&self) -> Kind;

    fn measures(&self, scenario: &Scenario) -> bool;

    /// Brings up where it is measured, or finds it.
    fn bed(&self) -> Result<Box<dyn Bed + '_>, Box<dyn std::error::Error>>;
}

pub trait Bed {
    fn run(&self, scenario: &Scenario, time: Duration) -> io::Result<Outcome>;
}

/// Where a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// On the client's node.
    Near,
    Far,
}

/// Where a client connects to for the ports of a server.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    pub address: IpAddr,
    /// Added to each port: a relay has one port for each server.
    pub shift: u16,
}

impl Server {
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port + self.shift)
    }
}

/// What a scenario sees of a bed.
#[derive(Debug, Clone)]
pub struct Ends {
    pub client: Namespace,
    /// Of another pod on the client's node.
    pub mouse: Option<Namespace>,
    pub far: Server,
    pub near: Option<Server>,
    /// Where new connections go, in turns.
    pub new_connections: Vec<u16>,
    /// The proxies and their nodes' agents, which make sockets for them; nothing where nobody is between the pods or nobody can look.
    pub proxies: Vec<i32>,
    /// How long the connection took that brought the tunnel up.
    pub first_connection: Option<Duration>,
}

impl Ends {
    pub fn to(&self, place: Place, port: u16) -> io::Result<SocketAddr> {
        let server = match place {
            Place::Far => Some(self.far),
            Place::Near => self.near,
        };
        let server = server.ok_or_else(|| io::Error::other("nobody serves on the client's node"))?;
        Ok(server.port(port))
    }

    pub fn mouse(&self) -> io::Result<&Namespace> {
        self.mouse.as_ref().ok_or_else(|| io::Error::other("there is no second client"))
    }
}
