//! The redirection rules of one pod, and the proof without which they cannot be made.
//!
//! Owns our nftables table and our policy routing in a pod's namespace, encoded here and sent over netlink. Must not
//! know how a pod was found or who accepts its connections. Everything here runs on a thread that is in the namespace.
//!
//! `Listeners → Ports → Installed`: [`Ports`] exist only for sockets that were just seen to listen, in this namespace,
//! with the mark that the rules exempt; [`Installed`] takes them over, so the sockets live at least as long as the
//! value that says that rules point at them. Neither can be made otherwise (each forgery stands below what is allowed, and
//! differs from it in nothing else):
//!
//! ```
//! use redirect::{netns::Ident, rules::{NotLive, Ports}, sockets::Listeners};
//! fn ports(listeners: Listeners, namespace: Ident) -> Result<Ports, NotLive> {
//!     Ports::prove(listeners, namespace)
//! }
//! ```
//!
//! ```compile_fail,E0451
//! use redirect::{netns::Ident, rules::{NotLive, Ports}, sockets::Listeners};
//! fn ports(listeners: Listeners, _: Ident) -> Result<Ports, NotLive> {
//!     Ok(Ports { listeners })
//! }
//! ```
//!
//! ```
//! use redirect::rules::{Error, Installed, Ports, Uncaptured};
//! fn install(ports: Ports) -> Result<Installed, Error> {
//!     Installed::install(ports, Uncaptured::Dropped)
//! }
//! ```
//!
//! ```compile_fail,E0451
//! use redirect::rules::{Error, Installed, Ports};
//! fn install(ports: Ports) -> Result<Installed, Error> {
//!     Ok(Installed { ports })
//! }
//! ```
//!
//! Where another process opens the listeners (a ztunnel driven by ZDS) rules are [`Closed`]: what they capture is refused
//! until it listens. They too become [`Installed`] by [`Ports`] only.
//!
//! Dropping [`Installed`] or [`Closed`] leaves the rules in place: what they capture is then refused, never let through. Rules go
//! only by [`withdraw`], which leaves the namespace as it was before.

mod conntrack;
pub(crate) mod exchange;
mod expression;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod form;
pub mod host;
mod message;
mod nftables;
pub(crate) mod routing;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use socket2::SockRef;

use crate::netns::Ident;
use crate::sockets::Listeners;
use crate::{HBONE_PORT, OUTBOUND_PORT, PACKET_MARK, PLAINTEXT_PORT};

/// On connections from the proxy to the app, and on the app's reply packets (interop.md section 7.1).
pub const CONNECTION_MARK: u32 = 0x111;
/// The bits of packet and connection marks that are ours.
pub const MARK_MASK: u32 = 0xfff;

/// Addresses for documentation, which nobody has: destinations of what only tries whether capture works.
pub const PROOF_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const PROOF_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

pub use exchange::Error;
pub(crate) use nftables::TABLE;
#[cfg(test)]
pub(crate) use nftables::deeds;

/// Why sockets cannot stand behind rules.
#[derive(Debug, thiserror::Error)]
pub enum NotLive {
    #[error("socket for port {port}: {source}")]
    Unreadable { port: u16, source: io::Error },
    #[error("socket for port {port} does not listen")]
    NotListening { port: u16 },
    #[error("socket for port {port} listens on port {found}")]
    WrongPort { port: u16, found: u16 },
    #[error("socket for port {port} has mark {found:#x}, must be {PACKET_MARK:#x}")]
    WrongMark { port: u16, found: u32 },
    #[error("socket for port {port} belongs to another network namespace")]
    WrongNamespace { port: u16 },
}

/// Listeners that were seen to be live in one namespace.
#[derive(Debug)]
pub struct Ports {
    listeners: Listeners,
}

