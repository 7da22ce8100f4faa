//! A TCP connection as a side of the relay.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::{Broken, Receive, Side, Transmit};
use crate::io::buffer;
use crate::net::socket::{end_sending, reset_on_close};

/// The two directions of a TCP connection.
pub fn halves(stream: &mut TcpStream, side: Side) -> (TcpReceive<'_>, TcpTransmit<'_>) {
    let (read, write) = stream.split();
    (TcpReceive { read, side }, TcpTransmit { write, side })
}

pub struct TcpReceive<'a> {
    read: ReadHalf<'a>,
    side: Side,
}

impl Receive for TcpReceive<'_> {
    async fn receive(&mut self) -> Result<Option<Bytes>, Broken> {
        match poll_fn(|context| buffer::poll_read(&mut self.read, context)).await {
            Ok(bytes) => Ok((!bytes.is_empty()).then_some(bytes)),
            Err(error) => Err(broken(error, self.side)),
        }
    }

    fn taken(&mut self, _: usize) {}
}

pub struct TcpTransmit<'a> {
    write: WriteHalf<'a>,
    side: Side,
}

impl Transmit for TcpTransmit<'_> {
    async fn transmit(&mut self, mut bytes: Bytes) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let written = poll_fn(|context| Pin::new(&mut self.write).poll_write(context, &bytes)).await;
            bytes.advance(written.map_err(|error| broken(error, self.side))?);
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Broken> {
        match end_sending(self.write.as_ref()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            Err(error) => Err(broken(error, self.side)),
        }
    }

    async fn reset(&mut self) -> Broken {
        match self.write.ready(Interest::ERROR).await {
            Ok(_) => Broken::Reset(self.side),
            Err(error) => broken(error, self.side),
        }
    }

    fn abort(&mut self) {
        reset_on_close(self.write.as_ref());
    }
}

/// Writing to a connection that the other end closed is answered by RST (RFC 9293 section 3.10.7.1), which shows up
/// as EPIPE or ECONNRESET.
fn broken(error: io::Error, side: Side) -> Broken {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            Broken::Reset(side)
        }
        _ => Broken::Io { side, source: error },
    }
}
