//! A TCP connection that is relayed by whichever backend its worker has. It is chosen once for each connection, and the relay
//! is compiled for each choice.

use std::future::{Future, Ready, ready};
use std::io;

use futures::future::Either::{Left, Right};
use tokio::net::TcpStream;

use super::{Broken, Receive, Side, Transmit, relay, tcp, uring};
use crate::io::uring::{Socket, is_running};
use crate::net::socket::reset_on_close;

pub enum Connection {
    Epoll(TcpStream),
    Uring(Socket),
    /// It was closed when it was to be taken out of epoll, which fails when memory does.
    Lost(io::ErrorKind),
}

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        if !is_running() {
            return Self::Epoll(stream);
        }
        Socket::new(stream).map_or_else(|error| Self::Lost(error.kind()), Self::Uring)
    }

    /// Relays between the application, which this is, and a far side of any kind.
    pub fn relay<FR, FT>(
        &mut self,
        far: (FR, FT),
        on_up: impl Fn(usize),
        on_down: impl Fn(usize),
    ) -> impl Future<Output = Result<(), Broken>>
    where
        FR: Receive,
        FT: Transmit,
    {
        let side = Side::Application;
        match self {
            Self::Epoll(stream) => Left(relay(tcp::halves(stream, side), far, on_up, on_down)),
            // Boxed, so that it takes no memory from connections of the other kind.
            Self::Uring(socket) => {
                Right(Left(Box::pin(relay(uring::halves(socket, side), far, on_up, on_down))))
            }
            Self::Lost(kind) => Right(Right(lost(side, *kind))),
        }
    }

    /// Relays between the application, which this is, and another TCP connection.
    pub fn relay_to(
        &mut self,
        far: &mut Self,
        on_up: impl Fn(usize),
        on_down: impl Fn(usize),
    ) -> impl Future<Output = Result<(), Broken>> {
        let side = Side::Far;
        match far {
            Self::Epoll(stream) => Left(self.relay(tcp::halves(stream, side), on_up, on_down)),
            Self::Uring(socket) => {
                Right(Left(Box::pin(self.relay(uring::halves(socket, side), on_up, on_down))))
            }
            Self::Lost(kind) => Right(Right(lost(side, *kind))),
        }
    }

    /// As [`reset_on_close`] for a stream.
    pub fn reset_on_close(&self) {
        match self {
            Self::Epoll(stream) => reset_on_close(stream),
            Self::Uring(socket) => reset_on_close(socket.stream()),
            Self::Lost(_) => {}
        }
    }
}

fn lost(side: Side, kind: io::ErrorKind) -> Ready<Result<(), Broken>> {
    ready(Err(Broken::Io { side, source: kind.into() }))
}
