//! Messages of ZDS and their packets.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use prost::Message;
use proto::{workload_request, workload_response};

use crate::packet::{Packet, Packets};

/// The messages, compiled from `proto/zds.proto`.
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/istio.workload.zds.rs"));
}

/// Both ends read no more.
pub const MAX_MESSAGE: usize = 1024;
/// For the other end to take a message off a full socket.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("ZDS socket: {0}")]
    Io(#[from] io::Error),
    #[error("the other end takes no message for {} s", SEND_DEADLINE.as_secs())]
    Stuck,
    #[error("the other end closed the connection")]
    Closed,
    #[error("message truncated (more than {MAX_MESSAGE} bytes, or no free descriptors: raise RLIMIT_NOFILE)")]
    Truncated,
    #[error("undecodable message: {0}")]
    Undecodable(#[from] prost::DecodeError),
    #[error("a message with an unexpected descriptor")]
    Descriptor,
    #[error("a message of {0} bytes, at most {MAX_MESSAGE} can be sent")]
    TooLarge(usize),
}

/// One end of a ZDS connection.
#[derive(Debug)]
pub(crate) struct Connection {
    packets: Packets,
}

impl Connection {
    /// Takes a connected, non-blocking SOCK_SEQPACKET socket. Must be called on a tokio runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { packets: Packets::new(socket)? })
    }

    pub(crate) async fn send(
        &self,
        message: &impl Message,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let bytes = message.encode_to_vec();
        if bytes.len() > MAX_MESSAGE {
            return Err(Error::TooLarge(bytes.len()));
        }
        let sent = self.packets.send(&bytes, descriptor.as_slice());
        Ok(tokio::time::timeout(SEND_DEADLINE, sent).await.map_err(|_| Error::Stuck)??)
    }

    /// Whatever comes next; cancel-safe.
    pub(crate) async fn packet(&self) -> Result<Packet, Error> {
        self.packets.receive(MAX_MESSAGE).await?.ok_or(Error::Closed)
    }

    /// A message that comes without a descriptor; cancel-safe.
    pub(crate) async fn receive<M: Message + Default>(&self) -> Result<M, Error> {
        let packet = self.packet().await?;
        if packet.truncated {
            return Err(Error::Truncated);
        }
        if !packet.descriptors.is_empty() {
            return Err(Error::Descriptor);
        }
        Ok(M::decode(packet.bytes.as_slice())?)
    }
}

pub(crate) fn request(payload: workload_request::Payload) -> proto::WorkloadRequest {
    proto::WorkloadRequest { payload: Some(payload) }
}

/// The text of an acknowledgement, empty for a success; None if it is something else.
pub(crate) fn acknowledged(response: proto::WorkloadResponse) -> Option<String> {
    let workload_response::Payload::Ack(ack) = response.payload?;
    Some(ack.error)
}
