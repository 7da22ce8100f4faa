//! Round trips of one byte on one connection, one after the other.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ztunnel_lab::namespace::Namespace;

use super::{DEADLINE, Seen};

/// To an echo.
pub fn ping_pong(from: &Namespace, to: SocketAddr, time: Duration) -> io::Result<Seen> {
    let mut stream = from.connect(to, DEADLINE)?;
    stream.set_nodelay(true)?;
    let (mut seen, started) = (Seen::default(), Instant::now());
    while started.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        seen.note(Ok(sent.elapsed()));
    }
    seen.elapsed = started.elapsed();
    Ok(seen)
}
