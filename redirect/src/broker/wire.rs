//! Packets of the broker socket: one protobuf message and its descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;

use crate::packet::{MAX_SENT, Packets};

/// The messages, compiled from `proto/broker.proto`.
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/ztunnel.redirect.rs"));
}

/// Version spoken by this build. There is no other yet.
pub const VERSION: u32 = 1;
/// No message is longer; a longer packet is truncated by the kernel and refused.
pub const MAX_PACKET: usize = 16 * 1024;
/// Most descriptors in one packet that this protocol sends (the kernel's own limit is 253).
pub const MAX_DESCRIPTORS: usize = MAX_SENT;

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
    packets: Packets,
}

impl Connection {
    /// Takes a connected, non-blocking SOCK_SEQPACKET socket. Must be called on a tokio runtime.
    pub fn new(socket: OwnedFd) -> std::io::Result<Self> {
        Ok(Self { packets: Packets::new(socket)? })
    }

    /// Sends one packet; cancel-safe: it was sent whole or not at all.
    pub async fn send(&self, message: &impl Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = message.encode_to_vec();
        if bytes.len() > MAX_PACKET {
            return Err(Error::TooLarge(bytes.len()));
        }
        Ok(self.packets.send(&bytes, descriptors).await?)
    }

    /// Receives one packet, None at the end of the connection; cancel-safe.
    pub async fn receive<M: Message + Default>(&self) -> Result<Option<(M, Vec<OwnedFd>)>, Error> {
        match self.packets.receive(MAX_PACKET).await? {
            None => Ok(None),
            Some(packet) if packet.truncated => Err(Error::Truncated),
            Some(packet) => Ok(Some((M::decode(packet.bytes.as_slice())?, packet.descriptors))),
        }
    }

    /// Ends the connection in both directions; the other end and a pending `receive` see its end.
    pub fn shutdown(&self) {
        self.packets.shutdown();
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.packets.as_fd()
    }
}
