//! Network namespaces, named by a file and told apart by inode; and the only way into one.
//!
//! Work in a pod's namespace runs on a thread of its own that ends with it. No thread of a runtime ever changes its
//! namespace, so nothing needs to be restored, and a panic inside ends that thread only.
//!
//! A namespace is kept alive by an open [`Netns`] and by every socket made inside, so a `Netns` is opened for a piece
//! of work and dropped with it; between, a pod's namespace is remembered as path and [`Ident`].

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("network namespace {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} is not a network namespace (yet)")]
    NotANamespace { path: PathBuf },
    #[error("{path} is another network namespace than before")]
    Replaced { path: PathBuf },
    #[error("entering network namespace {path}: {source}; the agent needs CAP_SYS_ADMIN")]
    Enter { path: PathBuf, source: io::Error },
    #[error("work in network namespace {path} panicked")]
    Panicked { path: PathBuf },
}

impl Error {
    /// Whether the namespace does not exist, as opposed to work in it having failed.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NotANamespace { .. } | Self::Replaced { .. } => true,
            Self::Enter { .. } | Self::Panicked { .. } => false,
        }
    }
}

/// Which namespace it is. The kernel uses an inode number again once the namespace is destroyed, so equality proves
/// sameness only while something keeps the first one alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ident {
    pub device: u64,
    pub inode: u64,
}

impl Ident {
    /// Of whatever lies at `path` now.
    pub fn at(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|found| Self { device: found.dev(), inode: found.ino() })
    }

    /// Of the namespace in which a socket was made.
    pub fn of_socket(socket: &impl AsFd) -> io::Result<Self> {
        let found = sockets_namespace(socket)?.metadata()?;
        Ok(Self { device: found.dev(), inode: found.ino() })
    }
}

/// Where a pod's namespace is found.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "PathBuf")]
pub enum Place {
    /// At a path, where another namespace may lie later.
    Path(PathBuf),
    /// By a descriptor that was given to this agent; it keeps the namespace alive.
    Descriptor(Arc<Netns>),
}

impl Place {
    pub fn of_descriptor(descriptor: OwnedFd) -> Result<Self, Error> {
        let file = File::from(descriptor);
        let path = PathBuf::from("a descriptor");
        let inode = file.metadata().map_err(|source| Error::Open { path, source })?.ino();
        Ok(Self::Descriptor(Arc::new(Netns::of(file, PathBuf::from(format!("net:[{inode}]")))?)))
    }

    pub fn open(&self) -> Result<Netns, Error> {
        match self {
            Self::Path(path) => Netns::open(path),
            Self::Descriptor(held) => {
                let failed = |source| Error::Open { path: held.path.clone(), source };
                let file = held.file.try_clone().map_err(failed)?;
                Ok(Netns { file, path: held.path.clone(), ident: held.ident })
            }
        }
    }

    /// Opens only if it is still the namespace it was.
    pub fn reopen(&self, ident: Ident) -> Result<Netns, Error> {
        let opened = self.open()?;
        if opened.ident == ident { Ok(opened) } else { Err(Error::Replaced { path: opened.path }) }
    }

    /// Of whatever lies there now.
    pub fn ident(&self) -> io::Result<Ident> {
        match self {
            Self::Path(path) => Ident::at(path),
            Self::Descriptor(held) => Ok(held.ident),
        }
    }

    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Descriptor(_) => None,
        }
    }
}

impl From<PathBuf> for Place {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(one), Self::Path(other)) => one == other,
            // Both are alive, so the inode number is not in use again.
            (Self::Descriptor(one), Self::Descriptor(other)) => one.ident == other.ident,
            _ => false,
        }
    }
}

impl Eq for Place {}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Descriptor(held) => held.path.display().fmt(f),
        }
    }
}

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    ident: Ident,
}

