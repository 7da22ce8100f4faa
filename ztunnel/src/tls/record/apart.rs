//! The records of a connection without its socket, so that sealing and opening can be measured alone. The proxy itself
//! has no use for it.

use std::io::{self, IoSlice};

use tokio::io::ReadBuf;

use super::{Delivery, Error, Incoming, Outgoing, Session};

/// What is left of a [`Stream`](crate::tls::Stream) that let go of its socket: the keys that its handshake agreed on.
pub struct Records {
    session: Session,
    incoming: Incoming,
    outgoing: Outgoing,
}

impl Records {
    pub(in crate::tls) fn new(session: Session, incoming: Incoming, outgoing: Outgoing) -> Self {
        Self { session, incoming, outgoing }
    }

    /// Seals as much of `plain` as there is room for, and shows `wire` what the peer is to receive.
    pub fn seal(&mut self, plain: &[u8], wire: impl FnOnce(&[u8])) -> io::Result<usize> {
        let sealed = self.outgoing.seal(&mut self.session, &[IoSlice::new(plain)]).map_err(failure)?;
        let unsent = self.outgoing.unsent();
        wire(unsent);
        let count = unsent.len();
        self.outgoing.sent(count);
        Ok(sealed)
    }

    /// Takes what came from the peer, as far as there is room for it; returns how many bytes.
    pub fn receive(&mut self, wire: &[u8]) -> usize {
        let space = self.incoming.space();
        let count = space.len().min(wire.len());
        space[..count].copy_from_slice(&wire[..count]);
        self.incoming.filled(count);
        count
    }

    /// Opens what came, for as long as there is room in `plain`; returns how many bytes. Nothing is the peer's end.
    pub fn open(&mut self, plain: &mut [u8]) -> io::Result<usize> {
        let mut plain = ReadBuf::new(plain);
        match self.incoming.deliver(&mut self.session, &mut plain).map_err(failure)? {
            Delivery::Done | Delivery::Closed => Ok(plain.filled().len()),
        }
    }
}

fn failure(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
