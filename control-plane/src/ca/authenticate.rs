//! Which node calls, and for which identities it may ask.
//!
//! A node proves itself with its bearer token and may only ask for the identities of the pods it runs: a stolen node token
//! yields that node's pods and no others. Who says whose a token is, is behind [`Authenticate`]: a file here, the API server
//! in `source::kube`. The file is looked at for every request and read again when it has changed, so a pod's identity is
//! granted, and withdrawn, without a restart.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::{constant_time, digest};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use ztunnel_model::Identity;

/// Tells which node shows a token.
#[tonic::async_trait]
pub trait Authenticate: Send + Sync {
    async fn node(&self, token: &str) -> Result<Proven, Refused>;
}

/// Tells which identities live on a node: of those, and of no others, it may ask for certificates.
pub trait Residents: Send + Sync {
    fn may_hold(&self, node: &str, identity: &Identity) -> bool;

    /// Changes when a refusal may no longer hold. Without it a refusal is final.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// What a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    pub node: String,
    /// From then on it proves nothing.
    pub expires: Option<SystemTime>,
}

/// Why a token proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the bearer token is no node's")]
    Unknown,
    #[error("the bearer token{} expired {ago_s} s ago", node.as_ref().map(|node| format!(" of node {node}")).unwrap_or_default())]
    Expired { node: Option<String>, ago_s: u64 },
    #[error(
        "the bearer token is one of {account}, which is no account of a proxy; --proxy-accounts names those that are"
    )]
    NoProxy { account: String },
    #[error("the bearer token cannot be checked now: {reason}")]
    Unavailable { reason: String },
}

/// Several who may know a token: the first that does decides.
pub struct AnyOf(pub Vec<Arc<dyn Authenticate>>);

/// The token that a call carries.
pub fn bearer(metadata: &MetadataMap) -> Option<&str> {
    metadata.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")
}

impl Refused {
    pub fn code(&self) -> Code {
        match self {
            Self::Unknown | Self::Expired { .. } => Code::Unauthenticated,
            Self::NoProxy { .. } => Code::PermissionDenied,
            Self::Unavailable { .. } => Code::Unavailable,
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code(), refused.to_string())
    }
}

#[tonic::async_trait]
impl Authenticate for AnyOf {
    async fn node(&self, token: &str) -> Result<Proven, Refused> {
        for one in &self.0 {
            match one.node(token).await {
                Err(Refused::Unknown) => {}
                known => return known,
            }
        }
        Err(Refused::Unknown)
    }
}

/// The nodes of one file.
#[derive(Debug)]
pub struct Nodes {
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

/// A caller who has shown a node's token.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    token: digest::Digest,
    expires: Option<SystemTime>,
    identities: HashSet<Identity>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the nodes file {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the nodes file {}: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("the nodes file {}: {}", path.display(), mistakes.join("; "))]
    Content { path: PathBuf, mistakes: Vec<String> },
}

impl Nodes {
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { path: path.to_owned(), loaded: Mutex::new(read(path)?) })
    }

    /// The node whose token this is, by the file as it is now.
    pub fn authenticate(&self, token: &str) -> Option<Arc<Node>> {
        self.identify(token, SystemTime::now()).ok()
    }

    fn identify(&self, token: &str, now: SystemTime) -> Result<Arc<Node>, Refused> {
        let found = find(&self.loaded().nodes, token).ok_or(Refused::Unknown)?;
        match found.expires.and_then(|end| now.duration_since(end).ok()) {
            Some(ago) => Err(Refused::Expired { node: Some(found.name.clone()), ago_s: ago.as_secs() }),
            None => Ok(found),
        }
    }

    /// The file as it is now. One that cannot be used leaves the last good one in force.
    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp(&self.path).is_ok_and(|now| now != loaded.stamp) {
            match read(&self.path) {
                Ok(new) => {
                    tracing::info!(nodes = new.nodes.len(), "nodes file read again");
                    *loaded = new;
                }
                Err(error) => {
                    tracing::error!(%error, "nodes file unusable; the last good one stays in force")
                }
            }
        }
        loaded
    }
}

