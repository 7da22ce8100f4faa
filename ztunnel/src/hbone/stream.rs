//! One CONNECT stream as a side of the relay.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use crate::io::buffer::Read;
use crate::relay::{Broken, Receive, Side, Transmit};

/// The two directions of a stream.
pub struct Stream {
    pub(super) receive: StreamReceive,
    pub(super) transmit: StreamTransmit,
}

impl Stream {
    pub(super) fn new(receive: RecvStream, transmit: SendStream<Bytes>) -> Self {
        Self { receive: StreamReceive(receive), transmit: StreamTransmit(RefCell::new(transmit)) }
    }

    pub fn halves(self) -> (StreamReceive, StreamTransmit) {
        (self.receive, self.transmit)
    }
}

pub struct StreamReceive(RecvStream);

impl Receive for StreamReceive {
    /// What comes is a piece of a larger buffer already.
    async fn receive(&mut self, _: &impl Transmit) -> Result<Option<Read>, Broken> {
        match self.0.data().await {
            None => Ok(None),
            Some(Ok(rest)) => Ok(Some(Read { taken: 0, rest })),
            // A peer that sent all it had while we still send resets with NO_ERROR: its data is complete (RFC 9113
            // section 8.1).
            Some(Err(error))
                if error.is_remote() && error.reason() == Some(Reason::NO_ERROR) && !error.is_go_away() =>
            {
                Ok(None)
            }
            Some(Err(error)) => Err(broken(error)),
        }
    }

    fn taken(&mut self, count: usize) {
        // Fails only when the stream is gone, and then there is nothing to give credit for.
        let _ = self.0.flow_control().release_capacity(count);
    }
}

/// Borrowed for single calls only, never while something is waited for.
pub struct StreamTransmit(RefCell<SendStream<Bytes>>);

impl Transmit for StreamTransmit {
    /// HTTP/2 keeps what it sends.
    fn offer(&self, _: &[u8]) -> usize {
        0
    }

    async fn transmit(&self, mut bytes: Bytes) -> Result<(), Broken> {
        while !bytes.is_empty() {
            self.0.borrow_mut().reserve_capacity(bytes.len());
            let capacity = match poll_fn(|context| self.0.borrow_mut().poll_capacity(context)).await {
                Some(Ok(capacity)) => capacity.min(bytes.len()),
                Some(Err(error)) => return Err(broken(error)),
                None => return Err(Broken::Reset(Side::Far)),
            };
            self.0.borrow_mut().send_data(bytes.split_to(capacity), false).map_err(broken)?;
        }
        Ok(())
    }

    async fn finish(&self) -> Result<(), Broken> {
        self.0.borrow_mut().send_data(Bytes::new(), true).map_err(broken)
    }

    async fn reset(&self) -> Broken {
        match poll_fn(|context| self.0.borrow_mut().poll_reset(context)).await {
            Ok(_) => Broken::Reset(Side::Far),
            Err(error) => broken(error),
        }
    }

    fn abort(&self) {
        self.0.borrow_mut().send_reset(Reason::CANCEL);
    }
}

/// RST_STREAM and a lost tunnel are how the far side's reset arrives; everything else is worth a word.
fn broken(error: h2::Error) -> Broken {
    let reset = error.is_reset() || error.is_go_away() || error.is_io() || error.reason().is_none();
    if reset && !matches!(error.reason(), Some(Reason::FLOW_CONTROL_ERROR | Reason::PROTOCOL_ERROR)) {
        return Broken::Reset(Side::Far);
    }
    Broken::Io { side: Side::Far, source: io::Error::other(error) }
}
