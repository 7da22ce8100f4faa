//! Waits for many sockets at once, with one descriptor for the runtime and no task for each.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::readiness::watched;

/// Most that are told at once; what is left is told next.
const MOST: usize = 256;

pub(crate) struct Wake(AsyncFd<OwnedFd>);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(watched(epoll::create(epoll::CreateFlags::CLOEXEC)?)?))
    }

    /// A socket that is closed is forgotten by itself.
    pub(crate) fn add(&self, socket: &impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(self.0.get_ref(), socket, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?)
    }

    /// The tokens of sockets that have something to say; cancel-safe.
    pub(crate) async fn woken(&self) -> Vec<u64> {
        let ready = |set: &OwnedFd| {
            let mut events = Vec::with_capacity(MOST);
            epoll::wait(
                set,
                rustix::buffer::spare_capacity(&mut events),
                Some(&rustix::event::Timespec::default()),
            )?;
            match events.is_empty() {
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => Ok(events.iter().map(|event| event.data.u64()).collect()),
            }
        };
        match self.0.async_io(Interest::READABLE, ready).await {
            Ok(tokens) => tokens,
            // The periodic audit sees what would have been told.
            Err(error) => {
                tracing::error!(%error, "changes of rules are not heard, only looked for");
                std::future::pending().await
            }
        }
    }
}
