//! Sockets made inside a pod's network namespace. Runs on the thread that is in that namespace.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{HBONE_PORT, OUTBOUND_PORT, PACKET_MARK, PLAINTEXT_PORT};

/// Connections wait here while no proxy is connected; the kernel cuts it to net.core.somaxconn of the namespace.
const BACKLOG: i32 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("port {port} is in use in the pod's namespace; the pod is not captured until it is free")]
    PortInUse { port: u16 },
    #[error("listening on port {port} in the pod's namespace: {source}")]
    Listen { port: u16, source: io::Error },
    #[error("making a socket to dial with: {0}")]
    Stock(io::Error),
}

/// The three sockets on which a pod's captured connections arrive.
#[derive(Debug)]
pub struct Listeners {
    pub outbound: TcpListener,
    pub plaintext: TcpListener,
    pub hbone: TcpListener,
}

impl Listeners {
    /// Binds all three in the namespace of the calling thread.
    ///
    /// One `[::]` socket each takes both families; `0.0.0.0` where the kernel has no IPv6. SO_REUSEADDR lets a restart
    /// bind over old connections. Not SO_REUSEPORT: a second listener would take a share of the connections.
    pub fn bind() -> Result<Self, Error> {
        Ok(Self {
            outbound: listen(OUTBOUND_PORT)?,
            plaintext: listen(PLAINTEXT_PORT)?,
            hbone: listen(HBONE_PORT)?,
        })
    }

    /// In the order of the wire: outbound, plaintext, HBONE.
    pub fn each(&self) -> [&TcpListener; 3] {
        [&self.outbound, &self.plaintext, &self.hbone]
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            outbound: self.outbound.try_clone()?,
            plaintext: self.plaintext.try_clone()?,
            hbone: self.hbone.try_clone()?,
        })
    }

    /// From three received descriptors; says nothing about what they are.
    pub(crate) fn from_descriptors(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let [outbound, plaintext, hbone] = <[OwnedFd; 3]>::try_from(descriptors).ok()?;
        Some(Self { outbound: outbound.into(), plaintext: plaintext.into(), hbone: hbone.into() })
    }
}

/// Makes unconnected sockets with which the proxy dials from the namespace of the calling thread.
///
/// Fewer than `count` when the agent runs out of descriptors on the way; an error when there is not even one.
pub fn stock(count: usize) -> Result<Vec<OwnedFd>, Error> {
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        match dialing_socket() {
            Ok(socket) => sockets.push(socket),
            Err(error) if sockets.is_empty() => return Err(Error::Stock(error)),
            Err(_) => break,
        }
    }
    Ok(sockets)
}

fn dialing_socket() -> io::Result<OwnedFd> {
    let socket = marked_socket()?;
    let domain = socket.domain()?;
    // Ports come at connect time then, and one port serves many destinations.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.set_freebind_v4(true)?;
    if domain == Domain::IPV6 {
        socket.set_freebind_v6(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn listen(port: u16) -> Result<TcpListener, Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => Error::PortInUse { port },
        _ => Error::Listen { port, source },
    };
    let open = || {
        let socket = marked_socket()?;
        socket.set_reuse_address(true)?;
        let wildcard: SocketAddr = match socket.domain()? {
            Domain::IPV6 => (Ipv6Addr::UNSPECIFIED, port).into(),
            _ => (Ipv4Addr::UNSPECIFIED, port).into(),
        };
        socket.bind(&SockAddr::from(wildcard))?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(failed)
}

/// A TCP socket that the rules recognise as the proxy's and that may use addresses of others.
fn marked_socket() -> io::Result<Socket> {
    let socket = match Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            socket.set_ip_transparent_v6(true)?;
            socket
        }
        Err(error) if no_ipv6(&error) => Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?,
        Err(error) => return Err(error),
    };
    socket.set_ip_transparent_v4(true)?;
    socket.set_mark(PACKET_MARK)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn no_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}
