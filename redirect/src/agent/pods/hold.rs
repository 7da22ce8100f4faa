//! What this agent holds of a pod that is captured.

use crate::rules::{Closed, Installed, Ports, Released};
use crate::sockets::Listeners;

/// What of a pod's capture is this agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum Part {
    /// Rules, and listeners before there are rules.
    Both,
    /// Rules. Stock ztunnels open the listeners; this agent too while `proxied`, that is while a proxy of its own is
    /// connected.
    Rules { proxied: bool },
    /// Listeners. istio-cni writes the rules, and none of them is touched.
    Sockets,
}

#[derive(Debug)]
pub(in crate::agent) enum Hold {
    /// Rules, and the listeners behind them.
    Both(Installed),
    /// Rules alone; a ztunnel opens the listeners, and until then what the rules capture is refused.
    Rules(Closed),
    /// Listeners alone; istio-cni writes the rules.
    Sockets(Ports),
    /// The pod leaves: the rules capture nothing more, the listeners serve what was captured.
    Released(Released),
}

impl Hold {
    pub(in crate::agent) fn listeners(&self) -> Option<&Listeners> {
        match self {
            Self::Both(installed) => Some(installed.listeners()),
            Self::Sockets(ports) => Some(ports.listeners()),
            Self::Released(released) => Some(released.listeners()),
            Self::Rules(_) => None,
        }
    }

    pub(super) fn open(self, ports: Ports) -> Self {
        match self {
            Self::Rules(closed) => Self::Both(closed.open(ports)),
            // The new listeners take the place of the old ones.
            Self::Both(installed) => Self::Both(installed.close().open(ports)),
            Self::Sockets(_) => Self::Sockets(ports),
            Self::Released(released) => Self::Released(released),
        }
    }

    pub(super) fn close(self) -> Self {
        match self {
            Self::Both(installed) => Self::Rules(installed.close()),
            other => other,
        }
    }
}
