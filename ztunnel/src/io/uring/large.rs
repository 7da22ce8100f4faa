//! The large buffers of a worker's ring. A receive that waits with one keeps it, so few are lent at any time.

use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;

use bytes::BytesMut;

use crate::io::buffer::{READ_SIZE, Read, hand_out};

/// More connections than these on one worker whose last read was bulk read small pieces.
const MOST: usize = 8;

thread_local! {
    static LENT: Cell<usize> = const { Cell::new(0) };
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Empty, with room for `READ_SIZE` bytes on the heap. It is the worker's again when it is dropped.
pub struct Large(BytesMut);

impl Large {
    /// None when all are lent.
    pub(super) fn take() -> Option<Self> {
        if LENT.get() == MOST {
            return None;
        }
        LENT.set(LENT.get() + 1);
        let mut bytes = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        // Where what it held before has been sent by now, this finds the same memory again.
        bytes.reserve(READ_SIZE);
        Some(Self(bytes))
    }

    pub(super) fn space(&mut self) -> &mut [MaybeUninit<u8>] {
        &mut self.0.spare_capacity_mut()[..READ_SIZE]
    }

    /// What the kernel wrote into `space`, from its beginning.
    #[expect(unsafe_code, reason = "the kernel fills memory that the compiler takes for uninitialized")]
    pub(super) fn received(mut self, count: usize, offer: impl FnOnce(&[u8]) -> usize) -> Read {
        assert!(count <= READ_SIZE && self.0.is_empty(), "the kernel wrote {count} bytes");
        // SAFETY: the buffer was empty and has room for that many, and a completed receive says that it wrote as many into it.
        unsafe { self.0.set_len(count) };
        hand_out(&mut self.0, offer)
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // Both are gone with the thread when that ends first.
        let _ = LENT.try_with(|lent| lent.set(lent.get() - 1));
        let _ = SPARE.try_with(|spare| spare.borrow_mut().push(bytes));
    }
}

/// How many of this thread are lent.
pub fn lent() -> usize {
    LENT.get()
}

/// Lets go of those of this thread that are not lent.
pub fn release() {
    SPARE.take();
}
