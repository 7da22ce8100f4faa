//! What this agent holds of a pod that is captured.

use crate::rules::{Closed, Installed, Ports};
use crate::sockets::Listeners;

#[derive(Debug)]
pub(in crate::agent) enum Hold {
    /// Rules, and the listeners behind them.
    Both(Installed),
    /// Rules alone; a ztunnel opens the listeners, and until then what the rules capture is refused.
    Rules(Closed),
}

impl Hold {
    pub(in crate::agent) fn listeners(&self) -> Option<&Listeners> {
        match self {
            Self::Both(installed) => Some(installed.listeners()),
            Self::Rules(_) => None,
        }
    }

    pub(super) fn open(self, ports: Ports) -> Self {
        match self {
            Self::Rules(closed) => Self::Both(closed.open(ports)),
            // The new listeners take the place of the old ones.
            Self::Both(installed) => Self::Both(installed.close().open(ports)),
        }
    }

    pub(super) fn close(self) -> Self {
        match self {
            Self::Both(installed) => Self::Rules(installed.close()),
            Self::Rules(closed) => Self::Rules(closed),
        }
    }
}
