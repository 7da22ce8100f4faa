//! What many streams send in one turn of their tunnel leaves it together.
//!
//! HTTP/2 flushes behind every DATA frame that it does not copy, which would be a system call for each answer of each
//! stream. So a flush of its is only noted, and the true one comes when the tunnel's task has had its turn.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tls;

/// The side that HTTP/2 has.
pub(super) struct Gathering {
    tls: Rc<RefCell<tls::Stream>>,
    moved: Rc<Cell<u64>>,
}

/// The side that sends.
pub(super) struct Flusher(Rc<RefCell<tls::Stream>>);

pub(super) fn gather(tls: tls::Stream) -> (Gathering, Flusher) {
    let shared = Rc::new(RefCell::new(tls));
    (Gathering { tls: shared.clone(), moved: Rc::default() }, Flusher(shared))
}

impl Flusher {
    /// Runs what speaks HTTP/2, and sends what it wrote after each of its turns. An error of the socket is what it will find by
    /// itself.
    pub(super) async fn around<F: Future>(&self, speaks: F) -> F::Output {
        let mut speaks = pin!(speaks);
        poll_fn(|context| {
            let polled = speaks.as_mut().poll(context);
            let _ = Pin::new(&mut *self.0.borrow_mut()).poll_flush(context);
            polled
        })
        .await
    }
}

impl Gathering {
    /// Bytes in either direction; counted on while HTTP/2 has this.
    pub(super) fn moved(&self) -> Rc<Cell<u64>> {
        self.moved.clone()
    }

    fn count(&self, bytes: usize) {
        self.moved.set(self.moved.get() + bytes as u64);
    }

    /// What was written, counted.
    fn write(
        &self,
        work: impl FnOnce(Pin<&mut tls::Stream>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let written = work(Pin::new(&mut *self.tls.borrow_mut()));
        if let Poll::Ready(Ok(count)) = written {
            self.count(count);
        }
        written
    }
}

impl AsyncRead for Gathering {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut *self.tls.borrow_mut()).poll_read(context, buffer);
        self.count(buffer.filled().len() - before);
        polled
    }
}

impl AsyncWrite for Gathering {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(|tls| tls.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(|tls| tls.poll_write_vectored(context, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls.borrow_mut()).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
