//! Packets of a SOCK_SEQPACKET unix socket: bytes, and descriptors that ride with them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::readiness::watched;

/// Most descriptors in one packet that is sent.
pub(crate) const MAX_SENT: usize = 64;
/// The kernel's limit on descriptors in one packet. The receive buffer has room for as many, so that a packet with too
/// many is seen whole and refused by count.
const SCM_MAX_FD: usize = 253;

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Packets {
    socket: AsyncFd<OwnedFd>,
}

/// What was received. Its descriptors are closed with it.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// It was longer than the limit, or had descriptors that this process had no room for.
    pub(crate) truncated: bool,
}

impl Packets {
    /// Takes a connected, non-blocking SOCK_SEQPACKET socket. Must be called on a tokio runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watched(socket)? })
    }

    /// Sends one packet; cancel-safe: it was sent whole or not at all.
    pub(crate) async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let send = |socket: &OwnedFd| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::Error::other("too many descriptors for one packet"));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?)
        };
        self.socket.async_io(Interest::WRITABLE, send).await?;
        Ok(())
    }

    /// Receives one packet of at most `limit` bytes, None at the end of the connection; cancel-safe.
    pub(crate) async fn receive(&self, limit: usize) -> io::Result<Option<Packet>> {
        let mut bytes = vec![0; limit];
        let (length, flags, descriptors) =
            self.socket.async_io(Interest::READABLE, |socket| receive(socket, &mut bytes)).await?;
        let truncated = flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        if length == 0 && !truncated {
            return Ok(None);
        }
        bytes.truncate(length);
        Ok(Some(Packet { bytes, descriptors, truncated }))
    }

    /// Ends the connection in both directions; the other end and a pending `receive` see its end.
    pub(crate) fn shutdown(&self) {
        // Fails only when the peer has already closed, which is what was wanted.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<(usize, ReturnFlags, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    let descriptors = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((received.bytes, received.flags, descriptors))
}
