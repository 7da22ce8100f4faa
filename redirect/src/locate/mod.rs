//! Where a pod's network namespace is, and the proof that it is the pod's.
//!
//! A new pod's is told by the CNI plugin; of one that was there before, some process has the pod's UID in its control group.
//! Neither is believed: the namespace must not be the node's own, and each of the pod's addresses must be on an interface
//! inside. So a process that was misread, or a path that leads elsewhere by now, never has its namespace captured.
//!
//! What is found is a path and never a descriptor, for an open one keeps a dead pod's namespace alive: the path that the
//! container runtime made, or where it made none, that of the pod's oldest process, which is its sandbox. Both are there for an
//! agent that starts again, which can therefore withdraw what an earlier one captured.
//!
//! Must not know why a pod is looked for.

mod processes;

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::netns::{self, Ident, Place};
use processes::{Candidate, Scan};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no process has the pod's UID in its control group under {proc}; is that the node's /proc?")]
    NoProcess { proc: PathBuf },
    #[error("{proc}: {source}")]
    Processes { proc: PathBuf, source: io::Error },
    #[error("{place} is the node's own network namespace")]
    Hosts { place: Place },
    #[error("no interface in {place} has the pod's address {address}")]
    Foreign { place: Place, address: IpAddr },
    #[error("the pod has no address yet")]
    NoAddress,
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    #[error("addresses in {place}: {source}")]
    Addresses { place: Place, source: nix::Error },
    #[error("the look through the processes ended early")]
    Ended,
}

/// A namespace that is the pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    pub place: Place,
    pub ident: Ident,
    /// That were found inside.
    pub addresses: Vec<IpAddr>,
}

impl Located {
    /// Whether it is still there.
    pub fn is_there(&self) -> bool {
        self.place.ident().ok() == Some(self.ident)
    }
}

/// A pod whose namespace is looked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub uid: String,
    /// What its cgroups are named by.
    pub known_as: String,
    pub addresses: Vec<IpAddr>,
}

/// Where is looked.
#[derive(Debug, Clone)]
pub struct Locator {
    /// The node's /proc.
    pub proc: PathBuf,
    /// Where the container runtime leaves the pods' namespaces.
    pub netns: PathBuf,
}

impl Locator {
    /// Looks through the processes once for all of them.
    pub async fn find(&self, wanted: Vec<Wanted>) -> Vec<(String, Result<Located, Error>)> {
        let uids: HashSet<String> = wanted.iter().map(|one| one.known_as.clone()).collect();
        let (proc, netns) = (self.proc.clone(), self.netns.clone());
        let scan = tokio::task::spawn_blocking(move || Scan::of(&proc, &netns, &uids)).await;
        let mut found = Vec::with_capacity(wanted.len());
        for Wanted { uid, known_as, addresses } in wanted {
            let outcome = match &scan {
                Ok(Ok(scan)) => self.choose(scan, scan.candidates(&known_as), &addresses).await,
                Ok(Err(error)) => Err(Error::Processes {
                    proc: self.proc.clone(),
                    source: io::Error::new(error.kind(), error.to_string()),
                }),
                Err(_) => Err(Error::Ended),
            };
            found.push((uid, outcome));
        }
        found
    }

    /// Proves what the container runtime tells of a pod.
    pub async fn prove(&self, path: &Path, addresses: &[IpAddr]) -> Result<Located, Error> {
        let place = Place::from(path.to_owned());
        let ident = place.open()?.ident();
        if processes::hosts(&self.proc).contains(&ident) {
            return Err(Error::Hosts { place });
        }
        check(place, ident, addresses).await
    }

    async fn choose(
        &self,
        scan: &Scan,
        candidates: &[Candidate],
        addresses: &[IpAddr],
    ) -> Result<Located, Error> {
        let mut trouble = Error::NoProcess { proc: self.proc.clone() };
        let mut looked_at = HashSet::new();
        for candidate in candidates {
            if !looked_at.insert(candidate.ident) {
                continue;
            }
            let place = Place::from(scan.path(candidate));
            if scan.hosts.contains(&candidate.ident) {
                trouble = Error::Hosts { place };
                continue;
            }
            match check(place, candidate.ident, addresses).await {
                Ok(located) => return Ok(located),
                Err(error) => trouble = error,
            }
        }
        Err(trouble)
    }
}

async fn check(place: Place, ident: Ident, expected: &[IpAddr]) -> Result<Located, Error> {
    if expected.is_empty() {
        return Err(Error::NoAddress);
    }
    let inside = place.reopen(ident)?.run(addresses).await?;
    let inside = match inside {
        Ok(inside) => inside,
        Err(source) => return Err(Error::Addresses { place, source }),
    };
    match expected.iter().find(|address| !inside.contains(address)) {
        Some(&address) => Err(Error::Foreign { place, address }),
        None => Ok(Located { place, ident, addresses: expected.to_owned() }),
    }
}

/// By which others reach the namespace of the calling thread.
pub fn addresses() -> Result<Vec<IpAddr>, nix::Error> {
    let outward = getifaddrs()?.filter(|found| !found.flags.contains(InterfaceFlags::IFF_LOOPBACK));
    let addresses = outward.filter_map(|found| found.address).filter_map(|address| {
        let four = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        four.or_else(|| {
            let six = address.as_sockaddr_in6()?.ip();
            (!six.is_unicast_link_local()).then_some(six.into())
        })
    });
    Ok(addresses.collect())
}
