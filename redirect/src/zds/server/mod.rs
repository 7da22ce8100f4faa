//! The agent's end of ZDS: tells stock ztunnels which pods to serve.
//!
//! Knows the pods as a [`Roster`] that the agent publishes whole; each connection compares it with what it has told, so
//! nothing queues for a ztunnel that is slow. A pod is offered to the ztunnel that connected last, its removal is told to
//! each that was told of it: that is how a new process takes over while the old one drains. When the last one leaves, the
//! one before it is offered what it has not heard of.
//!
//! A ztunnel that refuses a pod is offered it again with back-off, while the others go on. One that does not answer, says
//! what nobody asked or breaks the protocol is cut off and may connect again; pods' rules are not touched by any of it.

mod plan;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};

use crate::listener::{Error, Listener};
use crate::netns::{Ident, Place};
use session::Session;

/// Between two connections: at most five are taken a second.
const PACE: Duration = Duration::from_millis(200);
/// Connections at once. Two are an upgrade.
const MOST_SESSIONS: usize = 16;

/// A captured pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub netns: Place,
    pub ident: Ident,
}

/// What is known of a pod that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Captured(Arc<Workload>),
    /// Not captured now; a ztunnel that serves it goes on.
    Pending,
}

/// Every pod that is wanted, by uid.
pub type Roster = BTreeMap<String, Entry>;
/// `None` until the agent knows which pods are wanted.
pub type Rosters = watch::Receiver<Option<Arc<Roster>>>;

/// What a ztunnel answers to the offer of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Pod { ztunnel: u64, uid: String, outcome: Result<(), String> },
    Left { ztunnel: u64 },
}

/// Numbers of connected ztunnels; the highest connected last.
type Connected = watch::Sender<BTreeSet<u64>>;

/// The listening end.
pub struct Server {
    listener: Listener,
}

impl Server {
    /// Binds the socket; only root may connect, as whom a ztunnel that enters namespaces runs.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        Ok(Self { listener: Listener::bind(path, None)? })
    }

    /// Accepts for ever, and passes on what is answered.
    pub async fn serve(self, rosters: Rosters, say: mpsc::Sender<Said>) {
        let connected = Arc::new(Connected::default());
        let sessions = Arc::new(Semaphore::new(MOST_SESSIONS));
        for number in 1.. {
            let Ok(permit) = sessions.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok(socket) => {
                    let (rosters, connected, say) = (rosters.clone(), connected.clone(), say.clone());
                    tokio::spawn(async move {
                        Session::attend(number, socket.into(), rosters, connected, say).await;
                        drop(permit);
                    });
                }
                Err(error) => tracing::warn!(%error, "accepting a ztunnel failed"),
            }
            tokio::time::sleep(PACE).await;
        }
    }
}