impl Netns {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Self::of(file, path.to_owned())
    }

    fn of(file: File, path: PathBuf) -> Result<Self, Error> {
        let kind = fstatfs(&file).map_err(io::Error::from).and_then(|kind| Ok((kind, file.metadata()?)));
        match kind {
            Ok((kind, _)) if kind.filesystem_type() != NSFS_MAGIC => Err(Error::NotANamespace { path }),
            Ok((_, found)) => {
                let ident = Ident { device: found.dev(), inode: found.ino() };
                Ok(Self { file, path, ident })
            }
            Err(source) => Err(Error::Open { path, source }),
        }
    }

    pub fn ident(&self) -> Ident {
        self.ident
    }

    /// Brings the calling thread inside, and with it whatever it starts from then on. For a process that has one thread yet.
    pub fn enter(&self) -> Result<(), Error> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::Enter { path: self.path.clone(), source: errno.into() })
    }

    /// Runs `work` inside, on a thread of its own.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let path = self.path.clone();
        self.start(work)?.await.map_err(|_| Error::Panicked { path })?
    }

    /// As [`run`](Self::run), for callers outside a runtime.
    pub fn run_blocking<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let path = self.path.clone();
        self.start(work)?.blocking_recv().map_err(|_| Error::Panicked { path })?
    }

    fn start<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, Error>>, Error> {
        let (done, outcome) = oneshot::channel();
        let path = self.path.clone();
        let inside = move || {
            let entered = self.enter();
            // The namespace is now held by this thread; it must not outlive the work through the open file.
            drop(self.file);
            // The receiver is gone only if its caller was dropped; then nobody wants the outcome.
            let _ = done.send(entered.map(|()| work()));
        };
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn(inside)
            .map_err(|source| Error::Enter { path, source })?;
        Ok(outcome)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[expect(unsafe_code, reason = "SIOCGSKNS has no safe wrapper")]
fn sockets_namespace(socket: &impl AsFd) -> io::Result<File> {
    use std::os::fd::FromRawFd;

    /// Returns a descriptor of the socket's network namespace (linux/sockios.h).
    const SIOCGSKNS: nix::libc::c_ulong = 0x894C;
    nix::ioctl_none_bad!(siocgskns, SIOCGSKNS);
    // SAFETY: the descriptor is open while borrowed, and this request takes no argument.
    let found = unsafe { siocgskns(socket.as_fd().as_raw_fd()) }?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(found) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::fixture::fresh_netns;

    #[test]
    fn a_socket_tells_its_namespace() {
        let netns = fresh_netns();
        let ident = netns.ident();
        let own = Ident::at(Path::new("/proc/self/ns/net")).expect("own namespace");
        let socket = netns
            .run_blocking(|| std::net::UdpSocket::bind("0.0.0.0:0").expect("socket"))
            .expect("work in the namespace");
        assert_eq!(Ident::of_socket(&socket).expect("ident"), ident);
        assert_ne!(ident, own);
    }

    #[test]
    fn a_panic_inside_harms_nobody() {
        let own = Ident::at(Path::new("/proc/thread-self/ns/net")).expect("own namespace");
        let outcome = fresh_netns().run_blocking(|| panic!("expected by this test"));
        assert!(matches!(outcome, Err::<(), _>(Error::Panicked { .. })));
        assert_eq!(Ident::at(Path::new("/proc/thread-self/ns/net")).expect("own namespace"), own);
    }

    #[test]
    fn only_namespaces_open() {
        let error = Netns::open(Path::new("/proc/self/status")).expect_err("a plain file");
        assert!(matches!(error, Error::NotANamespace { .. }));
        assert!(Netns::open(Path::new("/run/netns/does-not-exist")).expect_err("missing").is_gone());
        let netns = fresh_netns();
        let place = Place::Path(netns.path.clone());
        let other = Ident { device: netns.ident().device, inode: netns.ident().inode + 1 };
        assert!(matches!(place.reopen(other), Err(Error::Replaced { .. })));
        let file = File::open("/proc/self/status").expect("a plain file");
        assert!(matches!(Place::of_descriptor(file.into()), Err(Error::NotANamespace { .. })));
    }
}
