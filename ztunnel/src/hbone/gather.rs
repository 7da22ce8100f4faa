//! What many streams send in one turn of their tunnel leaves it together.
//!
//! HTTP/2 flushes behind every DATA frame that it does not copy, which would be a system call for each answer of each
//! stream. So a flush of its is only noted, and the true one comes when the tunnel's task has had its turn.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tls;

/// The side that HTTP/2 has.
pub(super) struct Gathering(Rc<RefCell<tls::Stream>>);

/// The side that sends.
pub(super) struct Flusher(Rc<RefCell<tls::Stream>>);

pub(super) fn gather(tls: tls::Stream) -> (Gathering, Flusher) {
    let shared = Rc::new(RefCell::new(tls));
    (Gathering(shared.clone()), Flusher(shared))
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
    fn with<T>(self: Pin<&mut Self>, work: impl FnOnce(Pin<&mut tls::Stream>) -> T) -> T {
        work(Pin::new(&mut *self.0.borrow_mut()))
    }
}

impl AsyncRead for Gathering {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|tls| tls.poll_read(context, buffer))
    }
}

impl AsyncWrite for Gathering {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|tls| tls.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|tls| tls.poll_write_vectored(context, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|tls| tls.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests;
