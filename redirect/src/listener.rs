//! A listening SOCK_SEQPACKET unix socket that belongs to one live agent.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::readiness::watched;

const BACKLOG: i32 = 16;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("socket {path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("another agent serves the socket {path}; end it first")]
    Taken { path: PathBuf },
}

pub(crate) struct Listener {
    socket: AsyncFd<OwnedFd>,
    /// Held for as long as this agent lives, so that no other takes its socket away.
    _lock: File,
}

impl Listener {
    /// Binds the socket for this user and `owner`, with mode 0600 or 0660; a file that an earlier agent left is replaced, one of a live agent
    /// is not.
    pub(crate) fn bind(path: &Path, owner: Option<u32>) -> Result<Self, Error> {
        let fail = |source| Error::Socket { path: path.to_owned(), source };
        let lock = File::create(path.with_extension("lock")).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Taken { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
        let bind = || {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SockAddr::unix(path)?)?;
            // By its group this user gets in beside the owner, even without the capability to pass over modes.
            let mode = if owner.is_some() { 0o660 } else { 0o600 };
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            chown(path, owner, None)?;
            socket.listen(BACKLOG)?;
            watched(socket.into())
        };
        Ok(Self { socket: bind().map_err(fail)?, _lock: lock })
    }

    /// The next connection, non-blocking.
    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        let accept = |socket: &OwnedFd| SockRef::from(socket).accept().map(|(peer, _)| peer);
        let accepted = self.socket.async_io(Interest::READABLE, accept).await?;
        accepted.set_nonblocking(true)?;
        Ok(accepted)
    }
}
