//! A Kubernetes cluster that is followed through its API: namespaces, nodes, pods, services, endpoint slices and Istio's
//! security policies.
//!
//! Nothing that worked is lost while the API server is away, slow, overloaded or confused: each kind has a follower of its
//! own (`follow`) that comes back with a growing pause, and an object goes when the API server has said so, or has
//! listed all of its kind without it. Objects are read as manifests are, with the same mistakes and the same safe side
//! (`source::file` has the table); a mistake is told with the object and the field.
//!
//! The followers are this module's and not kube-runtime's: that opens a watch that ends at once again without a pause, has no
//! deadline for a list, holds to a version that the API server refuses for ever, and logs a list that it cannot read in whole.
//! Of `kube` comes what is hard to do well: how to reach the API server and to prove who we are (in a cluster, or by
//! KUBECONFIG, with tokens and roots that rotate), and how it is asked.
//!
//! The crate `kube` is used here and nowhere else.

mod ask;
mod follow;
mod held;
mod keep;
mod resource;

use std::time::Duration;

use kube::{Client, Config};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::follow::{Follower, Told};
use self::held::Held;
use self::resource::RESOURCES;
use super::file::Mistake;
use crate::object::{Change, Kind};

/// Objects that were heard of and not taken yet; the followers wait behind them.
const QUEUE: usize = 256;
const CONNECT: Duration = Duration::from_secs(10);

/// How long what takes.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A page of a list, and the beginning of a watch.
    pub answer: Duration,
    /// The API server is to end a watch after so long, and we begin it anew.
    pub watch: Duration,
    /// A watch on which nothing was heard for so long is dead.
    pub stalled: Duration,
    /// After the first failure. Each time twice as long.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// A watch that lived so long has worked.
    pub steady: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(60),
            watch: Duration::from_secs(120),
            stalled: Duration::from_secs(150),
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(30),
            steady: Duration::from_secs(1),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no way to the Kubernetes API, neither as a pod of the cluster nor by KUBECONFIG: {0}")]
    Where(#[source] Box<kube::config::InferConfigError>),
    #[error("no client for the Kubernetes API: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// What is known of the cluster.
pub struct Cluster {
    held: Held,
    told: mpsc::Receiver<(Kind, Told)>,
    _followers: JoinSet<()>,
}

impl Cluster {
    /// The cluster whose pod this is, or that KUBECONFIG names.
    pub async fn infer() -> Result<Self, Error> {
        let config = Config::infer().await.map_err(|error| Error::Where(Box::new(error)))?;
        Self::open(config, Timing::default())
    }

    /// Begins to follow.
    pub fn open(mut config: Config, timing: Timing) -> Result<Self, Error> {
        config.connect_timeout = Some(CONNECT);
        // The followers do.
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| Error::Client(Box::new(error)))?;
        let (out, told) = mpsc::channel(QUEUE);
        let mut followers = JoinSet::new();
        for resource in &RESOURCES {
            followers.spawn(Follower::new(client.clone(), resource, timing, out.clone()).run());
        }
        Ok(Self { held: Held::default(), told, _followers: followers })
    }

    /// Waits until every kind was heard of in whole once, and says what there is.
    pub async fn complete(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        while !self.held.is_complete(RESOURCES.iter().map(|one| one.kind)) {
            self.take(&mut changes).await;
        }
        changes
    }

    /// Waits until objects or mistakes differ, and says how. Nothing is lost when the waiting is given up.
    pub async fn next(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        while !self.take(&mut changes).await && changes.is_empty() {}
        changes
    }

    /// All that there are now.
    pub fn mistakes(&self) -> Vec<Mistake> {
        self.held.mistakes()
    }

    /// Takes in what was told meanwhile; whether the mistakes differ is the answer.
    async fn take(&mut self, changes: &mut Vec<Change>) -> bool {
        let mut told = Vec::new();
        self.told.recv_many(&mut told, QUEUE).await;
        if told.is_empty() {
            // The followers have ended, as they do with the runtime.
            return std::future::pending().await;
        }
        let differ = told.into_iter().map(|(kind, told)| self.held.take(kind, told, changes));
        differ.fold(false, |some, one| some | one)
    }
}

#[cfg(test)]
mod tests;
