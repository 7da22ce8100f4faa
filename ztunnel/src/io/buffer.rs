//! The read buffer of a worker. Streams have none of their own: a read goes into the buffer of the thread, and what
//! was read leaves it as `Bytes`.

use std::cell::RefCell;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

/// Large enough that one read fills a burst of TLS records; measured against smaller ones, 256 KiB costs the least
/// CPU per byte.
pub const READ_SIZE: usize = 256 * 1024;

/// Up to here a copy is cheaper than keeping the whole buffer alive for a small piece of it.
const COPY_UP_TO: usize = 16 * 1024;

thread_local! {
    static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Reads what the socket has, without waiting. Empty bytes mean the end of the stream.
pub fn try_read(stream: &TcpStream) -> io::Result<Bytes> {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.capacity() < COPY_UP_TO {
            buffer.reserve(READ_SIZE);
        }
        let count = stream.try_read_buf(buffer)?;
        if count <= COPY_UP_TO {
            let bytes = Bytes::copy_from_slice(buffer);
            buffer.clear();
            return Ok(bytes);
        }
        Ok(buffer.split().freeze())
    })
}
