//! How much a task may move before it is another's turn.
//!
//! tokio counts operations (128 to a turn), and one of ours may move 256 KiB: unweighted, a bulk transfer would keep its worker
//! for milliseconds. So bytes are charged to the same account: every task of the worker gets its turn after at most [`BYTES`] of
//! another, and the sockets are looked at between turns.

use std::cell::Cell;
use std::task::{Context, Poll, Waker};

use tokio::task::coop;

use super::{share, slice};

/// Of tokio's cooperative scheduling; it offers no way to ask.
const UNITS: usize = 128;
/// What a task moves in one turn, about.
const BYTES: usize = 256 * 1024;

thread_local! {
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

/// How often anything was charged on this thread.
pub(super) fn taken() -> u64 {
    TAKEN.get()
}

/// Charges the task that runs for bytes that it just moved. Never in the way of these: what has run out is seen by the next
/// operation.
pub fn spend(bytes: usize) {
    TAKEN.set(TAKEN.get().wrapping_add(1));
    share::spend(bytes);
    slice::spend(bytes);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..bytes / (BYTES / UNITS) {
        if !coop::has_budget_remaining() {
            return;
        }
        if let Poll::Ready(account) = coop::poll_proceed(&mut context) {
            account.made_progress();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_ends_after_its_bytes() {
        spend(BYTES / 2);
        assert!(coop::has_budget_remaining());
        spend(BYTES / 2);
        assert!(!coop::has_budget_remaining());
        coop::consume_budget().await;
        assert!(coop::has_budget_remaining(), "another turn");
    }
}
