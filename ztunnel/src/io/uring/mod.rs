//! io_uring beneath a worker, by tokio-uring: its runtime is a single-threaded one of tokio with a ring beside it, so that
//! everything else of a worker (timers, listeners, tunnels) stays on epoll and only applications' sockets leave it ([`Socket`]).
//!
//! Owns whether this process may use io_uring (`probe`), a worker's ring, what is submitted to it and the memory that the kernel
//! holds meanwhile. Must not know what the bytes are.
//!
//! # What is in flight, and what it holds
//!
//! ```text
//! nothing to read    receive without a buffer ───────▶ the kernel takes one of the ring's small buffers when bytes come
//! bulk               receive into a large buffer ────▶ at most a few of these are lent on a worker
//! ```
//!
//! So a connection that had nothing to read for a while costs no buffer, but one that fell silent after bulk keeps its large one; a
//! worker has 1 MiB of small ones, and lends up to 2 MiB of large ones. Each operation holds its socket and its memory
//! (`operation`) until the kernel is done with both, whoever has lost interest. A dropped socket cancels what it has in flight,
//! and is closed when that came back: in the turn of the worker's loop after the next.
//!
//! # What tokio-uring leaves to its user
//!
//! - It submits when the runtime is about to sleep; not in a turn after which a task is to run at once. [`flush`] does then, and
//!   whoever ends such a turn calls it.
//! - Its driver, when it is dropped, frees what abandoned operations hold before it cancels them. Here that memory outlives the ring.
//! - It panics where the kernel has no memory to take an operation, and then waits for ever for what was never begun. The process
//!   ends there (`operation`), and another one is started.
//! - It can cancel nothing; operations are cancelled by their descriptor, which needs Linux 5.19. Linux 6.0 is asked for, because that
//!   can be told from its features.

mod group;
mod large;
mod operation;
mod socket;

use std::cell::Cell;
use std::future::Future;
use std::io;

use io_uring::{IoUring, opcode};

pub use large::{lent, release};
pub use socket::{Errors, Receiver, Socket, send};

/// What waits at most to be submitted together. Also what it costs to submit at once, see [`flush`].
const ENTRIES: u32 = 16;
/// Completions that the ring has room for; the kernel keeps more elsewhere, which is slower.
const COMPLETIONS: u32 = 4096;
/// What the kernel must know, by the names that its documentation has for them.
const NEEDED: [(&str, u8); 5] = [
    ("IORING_OP_RECV", opcode::Recv::CODE),
    ("IORING_OP_SEND", opcode::Send::CODE),
    ("IORING_OP_ASYNC_CANCEL", opcode::AsyncCancel2::CODE),
    ("IORING_OP_PROVIDE_BUFFERS", opcode::ProvideBuffers::CODE),
    ("IORING_OP_NOP", opcode::Nop::CODE),
];
const DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";

/// Why this process cannot use io_uring.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kernel knows no io_uring, or a seccomp profile says so (ENOSYS)")]
    Unknown,
    #[error("the sysctl kernel.io_uring_disabled is {0}; 0 allows it")]
    Disabled(String),
    #[error(
        "it is denied (EPERM), as container runtimes' default seccomp profiles do; a profile of its own may allow it"
    )]
    Denied,
    #[error("the kernel's io_uring has no {0}; Linux 6.0 has")]
    Lacks(&'static str),
    #[error("a ring cannot be set up: {0}")]
    Setup(io::Error),
}

thread_local! {
    /// Whether this thread has a ring that takes operations.
    static RUNNING: Cell<bool> = const { Cell::new(false) };
    /// Whether anything was pushed since the last `flush`; more may have been submitted since.
    static PUSHED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this process may use io_uring, and all of it that is needed.
pub fn probe() -> Result<(), Error> {
    let ring: IoUring = IoUring::builder()
        .setup_coop_taskrun()
        .build(ENTRIES)
        .map_err(|error| refused(error, "IORING_SETUP_COOP_TASKRUN"))?;
    if !ring.params().is_feature_linked_file() {
        return Err(Error::Lacks("IORING_FEAT_LINKED_FILE"));
    }
    let mut known = io_uring::Probe::new();
    ring.submitter().register_probe(&mut known).map_err(|error| refused(error, "IORING_REGISTER_PROBE"))?;
    if let Some((name, _)) = NEEDED.iter().find(|(_, code)| !known.is_supported(*code)) {
        return Err(Error::Lacks(name));
    }
    // A profile may allow the one system call and deny the other.
    ring.submit().map_err(|error| refused(error, "io_uring_enter"))?;
    Ok(())
}

fn refused(error: io::Error, what: &'static str) -> Error {
    match error.kind() {
        io::ErrorKind::Unsupported => Error::Unknown,
        io::ErrorKind::InvalidInput => Error::Lacks(what),
        io::ErrorKind::PermissionDenied => match std::fs::read_to_string(DISABLED) {
            Ok(value) if value.trim() != "0" => Error::Disabled(value.trim().to_owned()),
            _ => Error::Denied,
        },
        _ => Error::Setup(error),
    }
}

/// Whether operations can be submitted on this thread.
pub fn is_running() -> bool {
    RUNNING.get()
}

/// A worker's runtime with a ring. Lives on the thread that made it.
pub struct Runtime(tokio_uring::Runtime);

impl Runtime {
    pub fn new() -> io::Result<Self> {
        let mut ring = tokio_uring::uring_builder();
        ring.setup_cqsize(COMPLETIONS).setup_coop_taskrun();
        let mut builder = tokio_uring::builder();
        builder.entries(ENTRIES).uring_builder(&ring);
        tokio_uring::Runtime::new(&builder).map(Self)
    }

    /// As a `LocalSet` on a runtime: tasks that it spawns end with `self`.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.0.block_on(async {
            let _running = Running::start();
            tokio::task::spawn_local(group::take_back());
            future.await
        })
    }
}

/// While it lives, this thread's ring takes operations. What tasks drop after that submits nothing.
struct Running;

impl Running {
    fn start() -> Self {
        RUNNING.set(true);
        group::open();
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        group::close();
        RUNNING.set(false);
    }
}

/// Submits what was pushed, before a turn ends after which the runtime will not sleep: without it, operations would wait until nothing
/// else is to be done. A full queue is what tokio-uring submits at any time, so it is filled with nothing.
pub(super) fn flush() {
    if RUNNING.get() && PUSHED.replace(false) {
        for _ in 0..ENTRIES {
            operation::nothing();
        }
    }
}

#[cfg(test)]
mod tests;
