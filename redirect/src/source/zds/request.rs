//! What istio-cni says, checked (interop.md section 6). Descriptors of a message that is refused are closed with it.

use std::os::fd::OwnedFd;

use prost::Message;

use crate::packet::Packet;
use crate::zds::wire::MAX_MESSAGE;
use crate::zds::wire::proto::workload_request::Payload;
use crate::zds::wire::proto::{WorkloadInfo, WorkloadRequest};

#[derive(Debug)]
pub(super) enum Request {
    Add { uid: String, info: WorkloadInfo, netns: OwnedFd },
    Keep { uid: String },
    Del { uid: String },
    SnapshotSent,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Mistake {
    #[error("message truncated (more than {MAX_MESSAGE} bytes, or no free descriptors: raise RLIMIT_NOFILE)")]
    Truncated,
    #[error("undecodable message: {0}")]
    Undecodable(#[from] prost::DecodeError),
    #[error("message without a payload that is known here")]
    Unknown,
    #[error("Add without the descriptor of a network namespace")]
    NoDescriptor,
    #[error("{0} descriptors in one message, expected one")]
    Descriptors(usize),
    #[error("a descriptor with a message that has none")]
    UnexpectedDescriptor,
    #[error("Add without workload_info")]
    NoInfo,
    #[error("Keep after SnapshotSent")]
    LateKeep,
    #[error("a second SnapshotSent")]
    SecondSnapshot,
}

pub(super) fn parse(packet: Packet) -> Result<Request, Mistake> {
    let Packet { bytes, mut descriptors, truncated } = packet;
    if truncated {
        return Err(Mistake::Truncated);
    }
    if descriptors.len() > 1 {
        return Err(Mistake::Descriptors(descriptors.len()));
    }
    let payload = WorkloadRequest::decode(bytes.as_slice())?.payload.ok_or(Mistake::Unknown)?;
    match (payload, descriptors.pop()) {
        (Payload::Add(add), Some(netns)) => {
            let info = add.workload_info.ok_or(Mistake::NoInfo)?;
            Ok(Request::Add { uid: add.uid, info, netns })
        }
        (Payload::Add(_), None) => Err(Mistake::NoDescriptor),
        (_, Some(_)) => Err(Mistake::UnexpectedDescriptor),
        (Payload::Keep(keep), None) => Ok(Request::Keep { uid: keep.uid }),
        (Payload::Del(del), None) => Ok(Request::Del { uid: del.uid }),
        (Payload::SnapshotSent(_), None) => Ok(Request::SnapshotSent),
    }
}
