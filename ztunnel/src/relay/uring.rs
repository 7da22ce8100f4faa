//! A TCP connection as a side of the relay, by operations of the worker's ring. In what it promises it is `tcp`, and the tests
//! are the same.
//!
//! Applications' connections take this side, in tunnels and without; a tunnel's own connection (`tls`) stays on readiness: it reads and
//! writes much at a time for all of its streams, and its record layer works in place in memory that it keeps.
//!
//! A relay may be dropped at any moment: what it has in flight is left to the ring, which holds socket and memory until the kernel
//! has let go of both. No byte is lost that anybody waits for: a receive outlives the future that polls it, and a relay whose
//! `transmit` is dropped is over.

use std::future::poll_fn;

use bytes::Bytes;

use super::{Broken, Receive, Side, Transmit, broken};
use crate::io::buffer::Read;
use crate::io::uring::{self, Errors, Receiver, Socket};
use crate::net::socket::{end_sending, reset_on_close};

/// The two directions of a TCP connection.
pub fn halves(socket: &mut Socket, side: Side) -> (UringReceive<'_>, UringTransmit<'_>) {
    let receiver = Receiver::default();
    let receive = UringReceive { socket, receiver, side };
    (receive, UringTransmit { socket, errors: Errors::default(), side })
}

pub struct UringReceive<'a> {
    socket: &'a Socket,
    receiver: Receiver,
    side: Side,
}

impl Receive for UringReceive<'_> {
    async fn receive(&mut self, to: &impl Transmit) -> Result<Option<Read>, Broken> {
        let Self { socket, receiver, side } = self;
        match poll_fn(|context| receiver.poll_receive(socket, context, |bytes: &[u8]| to.offer(bytes))).await
        {
            Ok(read) => Ok((read.taken > 0 || !read.rest.is_empty()).then_some(read)),
            Err(error) => Err(broken(error, *side)),
        }
    }

    fn taken(&mut self, _: usize) {}
}

pub struct UringTransmit<'a> {
    socket: &'a Socket,
    errors: Errors,
    side: Side,
}

impl Transmit for UringTransmit<'_> {
    /// The kernel keeps what it sends until it did.
    fn offer(&self, _: &[u8]) -> usize {
        0
    }

    async fn transmit(&self, bytes: Bytes) -> Result<(), Broken> {
        if bytes.is_empty() {
            return Ok(());
        }
        uring::send(self.socket, bytes).await.map_err(|error| broken(error, self.side))
    }

    async fn finish(&self) -> Result<(), Broken> {
        end_sending(self.socket.stream()).map_err(|error| broken(error, self.side))
    }

    async fn reset(&self) -> Broken {
        match self.errors.wait(self.socket).await {
            Ok(()) => Broken::Reset(self.side),
            Err(error) => broken(error, self.side),
        }
    }

    fn abort(&self) {
        reset_on_close(self.socket.stream());
    }
}
