//! The next place to dial, and what to ask for there.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::identity::IdentitySet;

/// An HBONE peer: where its tunnel port listens and who may answer there. A tunnel is only ever made for a hop, so
/// there is none without an expected identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hop {
    pub addr: SocketAddr,
    pub expected: IdentitySet,
}

/// What a CONNECT asks for: a socket address, or a host and a port; nothing else (interop.md section 2.4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    Address(SocketAddr),
    Host { name: String, port: u16 },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an authority (expected IP:PORT, [IPV6]:PORT or HOST:PORT)")]
pub struct AuthorityError(String);

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        if let Ok(addr) = text.parse() {
            return Ok(Self::Address(addr));
        }
        let host = text.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
        match host {
            Some((name, port)) if !name.is_empty() && !name.contains([':', '[', ']', '@', '/']) => {
                Ok(Self::Host { name: name.to_owned(), port })
            }
            _ => Err(AuthorityError(text.to_owned())),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => fmt::Display::fmt(addr, f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_addresses_or_hosts_with_a_port() {
        for good in ["10.0.0.1:80", "[fd00::1]:80", "cart.shop.svc:80"] {
            assert_eq!(good.parse::<Authority>().expect(good).to_string(), good);
        }
        for bad in ["", "10.0.0.1", ":80", "fd00::1:80", "host:", "host:99999", "user@host:80", "[host]:80"] {
            assert!(bad.parse::<Authority>().is_err(), "{bad} must be refused");
        }
    }
}
