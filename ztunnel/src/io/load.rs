//! How loaded the workers are, for whoever chooses one for new work.
//!
//! A worker is loaded by the share of the time in which it ran or waited for a CPU (`/proc/PID/task/TID/schedstat`, proc(5));
//! that is read when a choice is made, not on the data path. Where the kernel does not tell, every worker looks idle, and
//! choices rest on what is seated there.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What was read is good for so long.
const GOOD_FOR: Duration = Duration::from_millis(100);

/// All workers that there are or may be.
pub struct Loads {
    workers: Box<[One]>,
    /// New work goes to the first so many.
    active: AtomicUsize,
    read: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct One {
    /// 0 before it runs.
    thread: AtomicI32,
    /// What it ran and waited until it was read last.
    nanoseconds: AtomicU64,
    /// Since then.
    permille: AtomicU32,
    seated: AtomicU32,
    turns: Turns,
}

/// On a cache line of its own: its worker writes it all the time.
#[derive(Default)]
#[repr(align(128))]
struct Turns(AtomicU64);

impl Loads {
    pub fn new(active: usize, most: usize) -> Self {
        Self {
            workers: (0..most.max(active)).map(|_| One::default()).collect(),
            active: AtomicUsize::new(active),
            read: Mutex::new(None),
        }
    }

    /// As many as there can be.
    pub fn most(&self) -> usize {
        self.workers.len()
    }

    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Returns how many there are now, at least one and at most as many as there can be.
    pub fn set_active(&self, count: usize) -> usize {
        let count = count.clamp(1, self.workers.len());
        self.active.store(count, Ordering::Relaxed);
        count
    }

    /// The calling thread is this worker.
    pub(super) fn is_worker(&self, index: usize) {
        self.workers[index].thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    }

    /// The worker had one more turn; nobody else counts them. Returns how many it had, ever.
    pub(super) fn had_turn(&self, index: usize) -> u64 {
        let turns = &self.workers[index].turns.0;
        let count = turns.load(Ordering::Relaxed) + 1;
        turns.store(count, Ordering::Relaxed);
        count
    }

    /// The turns that all workers but one had.
    pub(super) fn turns_of_others(&self, index: usize) -> u64 {
        // Also those that are no longer active: what they carry lives on.
        let others = self.workers.iter().enumerate().filter(|(other, _)| *other != index);
        others.map(|(_, other)| other.turns.0.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }

    /// The share of its time that a worker is at work or would be, of 1,000.
    pub fn permille(&self, worker: usize) -> u32 {
        self.workers[worker].permille.load(Ordering::Relaxed)
    }

    /// What was counted in there and not out again.
    pub fn seated(&self, worker: usize) -> u32 {
        self.workers[worker].seated.load(Ordering::Relaxed)
    }

    pub fn seat(&self, worker: usize) {
        self.workers[worker].seated.fetch_add(1, Ordering::Relaxed);
    }

    pub fn unseat(&self, worker: usize) {
        self.workers[worker].seated.fetch_sub(1, Ordering::Relaxed);
    }

    /// Reads the loads, if they are old and nobody else is at it.
    pub fn look(&self) {
        let Ok(mut read) = self.read.try_lock() else { return };
        let now = Instant::now();
        if read.is_some_and(|read| now - read < GOOD_FOR) {
            return;
        }
        let since = read.replace(now).map(|read| now - read);
        for one in self.workers.iter().take(self.active()) {
            let thread = one.thread.load(Ordering::Relaxed);
            let path = format!("/proc/self/task/{thread}/schedstat");
            let Some(total) = fs::read_to_string(path).ok().and_then(|text| ran_or_waited(&text)) else {
                continue;
            };
            let before = one.nanoseconds.swap(total, Ordering::Relaxed);
            if let Some(since) = since.filter(|_| before > 0) {
                let share = u128::from(total.saturating_sub(before)) * 1000 / since.as_nanos().max(1);
                one.permille.store(share.min(1000) as u32, Ordering::Relaxed);
            }
        }
    }
}

/// Of `RAN WAITED SLICES`, in nanoseconds.
fn ran_or_waited(schedstat: &str) -> Option<u64> {
    let mut fields = schedstat.split_ascii_whitespace().map(str::parse);
    let (ran, waited): (u64, u64) = (fields.next()?.ok()?, fields.next()?.ok()?);
    ran.checked_add(waited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_is_loaded_and_one_that_sleeps_is_not() {
        let loads = std::sync::Arc::new(Loads::new(2, 2));
        let (registered, both) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (sleeps, tells) = (loads.clone(), registered.clone());
        let idle = std::thread::spawn(move || {
            sleeps.is_worker(0);
            tells.send(()).expect("the test waits");
            let _ = stopped.recv();
        });
        let works = loads.clone();
        let busy = std::thread::spawn(move || {
            works.is_worker(1);
            registered.send(()).expect("the test waits");
            let start = Instant::now();
            while works.permille(1) < 500 && start.elapsed() < Duration::from_secs(10) {
                std::hint::spin_loop();
            }
        });
        both.recv().expect("one is there");
        both.recv().expect("two are there");
        let start = Instant::now();
        while !busy.is_finished() && start.elapsed() < Duration::from_secs(10) {
            loads.look();
        }
        assert!(loads.permille(1) >= 500, "{}", loads.permille(1));
        assert!(loads.permille(0) < 500, "{}", loads.permille(0));
        drop(stop);
        idle.join().expect("no panic");
        busy.join().expect("no panic");
    }

    #[test]
    fn reads_what_the_kernel_tells() {
        assert_eq!(ran_or_waited("1200 34 5\n"), Some(1234));
        assert_eq!(ran_or_waited(""), None);
        assert_eq!(ran_or_waited("x 1 2"), None);
    }

    #[test]
    fn never_without_a_worker_and_never_beyond_all() {
        let loads = Loads::new(2, 4);
        assert_eq!([0, 3, 9].map(|count| loads.set_active(count)), [1, 3, 4]);
    }
}
