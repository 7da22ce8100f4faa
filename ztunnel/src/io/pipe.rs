//! The pipes of a worker, through which the kernel moves bytes from one socket to another without copying them (splice(2)).
//!
//! Connections have none of their own. One borrows a pipe for as long as it has bytes in there, and there are few: each takes two
//! of the process's files and 256 KiB of the pages that a user may have in pipes, and what is in it is counted for nobody.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

use super::buffer::READ_SIZE;

/// Of one worker. A connection keeps one while it waits for its receiver; more than these at a time are copied.
const MOST: usize = 8;

thread_local! {
    /// The kernel gave none; it is asked again when the worker has been quiet.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
    static LENT: Cell<usize> = const { Cell::new(0) };
    static SPARE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// It is the worker's again when it is dropped; with bytes in it, it is closed then.
pub struct Pipe {
    /// Until it is dropped.
    ends: Option<Ends>,
    length: usize,
}

impl Ends {
    fn new() -> Option<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Room for as much as is moved at a time, one page in each place. With less than is copied at a time it would not be worth it, so
        // where a user may not have more (fs.pipe-user-pages-soft) there is none; four times as much gains nothing.
        if fcntl_getpipe_size(&write).ok()? < READ_SIZE {
            fcntl_setpipe_size(&write, READ_SIZE).ok()?;
        }
        Some(Self { read, write })
    }
}

impl Pipe {
    /// An empty one. None when all are lent, or when the process may have no more files or pages.
    pub fn take() -> Option<Self> {
        if LENT.get() == MOST || REFUSED.get() {
            return None;
        }
        let ends = SPARE.with_borrow_mut(Vec::pop).or_else(Ends::new);
        REFUSED.set(ends.is_none());
        let ends = ends?;
        LENT.set(LENT.get() + 1);
        Some(Self { ends: Some(ends), length: 0 })
    }

    /// What it has.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Takes what the socket has and there is room for. Nothing at all is mostly the end of the stream, and always something for a read.
    pub fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let count = self.ends.as_ref().map_or(Ok(0), |ends| moved(from, &ends.write, READ_SIZE))?;
        self.length += count;
        Ok(count)
    }

    /// Gives the socket what it has room for; never of an empty pipe.
    pub fn drain(&mut self, to: impl AsFd) -> io::Result<()> {
        let count = self.ends.as_ref().map_or(Ok(0), |ends| moved(&ends.read, to, self.length))?;
        self.length -= count;
        if count == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}

fn moved(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, most, SpliceFlags::NONBLOCK)?)
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let ends = self.ends.take().filter(|_| self.length == 0);
        // Both are gone with the thread when that ends first.
        let _ = LENT.try_with(|lent| lent.set(lent.get() - 1));
        let _ = SPARE.try_with(|spare| spare.borrow_mut().extend(ends));
    }
}

/// How many of this thread are lent.
#[cfg(test)]
pub fn lent() -> usize {
    LENT.get()
}

/// Closes those of this thread that are not lent.
pub(super) fn release() {
    SPARE.take();
    REFUSED.set(false);
}
