//! A pod that serves, or that runs the clients of scenarios, as the Job orders. It dials the Job and not the other way round, so
//! that nobody can order a load from outside and a mesh that refuses plaintext to its pods stands in nobody's way.

use std::fs;
use std::io;
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use clap::Args;
use ztunnel_lab::namespace::Namespace;

use super::orders::{Answer, Hello, Line, Order};
use crate::bed::{Ends, HTTP_MORE, SERVERS, Server};
use crate::figures::Role;
use crate::load::DEADLINE;
use crate::machine::Machine;

/// Where the proxy of the node listens inside each pod that a mesh captures: HBONE's own port.
const HBONE: u16 = 15008;
/// In `/proc/net/tcp`.
const LISTENING: &str = "0A";
/// Between two dials of a Job; there may be none for days.
const PAUSE: Duration = Duration::from_secs(1);
/// For the next order. A Job that is gone with its node ends no connection.
const QUIET: Duration = Duration::from_secs(600);
/// No scenario of a suite is longer.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct PodArguments {
    /// Where the Job listens
    #[arg(long, value_name = "HOST:PORT")]
    job: String,

    /// What the pod is one of
    #[arg(long, value_name = "NAME", env = "VARIANT")]
    variant: String,

    #[arg(long, value_enum)]
    role: Role,

    /// The node that it runs on, as the report names it
    #[arg(long, value_name = "NAME", env = "NODE_NAME", default_value = "a node")]
    node: String,
}

/// For ever.
pub fn attend(arguments: &PodArguments) -> io::Result<()> {
    if arguments.role == Role::Server {
        serve();
    }
    let mut last = String::new();
    loop {
        // A Job that has ended is the same as none.
        let why = arguments.session().err().map_or_else(String::new, |error| error.to_string());
        if why != last {
            eprintln!("{}: {why}; dialling on", arguments.job);
            last = why;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Every server, again when it ends because it was quiet.
fn serve() {
    for serve in SERVERS {
        std::thread::spawn(move || {
            loop {
                match serve(&Namespace::Own) {
                    Ok(server) => drop(server.join()),
                    Err(error) => {
                        eprintln!("a server cannot listen: {error}");
                        std::process::exit(1);
                    }
                }
            }
        });
    }
}

impl PodArguments {
    fn session(&self) -> io::Result<()> {
        let mut line = Line::new(dial(&self.job)?)?;
        let hello = Hello {
            variant: self.variant.clone(),
            role: self.role,
            node: self.node.clone(),
            machine: Machine::own(),
            address: line.own_address()?,
            congestion: fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?.trim().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        line.say(&hello, DEADLINE)?;
        let mut told = false;
        loop {
            let order = line.hear(QUIET)?;
            if !told {
                // Not before: where no Job is, a proxy may take the connection in its place.
                eprintln!("{}: attended as {} {}", self.job, self.variant, self.role.name());
                told = true;
            }
            line.say(&obeyed(&order).unwrap_or_else(|error| Answer::Failed(error.to_string())), DEADLINE)?;
        }
    }
}

fn dial(job: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::other("it has no address");
    for address in job.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, DEADLINE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn obeyed(order: &Order) -> io::Result<Answer> {
    match order {
        Order::Look => captured().map(Answer::Captured),
        Order::Run { scenario, milliseconds, server } => {
            let time = Duration::from_millis(*milliseconds);
            if time > LONGEST || !scenario.fits_a_pair() {
                return Err(io::Error::other(format!("{scenario} for {time:?} is not for a pair of pods")));
            }
            scenario.run(&ends(*server), time).map(Answer::Ran)
        }
    }
}

fn ends(server: IpAddr) -> Ends {
    Ends {
        client: Namespace::Own,
        mouse: None,
        far: Server { address: server, shift: 0 },
        near: None,
        new_connections: HTTP_MORE.to_vec(),
        proxies: Vec::new(),
        // Nobody can tell whether a tunnel is up already.
        first_connection: None,
    }
}

fn captured() -> io::Result<bool> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| match fs::read_to_string(path) {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        table => table,
    });
    for table in tables {
        if listens(&table?, HBONE) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a table of sockets, as proc_pid_net_tcp(5) has it, has one that listens on a port.
fn listens(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        let own = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        state == LISTENING && own == Some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
        0: 0100007F:3AA0 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1\n   \
        1: 0100007F:2331 0200007F:3AA1 01 00000000:00000000 00:00000000 00000000 0 0 1 1\n";

    #[test]
    fn who_listens_is_seen() {
        assert!(listens(TABLE, 15008));
        assert!(!listens(TABLE, 15009), "a peer's port");
        assert!(!listens(TABLE, 0x2331), "a connection");
        assert!(!listens(&TABLE.replace(":3AA0", ":3AA2"), 15008) && !listens("", 15008));
    }

    #[test]
    fn only_what_a_suite_holds_is_run() {
        let run = |scenario, milliseconds| {
            let server = "127.0.0.1".parse().expect("an address");
            obeyed(&Order::Run { scenario, milliseconds, server }).expect_err("not for a pair").to_string()
        };
        assert!(run(Scenario::ElephantAndMouse, 10).contains("not for a pair"));
        assert!(run(Scenario::Connections { at_once: 1 }, 3_600_000).contains("not for a pair"));
    }
}
