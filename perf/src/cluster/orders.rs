//! What the Job and its pods say to each other: JSON, one text a line, each with a deadline and a greatest length.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::figures::{self, Role};
use crate::machine::Machine;
use crate::scenario::{Outcome, Scenario};

/// A line is no longer.
const LONGEST: usize = 64 * 1024;

/// The first that a pod says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    pub variant: String,
    pub role: Role,
    pub node: String,
    pub machine: Machine,
    /// Where it serves.
    pub address: IpAddr,
    pub congestion: String,
    /// What orders it understands.
    pub version: String,
}

impl Hello {
    pub fn pod(&self) -> figures::Pod {
        let Self { variant, role, node, machine, .. } = self.clone();
        figures::Pod { variant, role, node, machine }
    }
}

/// What the Job says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    Look,
    Run { scenario: Scenario, milliseconds: u64, server: IpAddr },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Whether a mesh captures what the pod says.
    Captured(bool),
    Ran(Outcome),
    Failed(String),
}

/// A connection on which both say lines.
#[derive(Debug)]
pub struct Line(BufReader<TcpStream>);

impl Line {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    pub fn peer_address(&self) -> io::Result<IpAddr> {
        Ok(self.0.get_ref().peer_addr()?.ip().to_canonical())
    }

    pub fn own_address(&self) -> io::Result<IpAddr> {
        Ok(self.0.get_ref().local_addr()?.ip().to_canonical())
    }

    pub fn say(&mut self, what: &impl Serialize, deadline: Duration) -> io::Result<()> {
        let text = serde_json::to_string(what)? + "\n";
        let stream = self.0.get_mut();
        // All of it fits the socket's buffer.
        stream.set_write_timeout(Some(deadline))?;
        stream.write_all(text.as_bytes())
    }

    pub fn hear<T: DeserializeOwned>(&mut self, deadline: Duration) -> io::Result<T> {
        let until = Instant::now() + deadline;
        let mut text = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.0.get_ref().set_read_timeout(Some(left))?;
            let heard = match self.0.fill_buf() {
                // What a socket says when its time is over.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                heard => heard?,
            };
            if heard.is_empty() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let end = heard.iter().position(|&byte| byte == b'\n');
            let taken = end.map_or(heard.len(), |end| end + 1);
            text.extend_from_slice(&heard[..taken]);
            self.0.consume(taken);
            if text.len() > LONGEST {
                return Err(io::Error::new(ErrorKind::InvalidData, "a line is too long"));
            }
            if end.is_some() {
                return Ok(serde_json::from_slice(&text)?);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::suite::Suite;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);

    fn pair() -> (Line, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let to = listener.local_addr().expect("it is bound");
        let client = TcpStream::connect(to).expect("it listens");
        (Line::new(client).expect("a socket"), listener.accept().expect("it connected").0)
    }

    #[test]
    fn what_is_said_is_heard() {
        let (mut job, other) = pair();
        let mut pod = Line::new(other).expect("a socket");
        let server: IpAddr = "10.0.0.1".parse().expect("an address");
        for scenario in Suite::Full.scenarios() {
            let order = Order::Run { scenario, milliseconds: 1000, server };
            job.say(&order, LONG).expect("said");
            assert_eq!(pod.hear::<Order>(LONG).expect("heard"), order);
        }
        let outcome = Outcome { percentiles: vec![(99.9, 1.5)], failures: 2, ..Outcome::default() };
        for answer in [Answer::Captured(true), Answer::Failed("why".to_owned()), Answer::Ran(outcome)] {
            pod.say(&answer, LONG).expect("said");
            assert_eq!(job.hear::<Answer>(LONG).expect("heard"), answer);
        }
    }

    #[test]
    fn nothing_is_waited_for_without_end_and_no_line_is_without_end() {
        let (mut line, mut other) = pair();
        let kind = |heard: io::Result<Order>| heard.expect_err("no order").kind();
        assert_eq!(kind(line.hear(SHORT)), ErrorKind::TimedOut);
        other.write_all(b"{\"run\"").expect("it is read");
        assert_eq!(kind(line.hear(SHORT)), ErrorKind::TimedOut, "half a line");
        other.write_all(&vec![b' '; LONGEST + 1]).expect("a buffer takes it");
        assert_eq!(kind(line.hear(LONG)), ErrorKind::InvalidData);
        drop(other);
        assert_eq!(kind(line.hear(LONG)), ErrorKind::UnexpectedEof);
    }
}