#[tonic::async_trait]
impl Authenticate for Nodes {
    async fn node(&self, token: &str) -> Result<Proven, Refused> {
        let node = self.identify(token, SystemTime::now())?;
        Ok(Proven { node: node.name.clone(), expires: node.expires })
    }
}

impl Residents for Nodes {
    fn may_hold(&self, node: &str, identity: &Identity) -> bool {
        self.loaded().nodes.iter().any(|one| one.name == node && one.may_ask_for(identity))
    }
}

impl Node {
    pub fn may_ask_for(&self, identity: &Identity) -> bool {
        self.identities.contains(identity)
    }
}

#[derive(Debug)]
struct Loaded {
    stamp: Stamp,
    nodes: Vec<Arc<Node>>,
}

/// Tells one version of a file from the next, also when it was replaced within one tick of the clock.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    nodes: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: String,
    token: String,
    /// RFC 3339; a token without an end has none.
    expires: Option<String>,
    identities: Vec<String>,
}

/// Hashes are compared, each in constant time, and all of them always: how long it takes tells nothing of any token.
fn find(nodes: &[Arc<Node>], token: &str) -> Option<Arc<Node>> {
    let token = hash(token);
    let mut found = None;
    for node in nodes {
        if constant_time::verify_slices_are_equal(node.token.as_ref(), token.as_ref()).is_ok() {
            found = Some(Arc::clone(node));
        }
    }
    found
}

fn hash(token: &str) -> digest::Digest {
    digest::digest(&digest::SHA256, token.as_bytes())
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let found = fs::metadata(path)?;
    Ok(Stamp { inode: found.ino(), size: found.size(), modified: (found.mtime(), found.mtime_nsec()) })
}

fn read(path: &Path) -> Result<Loaded, Error> {
    let unreadable = |source| Error::File { path: path.to_owned(), source };
    // Taken before the content: a change between the two is then seen as a change, and read once more.
    let stamp = stamp(path).map_err(unreadable)?;
    let text = fs::read(path).map_err(unreadable)?;
    let file: File =
        serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    let nodes = check(file).map_err(|mistakes| Error::Content { path: path.to_owned(), mistakes })?;
    Ok(Loaded { stamp, nodes })
}

fn check(file: File) -> Result<Vec<Arc<Node>>, Vec<String>> {
    let mut mistakes = Vec::new();
    let (mut names, mut tokens) = (HashSet::new(), HashSet::new());
    let mut nodes = Vec::new();
    for entry in file.nodes {
        let name = &entry.name;
        if name.is_empty() {
            mistakes.push("a node has no name".to_owned());
        }
        if !names.insert(name.clone()) {
            mistakes.push(format!("node {name} is there twice"));
        }
        if entry.token.is_empty() {
            mistakes.push(format!("the token of node {name} is empty"));
        }
        if !tokens.insert(entry.token.clone()) {
            mistakes.push(format!("the token of node {name} is another node's too"));
        }
        let mut identities = HashSet::new();
        for text in &entry.identities {
            match text.parse() {
                Ok(identity) => drop(identities.insert(identity)),
                Err(error) => mistakes.push(format!("node {name}: {error}")),
            }
        }
        let expires = entry.expires.as_deref().and_then(|text| match OffsetDateTime::parse(text, &Rfc3339) {
            Ok(end) => Some(SystemTime::from(end)),
            Err(_) => {
                mistakes
                    .push(format!("node {name}: expires {text:?} is no time such as 2030-01-31T12:00:00Z"));
                None
            }
        });
        nodes.push(Arc::new(Node { name: entry.name, token: hash(&entry.token), expires, identities }));
    }
    if mistakes.is_empty() { Ok(nodes) } else { Err(mistakes) }
}

#[cfg(test)]
mod tests;
