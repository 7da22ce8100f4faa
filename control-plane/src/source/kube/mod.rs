//! A Kubernetes cluster that is followed through its API: namespaces, nodes, pods, services, endpoint slices and Istio's
//! security policies.
//!
//! Nothing that worked is lost while the API server is away, slow, overloaded or confused: each kind has a [`Follower`] of its
//! own that comes back with a growing pause, and an object goes when the API server has said so, or has listed all of its kind
//! without it. Objects are read as manifests are, with the same mistakes and the same safe side (`source::file` has the
//! table); a mistake is told with the object and the field.
//!
//! What else passes between a controller and its cluster is here too, each in one module and each by `call`, one request with
//! a deadline: `review` asks whose a token is, `secret` shares the CA's signing material, `lease` elects the one controller
//! that acts for all, and that one publishes the `roots` and makes a `report` of each policy. These know what they are to say
//! from closures, not from the index.

mod call;
mod held;
mod lease;
mod report;
mod resource;
mod review;
mod roots;
mod secret;

use std::time::Duration;

pub use reflector::{Error, Timing};
use reflector::{Follower, Told};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::held::Held;
use self::resource::RESOURCES;
use super::file::Mistake;
use crate::object::{Change, Kind};

pub use self::call::Api;
pub use self::lease::{Candidate, Terms};
pub use self::report::{Enforced, Reporter, Verdict, Verdicts};
pub use self::review::Reviewer;
pub use self::roots::{RootPublisher, Wanted};
pub use self::secret::{Error as SecretError, SigningSecret};

/// Objects that were heard of and not taken yet; the followers wait behind them.
const QUEUE: usize = 256;

/// What is known of the cluster.
pub struct Cluster {
    held: Held,
    told: mpsc::Receiver<(Kind, Told)>,
    _followers: JoinSet<()>,
}

impl Cluster {
    /// Begins to follow.
    pub fn open(api: &Api, timing: Timing) -> Self {
        let (out, told) = mpsc::channel(QUEUE);
        let mut followers = JoinSet::new();
        for resource in &RESOURCES {
            followers.spawn(
                Follower::new(api.client(), resource.followed(), timing, resource.kind, out.clone()).run(),
            );
        }
        Self { held: Held::default(), told, _followers: followers }
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

/// From one failure to the next: each time twice as long, and less by up to half, so that not all come at once.
#[derive(Debug)]
struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: Duration::from_millis(200) }
    }
}

impl Pauses {
    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(Duration::from_secs(10));
        pause.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests;
