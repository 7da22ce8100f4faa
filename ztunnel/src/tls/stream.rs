use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::ahead::Ahead;

/// How much unsent ciphertext one stream may queue. Sixteen full records fill one large vectored write; the queue is
/// freed as it drains, so an idle stream holds none of it.
pub(super) const WRITE_LIMIT: usize = 256 * 1024;

/// The encrypted byte stream that a handshake leaves behind. It ends with `close_notify`: a bare FIN reads as an error
/// (`UnexpectedEof`), because nobody can tell it from a cut.
pub struct Stream(TlsStream<Ahead>);

impl Stream {
    pub(super) fn new(inner: TlsStream<Ahead>) -> Self {
        Self(inner)
    }

    /// The TCP connection beneath, for socket options and addresses.
    pub fn tcp(&self) -> &TcpStream {
        self.0.get_ref().0.tcp()
    }

    /// What the peer chose with ALPN; `None` when it does not speak ALPN.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.0.get_ref().1.alpn_protocol()
    }

    pub(super) fn tls(&self) -> &rustls::CommonState {
        self.0.get_ref().1
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(self.tcp()).finish()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
