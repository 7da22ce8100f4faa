//! The read buffer of a worker. Streams have none of their own: a read goes into the buffer of the thread, and what
//! was read leaves it as `Bytes`.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::net::tcp::ReadHalf;
use tokio_util::io::poll_read_buf;

use super::turn;

/// Large enough that one read fills a burst of TLS records; measured against smaller ones, 256 KiB costs the least
/// CPU per byte.
pub const READ_SIZE: usize = 256 * 1024;

/// Up to here a copy is cheaper than keeping the whole buffer alive for a small piece of it.
pub(super) const COPY_UP_TO: usize = 16 * 1024;

thread_local! {
    static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// What came of a read.
#[derive(Debug)]
pub struct Read {
    /// Bytes that were handed on at once, and never left the buffer.
    pub taken: usize,
    /// What follows them.
    pub rest: Bytes,
}

impl Read {
    /// From a buffer that is needed again at once.
    pub(super) fn copied(bytes: &[u8], offer: impl FnOnce(&[u8]) -> usize) -> Self {
        let taken = if bytes.is_empty() { 0 } else { offer(bytes) };
        Self { taken, rest: Bytes::copy_from_slice(&bytes[taken..]) }
    }
}

/// What the socket has; nothing at all means the end of the stream. `offer` may take as much of it as it likes.
///
/// Not `try_read`: that asks the kernel a second time after each short read, only to hear that there is nothing.
pub fn poll_read(
    stream: &mut ReadHalf<'_>,
    context: &mut Context<'_>,
    offer: impl FnOnce(&[u8]) -> usize,
) -> Poll<io::Result<Read>> {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.capacity() < COPY_UP_TO {
            buffer.reserve(READ_SIZE);
        }
        turn::spend(ready!(poll_read_buf(Pin::new(stream), context, buffer))?);
        Poll::Ready(Ok(hand_out(buffer, offer)))
    })
}

/// All that the buffer has leaves it.
pub(super) fn hand_out(buffer: &mut BytesMut, offer: impl FnOnce(&[u8]) -> usize) -> Read {
    let taken = if buffer.is_empty() { 0 } else { offer(buffer) };
    if buffer.len() - taken <= COPY_UP_TO {
        let rest = Bytes::copy_from_slice(&buffer[taken..]);
        buffer.clear();
        return Read { taken, rest };
    }
    Read { taken, rest: buffer.split().freeze().slice(taken..) }
}

/// Gives the buffer of this thread back; the next read makes another.
pub(super) fn release() {
    BUFFER.take();
}
