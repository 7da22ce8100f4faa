//! Memory that a burst of connections left behind goes back to the system.
//!
//! The allocator returns what is free when it is asked for more; a thread that fell quiet asks for nothing, and would keep what
//! its busiest moment took (interop.md section 14.1, first row, is the peer's form of it).

use std::time::Duration;

use super::{buffer, pipe, spare, turn, uring};

/// Well within the 30 s in which memory is promised to be back.
const PERIOD: Duration = Duration::from_secs(5);
/// Reads in a period, below which a thread counts as quiet: what is returned then is not needed again at once.
const QUIET: u64 = 2_000;

/// Looks after the memory of this thread for ever.
pub(super) async fn give_back() {
    let (mut before, mut returned) = (turn::taken(), turn::taken());
    loop {
        tokio::time::sleep(PERIOD).await;
        let now = turn::taken();
        let quiet = now - before < QUIET;
        before = now;
        if returned != now {
            if quiet {
                returned = now;
                buffer::release();
                spare::release();
                pipe::release();
                uring::release();
            }
            collect(quiet);
        }
    }
}

/// `all`: also what is free only in part of a page, which takes longer.
#[expect(unsafe_code, reason = "the allocator has no other interface for it")]
fn collect(all: bool) {
    // SAFETY: it may be called at any time and from any thread (mimalloc's documentation of mi_collect); where another
    // allocator is in use, as in tests, it finds nothing.
    unsafe { libmimalloc_sys::mi_collect(all) }
}
