//! Where a redirected connection was going before the rules sent it to the proxy.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::SockRef;

/// Destination before REDIRECT, or the local address of a connection that was not redirected.
///
/// A dual-stack socket answers the IPv4 option for v4-mapped peers only, so that one is asked first. The address is
/// canonical: never v4-mapped.
pub fn original_dst(socket: &impl AsFd) -> io::Result<SocketAddr> {
    if let Ok(found) = getsockopt(socket, sockopt::OriginalDst) {
        let ip = Ipv4Addr::from(u32::from_be(found.sin_addr.s_addr));
        return Ok(SocketAddr::new(ip.into(), u16::from_be(found.sin_port)));
    }
    if let Ok(found) = getsockopt(socket, sockopt::Ip6tOriginalDst) {
        let ip = Ipv6Addr::from(found.sin6_addr.s6_addr);
        return Ok(canonical(SocketAddr::new(ip.into(), u16::from_be(found.sin6_port))));
    }
    let local = SockRef::from(socket).local_addr()?;
    local.as_socket().map(canonical).ok_or_else(|| io::Error::other("not an IP socket"))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V6(v6) => v6.to_canonical(),
        v4 => v4,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn falls_back_to_a_canonical_local_address() {
        let listener = TcpListener::bind("[::]:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let _client = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        let (accepted, _) = listener.accept().expect("accept");
        let found = original_dst(&accepted).expect("original destination");
        assert_eq!(found, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
}
