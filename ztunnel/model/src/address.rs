//! Addresses with their meaning in the type: who connected, where the application wanted to go, on what network.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::text::Text;

/// A network name; the empty name is the default network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(Text);

impl From<&str> for Network {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<Text> for Network {
    fn from(name: Text) -> Self {
        Self(name)
    }
}

impl Network {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An IP address on a network; written `network/ip`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    pub network: Network,
    pub ip: IpAddr,
}

impl NetworkAddress {
    pub fn new(network: Network, ip: IpAddr) -> Self {
        Self { network, ip: ip.to_canonical() }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

/// A dual-stack socket shows IPv4 peers as v4-mapped; every lookup, log and policy sees the IPv4 form
/// (interop.md section 1.1).
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

macro_rules! socket_address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(SocketAddr);

        impl $name {
            pub fn new(addr: SocketAddr) -> Self {
                Self(canonical(addr))
            }

            pub fn addr(self) -> SocketAddr {
                self.0
            }

            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

socket_address! {
    /// The destination that the application dialled, before the kernel redirected it.
    OrigDst
}
socket_address! {
    /// The other end of an accepted connection.
    PeerAddr
}
socket_address! {
    /// Our end of an accepted connection.
    LocalAddr
}
