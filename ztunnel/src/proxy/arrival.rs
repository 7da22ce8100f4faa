//! A connection from its acceptance to the worker that carries it.

use std::net::TcpStream as StdStream;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use ztunnel_model::{LocalAddr, OrigDst, PeerAddr};

use super::seats::{Seat, Whose};
use super::{Opening, PodProxy, inbound, outbound, passthrough};
use crate::io::budget::Taken;
use crate::net::listen::Accepted;
use crate::shutdown::Guard;
use crate::telemetry::OpenSocket;
use crate::telemetry::events::Reporter;

/// Which of the straight lines it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Outbound,
    Plaintext,
    Hbone,
}

/// What lives as long as the connection, for its Drop.
pub(super) struct Held {
    pub(super) _guard: Guard,
    pub(super) _open: OpenSocket,
    pub(super) _carried: OpenSocket,
    /// Where the line takes room.
    pub(super) _taken: Option<Taken>,
    pub(super) _seat: Arc<Seat>,
}

/// A connection that one worker accepted and another will carry.
pub struct Arrival {
    line: Line,
    stream: StdStream,
    peer: PeerAddr,
    local: LocalAddr,
    orig_dst: OrigDst,
    held: Held,
}

impl Line {
    pub(super) fn reporter(self) -> Reporter {
        match self {
            Self::Outbound => Reporter::Source,
            Self::Plaintext | Self::Hbone => Reporter::Destination,
        }
    }

    pub(super) fn whose(self, accepted: &Accepted) -> Whose {
        match self {
            Self::Outbound => Whose::Own,
            Self::Plaintext | Self::Hbone => Whose::Caller(accepted.peer.ip()),
        }
    }

    /// A tunnel does not: its streams do.
    pub(super) fn takes_room(self) -> bool {
        self != Self::Hbone
    }

    pub(super) fn open(self, pod: Rc<PodProxy>, accepted: Accepted) -> Opening {
        match self {
            Self::Outbound => Box::pin(outbound::open(pod, accepted)),
            Self::Plaintext => Box::pin(passthrough::open(pod, accepted)),
            Self::Hbone => Box::pin(inbound::open(pod, accepted)),
        }
    }
}

impl Arrival {
    /// Leaves the thread that it was accepted on.
    pub(super) fn new(line: Line, accepted: Accepted, held: Held) -> std::io::Result<Self> {
        let Accepted { stream, peer, local, orig_dst } = accepted;
        Ok(Self { line, stream: stream.into_std()?, peer, local, orig_dst, held })
    }

    /// Comes to the thread that carries it.
    pub(super) fn settle(self) -> std::io::Result<(Line, Accepted, Held)> {
        let Self { line, stream, peer, local, orig_dst, held } = self;
        let stream = TcpStream::from_std(stream)?;
        Ok((line, Accepted { stream, peer, local, orig_dst }, held))
    }
}
