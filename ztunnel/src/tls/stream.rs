use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::error;
use super::record::{self, Delivery, Incoming, Outgoing, Records, Session};
use super::revocation::Tracked;
use crate::io::turn;

/// The encrypted byte stream that a handshake leaves behind. It ends with `close_notify`: a bare FIN reads as an error
/// (`UnexpectedEof`), because nobody can tell it from a cut.
///
/// Reading and writing share one large buffer each per thread, not per stream: an idle stream holds none.
pub struct Stream {
    tcp: TcpStream,
    session: Session,
    incoming: Incoming,
    outgoing: Outgoing,
    /// What reading ended with.
    ended: Option<Ended>,
    /// The last record, close_notify or an alert, was sealed.
    closing: bool,
    agreed: Agreed,
}

/// What the handshake found, beside keys and the peer.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) alpn: Option<Vec<u8>>,
    pub(super) valid_until: SystemTime,
    pub(super) tracked: Option<Tracked>,
    /// The root of our own certificate, for people.
    pub(super) own_root: Arc<str>,
}

enum Ended {
    Cleanly,
    Failed(record::Error),
}

impl Stream {
    pub(super) fn new(tcp: TcpStream, session: Session, incoming: Incoming, agreed: Agreed) -> Self {
        let outgoing = Outgoing::default();
        Self { tcp, session, incoming, outgoing, ended: None, closing: false, agreed }
    }

    /// The TCP connection beneath, for socket options and addresses.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// What the peer chose with ALPN; `None` when it does not speak ALPN.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.agreed.alpn.as_deref()
    }

    /// When the first of the two certificates behind this stream is over.
    pub fn valid_until(&self) -> SystemTime {
        self.agreed.valid_until
    }

    /// Tells when the peer's certificate is revoked; `None` when its chain is too long to be kept.
    pub fn tracked(&self) -> Option<&Tracked> {
        self.agreed.tracked.as_ref()
    }

    /// Lets go of the socket.
    pub fn into_records(self) -> Records {
        Records::new(self.session, self.incoming, self.outgoing)
    }

    fn read_records(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            match &self.ended {
                Some(Ended::Cleanly) => return Poll::Ready(Ok(())),
                Some(Ended::Failed(error)) => return Poll::Ready(Err(self.explained(error))),
                None => {}
            }
            match self.incoming.deliver(&mut self.session, buf) {
                Ok(Delivery::Done) => {}
                Ok(Delivery::Closed) => self.ended = Some(Ended::Cleanly),
                Err(error) => self.give_up(error),
            }
            if !self.closing {
                self.outgoing.answer_update(&mut self.session).map_err(failure)?;
            }
            self.try_send();
            if self.ended.is_some() {
                // Nothing is delivered any more.
                self.incoming = Incoming::default();
            }
            if buf.filled().len() > before || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if self.ended.is_none() {
                ready!(self.receive(cx))?;
            }
        }
    }

    /// Reads from the socket once.
    fn receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = ReadBuf::new(self.incoming.space());
        let read = Pin::new(&mut self.tcp).poll_read(cx, &mut space);
        let count = space.filled().len();
        self.incoming.filled(count);
        turn::spend(count);
        if count == 0 {
            self.incoming.park();
        }
        match ready!(read) {
            Ok(()) if count == 0 => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the peer closed the TCP connection without saying so in TLS",
            ))),
            result => Poll::Ready(result),
        }
    }

    /// Sends what was sealed.
    fn send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.unsent().is_empty() {
            let count = ready!(Pin::new(&mut self.tcp).poll_write(cx, self.outgoing.unsent()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.sent(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what the socket takes at once. For the reader, which must not take the writer's place as the one to wake:
    /// what is left goes with the next write or flush, and a broken socket shows there too.
    fn try_send(&mut self) {
        while !self.outgoing.unsent().is_empty()
            && let Ok(count @ 1..) = self.tcp.try_write(self.outgoing.unsent())
        {
            self.outgoing.sent(count);
        }
    }

    fn write_records(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.outgoing.is_filling() {
            ready!(self.send(cx))?;
        }
        if self.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let sealed = self.outgoing.seal(&mut self.session, pieces).map_err(failure)?;
        turn::spend(sealed);
        // What the socket does not take now, the next write or flush sends; what is little waits for company.
        if self.outgoing.is_filling() {
            let _ = self.send(cx)?;
        }
        Poll::Ready(Ok(sealed))
    }

    /// The peer broke the protocol, and is told so as far as the socket takes it, or it gave up itself. Nothing else is
    /// read or written.
    fn give_up(&mut self, error: record::Error) {
        if !self.closing
            && let Some(alert) = error.alert()
        {
            self.outgoing.alert(&mut self.session, alert);
            self.try_send();
        }
        self.closing = true;
        self.ended = Some(Ended::Failed(error));
    }

    /// In TLS 1.3 a client learns by its first read that the server refuses its certificate.
    fn explained(&self, error: &record::Error) -> io::Error {
        match error {
            record::Error::Alert(alert) => {
                let meaning = error::meaning(*alert, &self.agreed.own_root);
                io::Error::new(io::ErrorKind::InvalidData, format!("{error}{meaning}"))
            }
            _ => failure(error.clone()),
        }
    }
}

fn failure(error: record::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(self.tcp()).finish()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().read_records(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write_records(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write_records(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            this.closing = true;
            this.outgoing.alert(&mut this.session, AlertDescription::CloseNotify);
        }
        ready!(this.send(cx))?;
        Pin::new(&mut this.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
