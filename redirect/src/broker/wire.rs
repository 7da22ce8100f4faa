//! Packets of the broker socket: one protobuf message and its descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::readiness::watched;

/// The messages, compiled from `proto/broker.proto`.
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/ztunnel.redirect.rs"));
}

/// Version spoken by this build. There is no other yet.
pub const VERSION: u32 = 1;
/// No message is longer; a longer packet is truncated by the kernel and refused.
pub const MAX_PACKET: usize = 16 * 1024;
/// Most descriptors in one packet that this protocol sends (the kernel's own limit is 253).
pub const MAX_DESCRIPTORS: usize = 64;

/// The kernel's limit on descriptors in one packet. The receive buffer has room for as many, so that a packet with too
/// many is seen whole and refused by count.
const SCM_MAX_FD: usize = 253;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("broker socket: {0}")]
    Io(#[from] std::io::Error),
    #[error(
        "broker packet truncated (more than {MAX_PACKET} bytes, or no free descriptors: raise RLIMIT_NOFILE)"
    )]
    Truncated,
    #[error("broker packet is not the expected message: {0}")]
    Undecodable(#[from] prost::DecodeError),
    #[error("broker message of {0} bytes, at most {MAX_PACKET} can be sent")]
    TooLarge(usize),
}

/// One end of a broker connection.
#[derive(Debug)]
pub struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Takes a connected, non-blocking SOCK_SEQPACKET socket. Must be called on a tokio runtime.
    pub fn new(socket: OwnedFd) -> std::io::Result<Self> {
        Ok(Self { socket: watched(socket)? })
    }

    /// Sends one packet; cancel-safe: it was sent whole or not at all.
    pub async fn send(&self, message: &impl Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = message.encode_to_vec();
        if bytes.len() > MAX_PACKET {
            return Err(Error::TooLarge(bytes.len()));
        }
        let send = |socket: &OwnedFd| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(std::io::Error::other("too many descriptors for one packet"));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)?)
        };
        self.socket.async_io(Interest::WRITABLE, send).await?;
        Ok(())
    }

    /// Receives one packet, None at the end of the connection; cancel-safe.
    pub async fn receive<M: Message + Default>(&self) -> Result<Option<(M, Vec<OwnedFd>)>, Error> {
        let mut bytes = vec![0; MAX_PACKET];
        let (length, flags, descriptors) =
            self.socket.async_io(Interest::READABLE, |socket| receive(socket, &mut bytes)).await?;
        if flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(Error::Truncated);
        }
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((M::decode(&bytes[..length])?, descriptors)))
    }

    /// Ends the connection in both directions; the other end and a pending `receive` see its end.
    pub fn shutdown(&self) {
        // Fails only when the peer has already closed, which is what was wanted.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> std::io::Result<(usize, ReturnFlags, Vec<OwnedFd>)> {
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
