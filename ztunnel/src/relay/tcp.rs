//! A TCP connection as a side of the relay.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::splice::Splice;
use super::{Broken, Receive, Side, Transmit, broken};
use crate::io::buffer::{self, Read};
use crate::net::socket::{end_sending, reset_on_close};

/// The two directions of a TCP connection.
pub fn halves(stream: &mut TcpStream, side: Side) -> (TcpReceive<'_>, TcpTransmit<'_>) {
    let (read, write) = stream.split();
    (TcpReceive { read, side, splice: Splice::default() }, TcpTransmit { write, side })
}

pub struct TcpReceive<'a> {
    read: ReadHalf<'a>,
    side: Side,
    splice: Splice,
}

impl Receive for TcpReceive<'_> {
    async fn receive(&mut self, to: &impl Transmit) -> Result<Option<Read>, Broken> {
        let read = poll_fn(|context| self.poll_receive(context, to)).await?;
        Ok((read.taken > 0 || !read.rest.is_empty()).then_some(read))
    }

    fn taken(&mut self, _: usize) {}
}

impl TcpReceive<'_> {
    fn poll_receive(&mut self, context: &mut Context<'_>, to: &impl Transmit) -> Poll<Result<Read, Broken>> {
        let Some(far) = to.socket() else { return self.poll_read(context, to) };
        let near = (self.read.as_ref(), self.side);
        if let Some(taken) = ready!(self.splice.poll_move(context, near, far)?) {
            return Poll::Ready(Ok(Read { taken, rest: Bytes::new() }));
        }
        let read = ready!(self.poll_read(context, to)?);
        self.splice.was_copied(read.taken + read.rest.len());
        Poll::Ready(Ok(read))
    }

    fn poll_read(&mut self, context: &mut Context<'_>, to: &impl Transmit) -> Poll<Result<Read, Broken>> {
        let read = buffer::poll_read(&mut self.read, context, |bytes| to.offer(bytes));
        read.map_err(|error| broken(error, self.side))
    }
}

pub struct TcpTransmit<'a> {
    write: WriteHalf<'a>,
    side: Side,
}

impl Transmit for TcpTransmit<'_> {
    fn offer(&self, bytes: &[u8]) -> usize {
        self.write.try_write(bytes).unwrap_or(0)
    }

    fn socket(&self) -> Option<(&TcpStream, Side)> {
        Some((self.write.as_ref(), self.side))
    }

    async fn transmit(&self, mut bytes: Bytes) -> Result<(), Broken> {
        while !bytes.is_empty() {
            match self.write.try_write(&bytes) {
                Ok(count) => bytes.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Nobody else waits to write; and its waker is kept by the socket, not in every connection's future.
                    let writable = poll_fn(|context| self.write.as_ref().poll_write_ready(context));
                    writable.await.map_err(|error| broken(error, self.side))?;
                }
                Err(error) => return Err(broken(error, self.side)),
            }
        }
        Ok(())
    }

    async fn finish(&self) -> Result<(), Broken> {
        end_sending(self.write.as_ref()).map_err(|error| broken(error, self.side))
    }

    async fn reset(&self) -> Broken {
        match self.write.ready(Interest::ERROR).await {
            Ok(_) => Broken::Reset(self.side),
            Err(error) => broken(error, self.side),
        }
    }

    fn abort(&self) {
        reset_on_close(self.write.as_ref());
    }
}
