use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::lab::LONGEST_NAME;
use crate::manifests::Mistake;
use crate::{binaries, namespace, network, process};

/// How long a process of the lab may take to be ready.
pub(crate) const UP_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the lab needs root: it makes network namespaces")]
    NotRoot,
    #[error("\"{0}\" cannot name a lab (1 to {LONGEST_NAME} of a-z, 0-9 and -, not starting with -)")]
    Name(String),
    #[error("the lab \"{0}\" is up already; take it down first")]
    Up(String),
    #[error("the lab \"{0}\" is not up")]
    Down(String),
    #[error("there is no pod or node \"{name}\" (there are: {known})")]
    Unknown { name: String, known: String },
    #[error(transparent)]
    Binaries(#[from] binaries::Error),
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{0} is not a folder; a lab is described by a folder of Kubernetes manifests")]
    NoFolder(PathBuf),
    #[error("the folder of manifests has {} mistake(s):\n{}", .0.len(), lines(.0))]
    Mistakes(Vec<Mistake>),
    #[error("{0}")]
    Pods(String),
    #[error("{what} was not ready within {} s; last lines of its log:\n{log}", UP_DEADLINE.as_secs())]
    NotReady { what: String, log: String },
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("  {mistake}")).collect::<Vec<_>>().join("\n")
}
