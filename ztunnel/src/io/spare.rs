//! The large buffers that connections borrow while bytes are in motion.
//!
//! An idle connection holds none: it gives its buffer back to the thread, which keeps a few for the next.

use std::cell::RefCell;

/// Bytes of one buffer: sixteen full records and what h2 puts in front of them.
pub const CAPACITY: usize = 272 * 1024;
/// What a thread keeps.
const SPARES: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of `CAPACITY` bytes that goes back to its thread.
pub struct Buffer(Box<[u8]>);

impl Buffer {
    pub fn take() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self(spare.unwrap_or_else(|| vec![0; CAPACITY].into_boxed_slice()))
    }
}

/// Lets go of what this thread keeps.
pub(super) fn release() {
    SPARE.take();
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // Gone with the thread when that ends first.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARES {
                spare.push(bytes);
            }
        });
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