impl Ports {
    /// Looks at each socket; also how sockets that a proxy hands back are told from anything else.
    pub fn prove(listeners: Listeners, namespace: Ident) -> Result<Self, NotLive> {
        let ports = [OUTBOUND_PORT, PLAINTEXT_PORT, HBONE_PORT];
        for (listener, port) in listeners.each().into_iter().zip(ports) {
            let unreadable = |source| NotLive::Unreadable { port, source };
            let socket = SockRef::from(listener);
            if !socket.is_listener().map_err(unreadable)? {
                return Err(NotLive::NotListening { port });
            }
            let found = listener.local_addr().map_err(unreadable)?;
            if found.port() != port || !found.ip().is_unspecified() {
                return Err(NotLive::WrongPort { port, found: found.port() });
            }
            let found = socket.mark().map_err(unreadable)?;
            if found != PACKET_MARK {
                return Err(NotLive::WrongMark { port, found });
            }
            if Ident::of_socket(listener).map_err(unreadable)? != namespace {
                return Err(NotLive::WrongNamespace { port });
            }
        }
        Ok(Self { listeners })
    }

    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }
}

/// What becomes of a connection that gets past the capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uncaptured {
    Dropped,
    /// Of a permissive pod.
    Passes,
}

impl Uncaptured {
    pub fn of(strict: bool) -> Self {
        if strict { Self::Dropped } else { Self::Passes }
    }
}

/// Rules are in the kernel, and nothing of this process listens behind them.
#[derive(Debug)]
pub struct Closed {
    _made_here: (),
}

impl Closed {
    /// Installs the rules in the namespace of the calling thread; again, if they are there.
    ///
    /// Routing goes first: it matches nothing until rules mark packets.
    pub fn install(uncaptured: Uncaptured) -> Result<Self, Error> {
        routing::install()?;
        let was_there = nftables::is_there()?;
        nftables::install(uncaptured)?;
        if !was_there && let Err(error) = conntrack::forget_untranslated() {
            tracing::warn!(%error, "a new connection may be dropped that has the ports of one before the rules");
        }
        Ok(Self { _made_here: () })
    }

    pub fn open(self, ports: Ports) -> Installed {
        Installed { ports }
    }
}

/// Rules are in the kernel, and these are the listeners behind them.
#[derive(Debug)]
pub struct Installed {
    ports: Ports,
}

impl Installed {
    /// As [`Closed::install`], with live listeners from the first packet on.
    pub fn install(ports: Ports, uncaptured: Uncaptured) -> Result<Self, Error> {
        Ok(Closed::install(uncaptured)?.open(ports))
    }

    pub fn listeners(&self) -> &Listeners {
        self.ports.listeners()
    }

    /// Closes the listeners; the rules stay.
    pub fn close(self) -> Closed {
        Closed { _made_here: () }
    }

    pub fn released(self, _: NoCapture) -> Released {
        Released { ports: self.ports }
    }
}

/// The rules of a namespace were seen to capture nothing more.
#[derive(Debug)]
pub struct NoCapture {
    _made_here: (),
}

/// Captures no new connection in the namespace of the calling thread; those that were captured go on.
pub fn release() -> Result<NoCapture, Error> {
    nftables::release()?;
    Ok(NoCapture { _made_here: () })
}

/// Nothing is captured any more, and connections that were are still open.
#[derive(Debug)]
pub struct Released {
    ports: Ports,
}

impl Released {
    pub fn listeners(&self) -> &Listeners {
        self.ports.listeners()
    }

    /// Captures again in the namespace of the calling thread.
    pub fn capture(self, uncaptured: Uncaptured) -> Result<Installed, Error> {
        Installed::install(self.ports, uncaptured)
    }
}

/// Removes rules and routing from the namespace of the calling thread, also those that an earlier agent left.
pub fn withdraw() -> Result<(), Error> {
    nftables::remove(TABLE)?;
    routing::remove()
}

/// The ruleset and all policy routing of the calling thread's namespace, to see whether anything changed.
pub fn dump() -> Result<Vec<Vec<u8>>, Error> {
    let mut found = nftables::dump()?;
    found.extend(routing::dump()?);
    Ok(found)
}
