//! Lets tokio wait for descriptors that it has no type for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Takes a non-blocking descriptor. Must be called on a tokio runtime.
#[expect(
    unsafe_code,
    reason = "the safe constructor is deprecated: it takes types that may swap their descriptor"
)]
pub(crate) fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one open descriptor for its whole life, and AsyncFd owns it.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}
