//! Shares a worker between pods: by pod, however many connections each has.
//!
//! A worker's tasks take turns ([`turn`](super::turn)), and a pod with many busy connections would get as many turns as
//! it has of them: one byte of its neighbour's waits behind them all, in each of the two proxies, both ways. So while
//! more than one pod is at work, each moves about [`QUANTUM`] bytes in a round; then its tasks queue up, and go on one by one
//! in the rounds that follow, in the order in which they came. Between two rounds the sockets are looked at. A pod that
//! is alone on its worker is never held up.
//!
//! ```text
//! polled ─▶ within its quantum ─▶ runs, and lets the first of the queue follow
//!        └▶ beyond it, or behind a queue ─▶ queued ─▶ (a later round) ─▶ runs
//! ```

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::task::coop;

use super::{slice, uring};

/// Bytes of one pod in one round, about: what takes a tenth of a millisecond, also with encryption.
const QUANTUM: usize = 128 * 1024;
/// For so long after it did something, a pod counts as being at work.
const AT_WORK: Duration = Duration::from_millis(20);
/// One in so many polls is timed, for all of them.
const TIMED: u32 = 16;

/// What a pod does on one worker.
pub struct Account {
    /// In `round`.
    spent: Cell<usize>,
    round: Cell<u64>,
    queue: RefCell<VecDeque<(Waker, Rc<Ticket>)>>,
    polls: Cell<u32>,
    /// Takes the time that the worker spent.
    clock: Box<dyn Fn(Duration)>,
}

/// A place in the queue.
#[derive(Default)]
struct Ticket {
    /// Its turn has come.
    due: Cell<bool>,
}

struct Worker {
    round: Cell<u64>,
    /// Whose task runs.
    current: RefCell<Option<Rc<Account>>>,
    /// Who ran last, and when that was another than before.
    last: Cell<*const Account>,
    changed: Cell<Option<Instant>>,
    /// Those with a queue.
    waiting: RefCell<Vec<Rc<Account>>>,
    /// Of whoever begins the rounds, while there is none to begin.
    rounds: Cell<Option<Waker>>,
}

thread_local! {
    static WORKER: Worker = const { Worker {
        round: Cell::new(0),
        current: RefCell::new(None),
        last: Cell::new(std::ptr::null()),
        changed: Cell::new(None),
        waiting: RefCell::new(Vec::new()),
        rounds: Cell::new(None),
    } };
}

impl Account {
    /// `clock` is told of the worker's time that the pod took, now and then.
    pub fn new(clock: impl Fn(Duration) + 'static) -> Rc<Self> {
        Rc::new(Self {
            spent: Cell::new(0),
            round: Cell::new(0),
            queue: RefCell::default(),
            polls: Cell::new(0),
            clock: Box::new(clock),
        })
    }

    fn charge(&self, round: u64, bytes: usize) {
        if self.round.replace(round) != round {
            self.spent.set(0);
        }
        self.spent.set(self.spent.get() + bytes);
    }

    fn is_over(&self, round: u64) -> bool {
        self.round.get() == round && self.spent.get() >= QUANTUM
    }

    fn release_one(&self) {
        // One that has ended since wakes nobody; the next round looks again.
        if let Some((waker, ticket)) = self.queue.borrow_mut().pop_front() {
            ticket.due.set(true);
            waker.wake();
        }
    }
}

pin_project_lite::pin_project! {
    /// A task of a pod.
    pub struct Sharing<F> {
        #[pin]
        future: F,
        account: Rc<Account>,
        ticket: Option<Rc<Ticket>>,
    }
}

/// A task that takes its turns as one of the pod's.
pub fn as_one_of<F: Future>(account: &Rc<Account>, future: F) -> Sharing<F> {
    Sharing { future, account: account.clone(), ticket: None }
}

/// Charges the pod whose task runs.
pub(super) fn spend(bytes: usize) {
    WORKER.with(|worker| {
        if let Some(account) = &*worker.current.borrow() {
            account.charge(worker.round.get(), bytes);
        }
    });
}

/// Begins the rounds of this worker while somebody waits for one; for ever.
pub(super) async fn rounds() {
    let somebody_waits = |context: &mut Context<'_>| {
        WORKER.with(|worker| match worker.waiting.borrow().is_empty() {
            true => {
                worker.rounds.set(Some(context.waker().clone()));
                Poll::Pending
            }
            false => Poll::Ready(()),
        })
    };
    loop {
        poll_fn(somebody_waits).await;
        uring::flush();
        // Until the sockets were looked at.
        tokio::task::yield_now().await;
        WORKER.with(|worker| {
            worker.round.set(worker.round.get() + 1);
            for account in worker.waiting.take() {
                account.release_one();
                if !account.queue.borrow().is_empty() {
                    worker.waiting.borrow_mut().push(account);
                }
            }
        });
    }
}

impl Worker {
    /// Whether another pod was at work lately; asked only by one that is beyond its quantum.
    fn is_shared(&self) -> bool {
        self.changed.get().is_some_and(|changed| changed.elapsed() < AT_WORK)
    }

