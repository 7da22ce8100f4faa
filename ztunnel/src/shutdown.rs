//! How the process ends: it is asked once (signal or `/quitquitquit`), then everything drains until nothing is left or
//! the deadline has passed, then what is left is cut.
//!
//! ```text
//! running --start--> draining --no source, then no guard left--> ended
//!                        \-------------deadline-------------> ended (force)
//! ```
//!
//! Works across runtimes: guards are counted by an atomic, and tokens wake whoever waits, on any thread. Must not know
//! what drains; whoever keeps something alive holds a `Guard`, whoever takes in new work watches `graceful` and holds a guard of
//! `source` until it has stopped.

use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{info, warn};

/// The process's drain. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Drain {
    graceful: CancellationToken,
    force: CancellationToken,
    alive: TaskTracker,
    /// What makes more of it, until it saw that the drain has begun.
    sources: TaskTracker,
    started: Arc<OnceLock<Instant>>,
    deadline: Duration,
}

/// Keeps the drain waiting as long as it lives; each clone counts.
#[derive(Clone, Debug)]
pub struct Guard(#[expect(dead_code, reason = "held for its Drop")] TaskTrackerToken);

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    /// So many guards were left when the deadline passed, sources not counted.
    Cut(usize),
}

impl Drain {
    pub fn new(deadline: Duration) -> Self {
        let (alive, sources) = (TaskTracker::new(), TaskTracker::new());
        // Closed from the start: it only means that `wait` ends when the last guard goes; guards can still be made.
        alive.close();
        sources.close();
        Self {
            graceful: CancellationToken::new(),
            force: CancellationToken::new(),
            alive,
            sources,
            started: Arc::default(),
            deadline,
        }
    }

    /// Asks for the end. Only the first call counts.
    pub fn start(&self, reason: &str) {
        let mut first = false;
        self.started.get_or_init(|| {
            first = true;
            Instant::now()
        });
        if first {
            info!(reason, deadline = ?self.deadline, alive = self.alive.len(), "draining");
            self.graceful.cancel();
        }
    }

    /// Cancelled when no new work may be taken in.
    pub fn graceful(&self) -> &CancellationToken {
        &self.graceful
    }

    /// Cancelled when whatever is still alive must go.
    pub fn force(&self) -> &CancellationToken {
        &self.force
    }

    pub fn guard(&self) -> Guard {
        Guard(self.alive.token())
    }

    /// For what takes new work in, until it has stopped: all may be idle while it has not heard of the drain yet.
    pub fn source(&self) -> Guard {
        Guard(self.sources.token())
    }

    pub fn alive(&self) -> usize {
        self.alive.len()
    }

    /// Waits until the drain was started and has ended, and then forces what is left. May be awaited by several.
    pub async fn drained(&self) -> Outcome {
        self.graceful.cancelled().await;
        let started = *self.started.get().expect("invariant: `start` sets the time before it cancels");
        let ended = async {
            self.sources.wait().await;
            self.alive.wait().await;
        };
        let outcome = match tokio::time::timeout_at(started + self.deadline, ended).await {
            Ok(()) => Outcome::Complete,
            Err(_) => Outcome::Cut(self.alive.len()),
        };
        if !self.force.is_cancelled() {
            match outcome {
                Outcome::Complete => info!("drained"),
                Outcome::Cut(left) => warn!(left, "drain deadline passed, cutting what is left"),
            }
            self.force.cancel();
        }
        outcome
    }
}

/// Starts the drain on SIGTERM and SIGINT; a second SIGINT ends the process at once. The handlers are in place when
/// this returns; the future waits for the signals.
pub fn signals(drain: Drain) -> io::Result<impl Future<Output = ()> + Send> {
    let terminate = signal(SignalKind::terminate())?;
    let interrupt = signal(SignalKind::interrupt())?;
    Ok(watch(drain, terminate, interrupt, || std::process::exit(0)))
}

/// A source of signals; a test has another one.
trait Signals: Send {
    fn next(&mut self) -> impl Future<Output = Option<()>> + Send;
}

impl Signals for Signal {
    fn next(&mut self) -> impl Future<Output = Option<()>> + Send {
        self.recv()
    }
}

async fn watch(drain: Drain, mut terminate: impl Signals, mut interrupt: impl Signals, exit: impl FnOnce()) {
    let mut interrupted = false;
    loop {
        tokio::select! {
            Some(()) = terminate.next() => drain.start("SIGTERM"),
            Some(()) = interrupt.next() => {
                if std::mem::replace(&mut interrupted, true) {
                    return exit();
                }
                drain.start("SIGINT");
            }
            else => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::mpsc;

    use super::*;

    impl Signals for mpsc::Receiver<()> {
        fn next(&mut self) -> impl Future<Output = Option<()>> + Send {
            self.recv()
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
    }

    #[test]
    fn ends_when_the_last_guard_of_another_thread_goes() {
        let drain = Drain::new(Duration::from_secs(60));
        let guard = drain.guard();
        let of_worker = drain.clone();
        let worker = std::thread::spawn(move || {
            runtime().block_on(of_worker.graceful().cancelled());
            let second = guard.clone();
            drop(guard);
            assert_eq!(of_worker.alive(), 1);
            drop(second);
        });
        let outcome = runtime().block_on(async {
            drain.start("test");
            drain.drained().await
        });
        worker.join().expect("the worker does not panic");
        assert_eq!(outcome, Outcome::Complete);
        assert!(drain.force().is_cancelled());
    }

    #[tokio::test]
    async fn what_takes_work_in_is_waited_for_and_what_it_took_in() {
        let drain = Drain::new(Duration::from_secs(60));
        let source = drain.source();
        assert_eq!(drain.alive(), 0);
        drain.start("test");
        let mut drained = Box::pin(drain.drained());
        assert!(futures::poll!(&mut drained).is_pending());
        let taken = drain.guard();
        drop(source);
        assert!(futures::poll!(&mut drained).is_pending());
        drop(taken);
        assert_eq!(drained.await, Outcome::Complete);
    }

    #[tokio::test]
    async fn cuts_at_the_deadline_counted_from_the_start() {
        let deadline = Duration::from_millis(100);
        let drain = Drain::new(deadline);
        let guard = drain.guard();
        let begun = Instant::now();
        drain.start("test");
        drain.start("again");
        assert!(drain.graceful().is_cancelled() && !drain.force().is_cancelled());
        let (one, other) = tokio::join!(drain.drained(), drain.drained());
        assert_eq!((one, other), (Outcome::Cut(1), Outcome::Cut(1)));
        assert!(begun.elapsed() >= deadline);
        assert!(drain.force().is_cancelled());
        let asked_late = Instant::now();
        assert_eq!(drain.drained().await, Outcome::Cut(1));
        assert!(asked_late.elapsed() < deadline, "the deadline does not start anew");
        drop(guard);
    }

    #[tokio::test]
    async fn a_second_interrupt_ends_at_once() {
        let drain = Drain::new(Duration::from_secs(60));
        let (terminate, from_terminate) = mpsc::channel(4);
        let (interrupt, from_interrupt) = mpsc::channel(4);
        let exited = AtomicBool::new(false);
        let exit = || exited.store(true, Ordering::Relaxed);
        let watching = watch(drain.clone(), from_terminate, from_interrupt, exit);
        let acting = async {
            interrupt.send(()).await.expect("it is watched");
            drain.graceful().cancelled().await;
            terminate.send(()).await.expect("it is watched");
            interrupt.send(()).await.expect("it is watched");
        };
        tokio::join!(watching, acting);
        assert!(exited.load(Ordering::Relaxed));
    }
}
