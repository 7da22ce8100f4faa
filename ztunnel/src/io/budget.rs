//! How much memory connections may take. Beyond it new ones are accepted later, not refused: they wait in the queues of the
//! kernel's listeners, whose clients see a slow connect.
//!
//! The process has a budget of resident memory, which counts whatever it is for; beyond it, each pod gets ten new connections a
//! second, so that memory grows no faster than it can be noticed, and a budget that is too small for the mesh's own state still
//! stops nobody. A pod has a budget of connections, each taken for [`CONNECTION`] bytes; beyond it, one is accepted when another
//! ends. So one pod with very many connections cannot take what the others need.

use std::fs;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::privileges;

/// What a connection counts for on a node: several times what an idle one takes (perf/SPECIFICATION.md), for others are not idle.
pub const CONNECTION: u64 = 8 * 1024;
/// Between two connections of one pod while the process is beyond its budget.
const SLOWED: Duration = Duration::from_millis(100);
/// How old a reading of the resident memory may be, and how often it is looked whether things are better.
const GOOD_FOR: Duration = Duration::from_millis(100);

/// Of the process; 0 is none.
#[derive(Debug, Default)]
pub struct Budget {
    process: AtomicU64,
    pod: AtomicU64,
    resident: AtomicU64,
    read: Mutex<Option<Instant>>,
}

/// What a pod has of its budget, on all workers.
#[derive(Debug, Default)]
pub struct Room {
    taken: AtomicUsize,
    left: Notify,
    /// When one was let pass beyond the budget of the process.
    passed: Mutex<Option<Instant>>,
}

/// A connection of a pod, for as long as this lives.
#[derive(Debug)]
pub struct Taken(Arc<Room>);

/// Whose budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    Process,
    Pod,
}

impl Beyond {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Pod => "pod",
        }
    }
}

impl Budget {
    pub fn new(process: Option<u64>, pod: Option<u64>) -> Self {
        let budget = Self::default();
        budget.set(process, pod);
        budget
    }

    /// Other bounds, in bytes, from now on.
    pub fn set(&self, process: Option<u64>, pod: Option<u64>) {
        self.process.store(process.unwrap_or(0), Ordering::Relaxed);
        self.pod.store(pod.unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether a connection of a pod has to wait.
    pub fn beyond(&self, room: &Room) -> Option<Beyond> {
        let (process, pod) = (self.process.load(Ordering::Relaxed), self.pod.load(Ordering::Relaxed));
        if pod > 0 && room.taken.load(Ordering::Relaxed) as u64 >= (pod / CONNECTION).max(1) {
            return Some(Beyond::Pod);
        }
        (process > 0 && self.resident() >= process).then_some(Beyond::Process)
    }

    /// Waits as long as another connection of the pod has to.
    pub async fn wait(&self, room: &Room) {
        while let Some(beyond) = self.beyond(room) {
            if beyond == Beyond::Process && room.lets_pass() {
                return;
            }
            // Whether or not somebody says so: other pods' connections end too.
            let _ = tokio::time::timeout(GOOD_FOR, room.left.notified()).await;
        }
    }

    fn resident(&self) -> u64 {
        if let Ok(mut read) = self.read.try_lock()
            && read.is_none_or(|read| read.elapsed() >= GOOD_FOR)
        {
            *read = Some(Instant::now());
            let bytes = fs::read_to_string("/proc/self/status").ok().and_then(|text| resident(&text));
            // What is not known slows nobody.
            self.resident.store(bytes.unwrap_or(0), Ordering::Relaxed);
        }
        self.resident.load(Ordering::Relaxed)
    }
}

impl Room {
    pub fn take(self: &Arc<Self>) -> Taken {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Taken(self.clone())
    }

    fn lets_pass(&self) -> bool {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = passed.is_none_or(|passed| now - passed >= SLOWED);
        if due {
            *passed = Some(now);
        }
        due
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
        self.0.left.notify_waiters();
    }
}

/// `VmRSS` in bytes (proc(5)).
fn resident(status: &str) -> Option<u64> {
    let kilobytes = privileges::field(status, "VmRSS")?.strip_suffix("kB")?;
    kilobytes.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn without_bounds_nobody_waits() {
        let (budget, room) = (Budget::default(), Arc::new(Room::default()));
        let _many: Vec<Taken> = (0..1000).map(|_| room.take()).collect();
        assert_eq!(budget.beyond(&room), None);
        assert!(budget.wait(&room).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_waits_until_one_of_its_connections_ends() {
        let budget = Budget::new(None, Some(2 * CONNECTION));
        let (room, other) = (Arc::new(Room::default()), Room::default());
        let (first, _second) = (room.take(), room.take());
        assert_eq!(budget.beyond(&room), Some(Beyond::Pod));
        assert_eq!(budget.beyond(&other), None);
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, budget.wait(&room)).await.is_err(), "for as long as they live");
        let (waited, ()) =
            tokio::join!(tokio::time::timeout(hour, budget.wait(&room)), async { drop(first) });
        waited.expect("there is room");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_beyond_its_budget_goes_on_slowly() {
        let budget = Budget::new(Some(1), None);
        let room = Room::default();
        assert_eq!(budget.beyond(&room), Some(Beyond::Process));
        let start = Instant::now();
        tokio::join!(budget.wait(&room), budget.wait(&room), budget.wait(&room));
        assert!((SLOWED * 2..SLOWED * 2 + GOOD_FOR * 2).contains(&start.elapsed()), "{:?}", start.elapsed());
    }

    #[test]
    fn reads_what_the_kernel_tells() {
        assert_eq!(resident("Name:\tztunnel\nVmRSS:\t   20480 kB\nRssAnon:\t 1 kB\n"), Some(20 << 20));
        assert_eq!(resident("Name:\tztunnel\n"), None);
    }
}
