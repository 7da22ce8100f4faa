//! Packets between the nodes, seen from the underlay (packet(7)).

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace;

/// Every protocol (linux/if_ether.h).
const ETH_P_ALL: u16 = 3;
const LARGEST_PACKET: usize = 128 * 1024;
const BUFFER: usize = 64 * 1024 * 1024;
const LOOK: Duration = Duration::from_millis(50);

/// A capture that runs until it is finished.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Seen>>,
}

/// What went over the wire between the given addresses.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub packets: usize,
    /// The lower port of each packet: the server's.
    pub ports: BTreeSet<u16>,
    /// Packets that held the marker.
    pub with_marker: usize,
    /// When each connection of such a packet was opened: its first SYN, whether that was answered or not. Of a connection
    /// whose SYN was not seen, when the packet was.
    pub opened: BTreeSet<Instant>,
}

impl Capture {
    /// Starts to look at TCP between `from` and `to`, for packets that hold `marker`.
    pub fn start(
        namespace: &str,
        from: IpAddr,
        to: IpAddr,
        marker: &'static [u8],
    ) -> Result<Self, namespace::Error> {
        let opened = namespace::run(namespace, || {
            let everything = Protocol::from(i32::from(ETH_P_ALL.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(everything))?;
            socket.set_read_timeout(Some(LOOK))?;
            // A packet that finds no room would go unseen.
            setsockopt(&socket, RcvBufForce, &BUFFER)?;
            Ok::<_, io::Error>(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || look(opened?, [from, to], marker, &stopped));
        Ok(Self { stop, thread })
    }

    pub fn finish(self) -> io::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the capture panicked")))
    }
}

fn look(socket: Socket, between: [IpAddr; 2], marker: &[u8], stop: &AtomicBool) -> io::Result<Seen> {
    use std::io::Read;
    let mut seen = Seen::default();
    // By its ends: the sequence number of the last SYN, and when it came first.
    let mut opened = HashMap::new();
    let mut buffer = vec![0; LARGEST_PACKET];
    let mut socket = socket;
    loop {
        match socket.read(&mut buffer) {
            Ok(length) => {
                let Some(packet) = parse(&buffer[..length]) else { continue };
                if between.contains(&packet.from) && between.contains(&packet.to) {
                    seen.packets += 1;
                    seen.ports.insert(packet.ports.0.min(packet.ports.1));
                    let now = Instant::now();
                    let mut ends = [(packet.from, packet.ports.0), (packet.to, packet.ports.1)];
                    ends.sort_unstable();
                    match opened.get(&ends) {
                        Some((sequence, _)) if *sequence == packet.sequence => {}
                        _ if packet.opens => drop(opened.insert(ends, (packet.sequence, now))),
                        _ => {}
                    }
                    if contains(packet.payload, marker) {
                        seen.with_marker += 1;
                        seen.opened.insert(opened.get(&ends).map_or(now, |(_, first)| *first));
                    }
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(seen);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

struct Packet<'a> {
    from: IpAddr,
    to: IpAddr,
    ports: (u16, u16),
    sequence: u32,
    /// SYN without ACK.
    opens: bool,
    payload: &'a [u8],
}

/// Ethernet, then IPv4 (RFC 791) or IPv6 without extension headers (RFC 8200), then TCP (RFC 9293).
fn parse(frame: &[u8]) -> Option<Packet<'_>> {
    let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
    let ip = frame.get(14..)?;
    let (from, to, segment): (IpAddr, IpAddr, &[u8]) = match kind {
        0x0800 if ip.get(9) == Some(&6) => {
            let header = usize::from(ip[0] & 0x0f) * 4;
            let from: [u8; 4] = ip.get(12..16)?.try_into().ok()?;
            let to: [u8; 4] = ip.get(16..20)?.try_into().ok()?;
            (from.into(), to.into(), ip.get(header..)?)
        }
        0x86dd if ip.get(6) == Some(&6) => {
            let from: [u8; 16] = ip.get(8..24)?.try_into().ok()?;
            let to: [u8; 16] = ip.get(24..40)?.try_into().ok()?;
            (from.into(), to.into(), ip.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
    let sequence = u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?);
    let opens = segment.get(13)? & 0b1_0010 == 0b10;
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(Packet { from, to, ports: (port(0)?, port(2)?), sequence, opens, payload: segment.get(header..)? })
}

fn contains(bytes: &[u8], marker: &[u8]) -> bool {
    bytes.windows(marker.len()).any(|window| window == marker)
}
