//! A worker gives its CPU up by itself, when another worker has work.
//!
//! Where there are more busy threads than CPUs, a kernel that does not preempt (`PREEMPT_NONE`, a usual build for servers) changes
//! between them at its clock's tick, every 4 ms at 250 Hz, and each byte of a quiet pod waits for that at each of the four
//! workers that it passes. A worker that moves much knows better places: between two turns it asks whether somebody else should
//! run. It does so only while another worker has turns too; alone, it would lose to those whom it serves.
//!
//! Since Linux 6.18 whoever yields has used up its slice (`sched/fair: Forfeit vruntime on yield`), 3 ms by default; so while several
//! workers have work, their slices are made as short as what lies between two yields. Linux before 6.12 has no slices to set, and
//! takes nothing away. A worker that is alone keeps the long ones, which cost bulk less.

use std::cell::{Cell, OnceCell};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::load::Loads;

/// About what a worker does between two yields; above the shortest that Linux grants, 0.1 ms.
const SLICE: Duration = Duration::from_micros(200);
/// That in bytes, when all of them are encrypted.
const BYTES: usize = 128 * 1024;
/// A worker that moves less looks at the others after so many turns.
const TURNS: u64 = 64;
/// After so many looks that saw no other at work, a worker is alone.
const ALONE: u32 = 64;

struct Slice {
    loads: Arc<Loads>,
    worker: usize,
    /// Bytes since the last look at the others.
    moved: Cell<usize>,
    /// What the others had at the last look.
    others: Cell<u64>,
    /// Looks since another was seen at work.
    alone: Cell<u32>,
    kind: Cell<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// As the kernel gives them.
    Default,
    Short,
    /// The kernel does not let them be set: one that yields would lose what it cannot afford.
    Fixed,
}

thread_local! {
    static SLICE_OF_WORKER: OnceCell<Slice> = const { OnceCell::new() };
}

/// Makes the calling thread one that yields to the other workers.
pub(super) fn begin(loads: Arc<Loads>, worker: usize) {
    let (moved, others, alone) = Default::default();
    let kind = Cell::new(Kind::Default);
    SLICE_OF_WORKER.with(|slice| {
        slice.get_or_init(|| Slice { loads, worker, moved, others, alone, kind });
    });
}

/// Bytes that the running task moved.
pub(super) fn spend(bytes: usize) {
    SLICE_OF_WORKER.with(|slice| {
        if let Some(slice) = slice.get() {
            slice.moved.set(slice.moved.get() + bytes);
        }
    });
}

/// A task's turn is over.
pub(super) fn turn_over() {
    SLICE_OF_WORKER.with(|slice| {
        if let Some(slice) = slice.get() {
            slice.turn_over();
        }
    });
}

impl Slice {
    fn turn_over(&self) {
        let turns = self.loads.had_turn(self.worker);
        let much = self.moved.get() >= BYTES;
        if !much && !turns.is_multiple_of(TURNS) {
            return;
        }
        self.moved.set(0);
        let others = self.loads.turns_of_others(self.worker);
        if self.others.replace(others) != others {
            self.alone.set(0);
            self.make(Kind::Short);
            if much && self.kind.get() == Kind::Short {
                rustix::thread::sched_yield();
            }
        } else if self.alone.get() < ALONE {
            self.alone.set(self.alone.get() + 1);
        } else {
            self.make(Kind::Default);
        }
    }

    fn make(&self, kind: Kind) {
        if self.kind.get() == kind || self.kind.get() == Kind::Fixed {
            return;
        }
        // Zero is the kernel's own.
        let set = set(if kind == Kind::Short { SLICE } else { Duration::ZERO });
        if let Err(error) = &set {
            tracing::warn!(%error, "a worker's slices of the CPU cannot be set; it does not yield to the others");
        }
        self.kind.set(if set.is_ok() { kind } else { Kind::Fixed });
    }
}

#[expect(unsafe_code, reason = "no crate wraps sched_setattr(2)")]
fn set(slice: Duration) -> io::Result<()> {
    let size = size_of::<libc::sched_attr>();
    // SAFETY: a structure of integers, for which zeros are values.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `size` bytes into what is `size` bytes long (sched_getattr(2)); 0 is the calling thread.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel reads `attributes.size` bytes, which sched_getattr has filled in (sched_setattr(2)).
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slice_of_a_thread_can_be_set() {
        let both = || set(SLICE).and_then(|()| set(Duration::ZERO));
        std::thread::spawn(both).join().expect("no panic").expect("no privilege is needed");
    }
}
