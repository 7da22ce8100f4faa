//! Dialling from inside a pod, with a socket of the stock.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockRef};
use tokio::net::{TcpSocket, TcpStream};

use super::socket::{self, Options};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no answer from {addr} within {} s", within.as_secs())]
    Timeout { addr: SocketAddr, within: Duration },
    #[error("cannot use {source_ip} as the source towards {addr}: {source}")]
    Source { addr: SocketAddr, source_ip: IpAddr, source: io::Error },
    #[error("cannot connect to {addr}: {source}")]
    Connect { addr: SocketAddr, source: io::Error },
}

/// Connects a socket of the stock. With `source`, the far side sees that address; a source that cannot be set is an
/// error, never a connection that comes from somewhere else.
pub async fn dial(
    stocked: OwnedFd,
    source: Option<IpAddr>,
    addr: SocketAddr,
    within: Duration,
    options: &Options,
) -> Result<TcpStream, Error> {
    let connect_error = |source| Error::Connect { addr, source };
    let six = SockRef::from(&stocked).domain().map_err(connect_error)? == Domain::IPV6;
    let socket = TcpSocket::from_std_stream(stocked.into());
    if let Some(ip) = source {
        choose_port_late(&socket);
        socket.bind(in_family(SocketAddr::new(ip, 0), six)).map_err(|source| Error::Source {
            addr,
            source_ip: ip,
            source,
        })?;
    }
    let stream = tokio::time::timeout(within, socket.connect(in_family(addr, six)))
        .await
        .map_err(|_| Error::Timeout { addr, within })?
        .map_err(connect_error)?;
    socket::prepare(&stream, options).map_err(connect_error)?;
    Ok(stream)
}

/// Leaves the port to `connect`, which needs one that is free towards this destination. `bind` would need one that is free
/// towards all of them, of which an address has some 28,000 (ip(7), IP_BIND_ADDRESS_NO_PORT).
fn choose_port_late(socket: &TcpSocket) {
    if let Err(error) = setsockopt(socket, sockopt::IpBindAddressNoPort, &true) {
        tracing::debug!(%error, "a port is taken for all destinations");
    }
}

/// A dual-stack socket speaks IPv4 through v4-mapped addresses (RFC 4291 section 2.5.5.2).
fn in_family(addr: SocketAddr, six: bool) -> SocketAddr {
    match (addr.ip(), six) {
        (IpAddr::V4(ip), true) => SocketAddrV6::new(mapped(ip), addr.port(), 0, 0).into(),
        _ => addr,
    }
}

fn mapped(ip: std::net::Ipv4Addr) -> Ipv6Addr {
    ip.to_ipv6_mapped()
}
