//! Accepting inside a pod.

use std::io;
use std::time::Duration;

use redirect::original_dst::original_dst;
use tokio::net::{TcpListener, TcpStream};
use ztunnel_model::{LocalAddr, OrigDst, PeerAddr, canonical};

use super::socket::{self, Options};

/// A connection that the kernel handed over, with where it came from and where it was going.
pub struct Accepted {
    pub stream: TcpStream,
    pub peer: PeerAddr,
    pub local: LocalAddr,
    /// What the application dialled; equal to `local` when nothing was redirected.
    pub orig_dst: OrigDst,
}

/// A listening socket inside a pod's network namespace. The agent keeps it too, so closing this end refuses nobody.
pub struct Listener {
    inner: TcpListener,
}

impl Listener {
    /// Takes the worker's copy of a listening socket.
    pub fn new(listener: std::net::TcpListener, options: &Options) -> io::Result<Self> {
        socket::prepare_anew(&listener, options)?;
        Ok(Self { inner: TcpListener::from_std(listener)? })
    }

    /// The next connection. Errors of one connection are skipped; a shortage of descriptors or memory waits and
    /// tries again, so that it neither spins nor ends the listener.
    pub async fn accept(&self) -> Accepted {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.try_accept().await {
                Ok(accepted) => return accepted,
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, pause_ms = pause.as_millis(), "accept failed");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    async fn try_accept(&self) -> io::Result<Accepted> {
        let (stream, peer) = self.inner.accept().await?;
        let local = canonical(stream.local_addr()?);
        let orig_dst = original_dst(&stream).unwrap_or(local);
        Ok(Accepted {
            peer: PeerAddr::new(peer),
            local: LocalAddr::new(local),
            orig_dst: OrigDst::new(orig_dst),
            stream,
        })
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(1);

fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::InvalidInput
    )
}

/// Whether two descriptors are the same listening socket.
pub fn same_socket(one: &std::net::TcpListener, other: &std::net::TcpListener) -> bool {
    let inode = |listener| nix::sys::stat::fstat(listener).map(|stat| stat.st_ino);
    matches!((inode(one), inode(other)), (Ok(one), Ok(other)) if one == other)
}
