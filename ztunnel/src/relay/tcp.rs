//! A TCP connection as a side of the relay.

use std::io;

use bytes::{Buf, Bytes};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::{Broken, Receive, Side, Transmit};
use crate::io::buffer;
use crate::net::socket::{end_sending, reset_on_close};

/// The two directions of a TCP connection.
pub fn halves(stream: &TcpStream, side: Side) -> (TcpReceive<'_>, TcpTransmit<'_>) {
    (TcpReceive { stream, side }, TcpTransmit { stream, side })
}

pub struct TcpReceive<'a> {
    stream: &'a TcpStream,
    side: Side,
}

impl Receive for TcpReceive<'_> {
    async fn receive(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            match buffer::try_read(self.stream) {
                Ok(bytes) if bytes.is_empty() => return Ok(None),
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.readable().await.map_err(|error| broken(error, self.side))?;
                }
                Err(error) => return Err(broken(error, self.side)),
            }
        }
    }

    fn taken(&mut self, _: usize) {}
}

pub struct TcpTransmit<'a> {
    stream: &'a TcpStream,
    side: Side,
}

impl Transmit for TcpTransmit<'_> {
    async fn transmit(&mut self, mut bytes: Bytes) -> Result<(), Broken> {
        while !bytes.is_empty() {
            match self.stream.try_write(&bytes) {
                Ok(count) => bytes.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.writable().await.map_err(|error| broken(error, self.side))?;
                }
                Err(error) => return Err(broken(error, self.side)),
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Broken> {
        match end_sending(self.stream) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            Err(error) => Err(broken(error, self.side)),
        }
    }

    async fn reset(&mut self) -> Broken {
        match self.stream.ready(Interest::ERROR).await {
            Ok(_) => Broken::Reset(self.side),
            Err(error) => broken(error, self.side),
        }
    }

    fn abort(&mut self) {
        reset_on_close(self.stream);
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
