//! Objects of a Kubernetes API server, followed for ever: listed page by page, watched from there on, and never lost while
//! the API server is away, slow, overloaded or confused.
//!
//! Owns the way to the API server, and what is asked of it and read of its answers, each with a deadline and a greatest length;
//! [`Follower`] has the states. Must not know what the objects mean: it hands out JSON, of which only what its user
//! [keeps](Keep) was ever in memory. Its users are the controller and the node agent, two trust domains that follow the same
//! API and must not link each other; each has one module for it, `source::kube`. The crate `kube` is a
//! dependency of this one alone.
//!
//! The followers are not kube-runtime's: that opens a watch that ends at once again without a pause, has no deadline for a
//! list, holds to a version that the API server refuses for ever, and logs a list that it cannot read in whole. Of `kube` comes
//! what is hard to do well: how to reach the API server and to prove who we are (in a cluster, or by KUBECONFIG, with tokens and
//! roots that rotate), and how it is asked.

mod ask;
mod follow;
mod keep;
#[cfg(feature = "scripted")]
pub mod scripted;
mod single;

use std::borrow::Cow;
use std::time::Duration;

pub use kube::{Client, Config};

pub use ask::{Trouble, read};
pub use follow::{Follower, Told};
pub use keep::Keep;
pub use single::{apply, delete, get, merge, post};

const CONNECT: Duration = Duration::from_secs(10);

/// Objects that are followed: where the API has them, and what is read of them.
#[derive(Clone, Debug)]
pub struct Resource {
    /// For logs.
    pub name: &'static str,
    /// The list of all of them.
    pub path: Cow<'static, str>,
    /// The API server is asked for no more than the metadata.
    pub metadata_only: bool,
    /// Made by a CustomResourceDefinition, which may not be there.
    pub custom: bool,
    pub keep: Keep,
    /// The API server tells only of those that match.
    pub field_selector: Option<String>,
}

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

/// How to reach the cluster whose pod this is, or that KUBECONFIG names.
pub async fn infer() -> Result<Config, Error> {
    Config::infer().await.map_err(|error| Error::Where(Box::new(error)))
}

/// Connects when something is asked.
pub fn client(mut config: Config) -> Result<Client, Error> {
    config.connect_timeout = Some(CONNECT);
    // Whoever asks does, with back-off.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| Error::Client(Box::new(error)))
}
