//! Reads the socket in large pieces although rustls asks for 4 KiB at a time.
//!
//! One system call in place of sixteen. The buffer belongs to a connection only between a read from the socket and the
//! moment when TLS has taken its last byte; an idle connection holds none. A thread keeps one spare for the next.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const CAPACITY: usize = 64 * 1024;

thread_local! {
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

pub(super) struct Ahead {
    tcp: TcpStream,
    held: Option<Held>,
}

/// Bytes read and not yet taken: `buffer[start..end]`, never empty.
struct Held {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Ahead {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, held: None }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub(super) fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    fn take(&mut self, buf: &mut ReadBuf<'_>) {
        let Some(held) = &mut self.held else { return };
        let count = buf.remaining().min(held.end - held.start);
        buf.put_slice(&held.buffer[held.start..held.start + count]);
        held.start += count;
        if held.start == held.end
            && let Some(held) = self.held.take()
        {
            SPARE.set(Some(held.buffer));
        }
    }
}

impl AsyncRead for Ahead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A read that asks for much gains nothing from a copy.
        if self.held.is_none() && buf.remaining() >= CAPACITY {
            return Pin::new(&mut self.tcp).poll_read(cx, buf);
        }
        if self.held.is_none() {
            let mut buffer = SPARE.take().unwrap_or_else(|| vec![0; CAPACITY].into_boxed_slice());
            let mut piece = ReadBuf::new(&mut buffer);
            let read = Pin::new(&mut self.tcp).poll_read(cx, &mut piece);
            let end = piece.filled().len();
            if end == 0 {
                SPARE.set(Some(buffer));
                return read;
            }
            ready!(read)?;
            self.held = Some(Held { buffer, start: 0, end });
        }
        self.take(buf);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn every_byte_comes_once_and_in_order_and_nothing_is_held_when_idle() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
        let (mut near, mut far) = (near.expect("it connects"), Ahead::new(far.expect("it accepts").0));
        let sent: Vec<u8> = (0..1_000_003_u32).map(|n| (n % 251) as u8).collect();
        let content = sent.clone();
        let writer = tokio::spawn(async move {
            near.write_all(&content).await.expect("writing works");
            near
        });
        let mut got = Vec::new();
        // Reads of every size, larger than the buffer too.
        for size in [1, 7, 4096, 5, 2 * CAPACITY, 16_384].into_iter().cycle() {
            let mut piece = vec![0; size.min(sent.len() - got.len())];
            let count = far.read(&mut piece).await.expect("reading works");
            got.extend_from_slice(&piece[..count]);
            if got.len() == sent.len() {
                break;
            }
        }
        assert!(got == sent, "the bytes differ");
        assert!(far.held.is_none(), "an idle connection holds no buffer");
        drop(writer.await.expect("the writer ends"));
        assert_eq!(far.read(&mut [0; 16]).await.expect("the end is not an error"), 0);
        assert!(far.held.is_none());
    }
}