    fn queue(&self, account: &Rc<Account>, waker: &Waker, ticket: Rc<Ticket>) {
        let mut queue = account.queue.borrow_mut();
        if queue.is_empty() {
            self.waiting.borrow_mut().push(account.clone());
        }
        queue.push_back((waker.clone(), ticket));
        self.rounds.take().into_iter().for_each(Waker::wake);
    }
}

/// Whether a task must wait for a later round.
fn waits(worker: &Worker, account: &Rc<Account>, held: &mut Option<Rc<Ticket>>, waker: &Waker) -> bool {
    if let Some(ticket) = held {
        // What else wakes it does not let it pass the queue.
        let due = ticket.due.get();
        if due {
            *held = None;
        }
        return !due;
    }
    let first = account.queue.borrow().is_empty();
    if first && !(account.is_over(worker.round.get()) && worker.is_shared()) {
        return false;
    }
    let ticket = Rc::<Ticket>::default();
    worker.queue(account, waker, ticket.clone());
    *held = Some(ticket);
    true
}

impl<F: Future> Future for Sharing<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let account = &*this.account;
        WORKER.with(|worker| {
            if waits(worker, account, this.ticket, context.waker()) {
                return Poll::Pending;
            }
            if worker.last.replace(Rc::as_ptr(account)) != Rc::as_ptr(account) {
                worker.changed.set(Some(Instant::now()));
            }
            let polls = account.polls.get().wrapping_add(1);
            account.polls.set(polls);
            let started = polls.is_multiple_of(TIMED).then(Instant::now);
            let before = worker.current.replace(Some(account.clone()));
            let polled = this.future.poll(context);
            worker.current.replace(before);
            if let Some(started) = started {
                (account.clock)(started.elapsed() * TIMED);
            }
            if !account.is_over(worker.round.get()) {
                account.release_one();
            }
            if !coop::has_budget_remaining() {
                uring::flush();
            }
            slice::turn_over();
            polled
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;

    type Order = Rc<RefCell<Vec<char>>>;

    /// Moves a whole quantum in each of its turns, as long as there are any.
    async fn moves(name: char, turns: usize, order: Order) {
        for _ in 0..turns {
            order.borrow_mut().push(name);
            super::spend(QUANTUM);
            tokio::task::yield_now().await;
        }
    }

    async fn shared(accounts: &[(&str, &Rc<Account>)], turns: usize) -> String {
        let order = Order::default();
        LocalSet::new()
            .run_until(async {
                let rounds = tokio::task::spawn_local(super::rounds());
                let mut tasks = Vec::new();
                for (names, account) in accounts {
                    for name in names.chars() {
                        let work = as_one_of(account, moves(name, turns, order.clone()));
                        tasks.push(tokio::task::spawn_local(work));
                    }
                }
                for task in tasks {
                    task.await.expect("no panic");
                }
                rounds.abort();
            })
            .await;
        order.borrow().iter().collect()
    }

    fn idle() -> Rc<Account> {
        Account::new(|_| {})
    }

    #[tokio::test]
    async fn a_pod_with_many_busy_connections_gets_no_more_than_one_with_one() {
        let order = shared(&[("abcdefgh", &idle()), ("M", &idle())], 8).await;
        let last = order.rfind('M').expect("it ran");
        let others = order[..last].len() - order[..last].matches('M').count();
        // In its first round nobody knew of the other.
        assert!(others <= 8 + 3 * 8, "{order}");
        for name in "abcdefghM".chars() {
            assert_eq!(order.matches(name).count(), 8, "{order}");
        }
    }

    #[tokio::test]
    async fn its_own_connections_take_turns() {
        let order = shared(&[("abc", &idle()), ("M", &idle())], 6).await;
        let own: Vec<char> = order.chars().filter(|name| *name != 'M').collect();
        for turn in own.chunks(3) {
            let mut turn = turn.to_vec();
            turn.sort_unstable();
            assert_eq!(turn, ['a', 'b', 'c'], "{order}");
        }
    }

    #[tokio::test]
    async fn who_ends_in_the_queue_holds_up_nobody() {
        let account = idle();
        LocalSet::new()
            .run_until(async {
                let rounds = tokio::task::spawn_local(super::rounds());
                let order = Order::default();
                let other = idle();
                let neighbour = tokio::task::spawn_local(as_one_of(&other, moves('M', 50, order.clone())));
                let tasks: Vec<_> = "abcd"
                    .chars()
                    .map(|name| tokio::task::spawn_local(as_one_of(&account, moves(name, 20, order.clone()))))
                    .collect();
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                tasks[1].abort();
                tasks[2].abort();
                for (index, task) in tasks.into_iter().enumerate() {
                    assert_eq!(task.await.is_ok(), [0, 3].contains(&index));
                }
                neighbour.await.expect("no panic");
                rounds.abort();
            })
            .await;
    }

    #[tokio::test]
    async fn the_time_that_a_pod_takes_is_told() {
        let told = Rc::new(Cell::new(Duration::ZERO));
        let clock = told.clone();
        let account = Account::new(move |time| clock.set(clock.get() + time));
        let work = as_one_of(&account, moves('a', 64, Order::default()));
        LocalSet::new()
            .run_until(async {
                let rounds = tokio::task::spawn_local(super::rounds());
                work.await;
                rounds.abort();
            })
            .await;
        assert!(told.get() > Duration::ZERO);
    }
}
