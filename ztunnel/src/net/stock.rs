//! The stock of sockets to dial with, per pod and worker. The agent makes them ahead of time inside the pod; an empty
//! stock is one short wait.
//!
//! Sizing: an idle stock holds a few sockets. Finding it empty doubles the target, a quiet period halves it. The
//! number of sockets in all stocks of the process is bounded; beyond the bound only waiters are served.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Sockets that a stock keeps when nothing happens.
const IDLE_TARGET: u32 = 2;
const LARGEST_TARGET: u32 = 256;

/// How many sockets all stocks of the process may hold or expect.
const IN_ALL_STOCKS: usize = 8192;

/// What has not come by then is asked for again.
const UNANSWERED: Duration = Duration::from_secs(1);

/// Asks the agent for sockets; answered by `Stock::put`.
pub type Ask = Box<dyn Fn(u32)>;

#[derive(Debug, thiserror::Error)]
#[error("the agent supplied no socket to dial with within {} s; is ztunnel-redirect running?", .0.as_secs())]
pub struct Empty(Duration);

/// The sockets that all stocks of the process hold or have asked for.
#[derive(Clone, Default)]
pub struct Budget(Arc<AtomicUsize>);

pub struct Stock {
    sockets: RefCell<VecDeque<OwnedFd>>,
    arrived: Notify,
    target: Cell<u32>,
    expected: Cell<u32>,
    waiting: Cell<u32>,
    taken_since_review: Cell<u32>,
    budget: Budget,
    ask: Ask,
}

impl Stock {
    pub fn new(budget: Budget, ask: Ask) -> Rc<Self> {
        let stock = Rc::new(Self {
            sockets: RefCell::new(VecDeque::new()),
            arrived: Notify::new(),
            target: Cell::new(IDLE_TARGET),
            expected: Cell::new(0),
            waiting: Cell::new(0),
            taken_since_review: Cell::new(0),
            budget,
            ask,
        });
        stock.refill();
        stock
    }

    /// A socket; waits up to `within` when the stock is empty.
    pub async fn take(&self, within: Duration) -> Result<OwnedFd, Empty> {
        if let Some(socket) = self.pop() {
            return Ok(socket);
        }
        self.target.set((self.target.get() * 2).min(LARGEST_TARGET));
        let waiting = Waiting::new(&self.waiting);
        self.refill();
        let arrival = async {
            loop {
                let arrived = self.arrived.notified();
                if let Some(socket) = self.pop() {
                    return socket;
                }
                if tokio::time::timeout(UNANSWERED, arrived).await.is_err() {
                    self.ask_again();
                }
            }
        };
        let taken = tokio::time::timeout(within, arrival).await.map_err(|_| Empty(within));
        drop(waiting);
        taken
    }

    /// Sockets that the agent sent.
    pub fn put(&self, sockets: Vec<OwnedFd>) {
        let count = sockets.len() as u32;
        let answered = count.min(self.expected.get());
        self.expected.set(self.expected.get() - answered);
        self.budget.0.fetch_add((count - answered) as usize, Ordering::Relaxed);
        self.sockets.borrow_mut().extend(sockets);
        for _ in 0..count {
            self.arrived.notify_one();
        }
    }

    /// What was asked for never comes: the agent is new, or had fewer than that.
    pub fn ask_again(&self) {
        self.budget.give_back(self.expected.replace(0) as usize);
        self.refill();
    }

    /// Shrinks a stock that has been quiet since the last call.
    pub fn review(&self) {
        let taken = self.taken_since_review.replace(0);
        if taken < self.target.get() / 2 {
            self.target.set((self.target.get() / 2).max(IDLE_TARGET));
        }
        let mut sockets = self.sockets.borrow_mut();
        let surplus = sockets.len().saturating_sub(self.target.get() as usize);
        sockets.drain(..surplus);
        self.budget.give_back(surplus);
    }

    fn pop(&self) -> Option<OwnedFd> {
        let socket = self.sockets.borrow_mut().pop_front()?;
        self.budget.give_back(1);
        self.taken_since_review.set(self.taken_since_review.get() + 1);
        if (self.sockets.borrow().len() as u32) < self.target.get().div_ceil(2) {
            self.refill();
        }
        Some(socket)
    }

    fn refill(&self) {
        let held = self.sockets.borrow().len() as u32 + self.expected.get();
        let wanted = (self.target.get() + self.waiting.get()).saturating_sub(held);
        let granted =
            self.budget.grant(wanted as usize, self.waiting.get().saturating_sub(held) as usize) as u32;
        if granted > 0 {
            self.expected.set(self.expected.get() + granted);
            (self.ask)(granted);
        }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        self.budget.give_back(self.sockets.borrow().len() + self.expected.get() as usize);
    }
}

impl Budget {
    /// Grants what is left, and in any case what waiters need.
    fn grant(&self, wanted: usize, needed: usize) -> usize {
        let left = IN_ALL_STOCKS.saturating_sub(self.0.load(Ordering::Relaxed));
        let granted = wanted.min(left).max(needed.min(wanted));
        self.0.fetch_add(granted, Ordering::Relaxed);
        granted
    }

    fn give_back(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }
}

/// Counts a waiter for as long as it lives, also when its future is dropped.
struct Waiting<'a>(&'a Cell<u32>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn socket() -> OwnedFd {
        UdpSocket::bind("127.0.0.1:0").expect("loopback is there").into()
    }

    fn stock_with_log() -> (Rc<Stock>, Rc<RefCell<Vec<u32>>>) {
        let asked = Rc::new(RefCell::new(Vec::new()));
        let log = asked.clone();
        (Stock::new(Budget::default(), Box::new(move |count| log.borrow_mut().push(count))), asked)
    }

    #[tokio::test]
    async fn grows_when_found_empty_and_shrinks_when_quiet() {
        let (stock, asked) = stock_with_log();
        assert_eq!(*asked.borrow(), [IDLE_TARGET]);
        let take = stock.take(Duration::from_secs(5));
        let put = async { stock.put((0..IDLE_TARGET).map(|_| socket()).collect()) };
        let (taken, ()) = tokio::join!(take, put);
        assert!(taken.is_ok());
        assert!(stock.target.get() > IDLE_TARGET);
        for _ in 0..8 {
            stock.review();
        }
        assert_eq!(stock.target.get(), IDLE_TARGET);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_stock_waits_no_longer_than_asked() {
        let (stock, _) = stock_with_log();
        assert!(stock.take(Duration::from_secs(5)).await.is_err());
        assert_eq!(stock.waiting.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_with_too_few_is_not_waited_for() {
        let (stock, asked) = stock_with_log();
        stock.put(Vec::new());
        let answered = async {
            while asked.borrow().len() < 3 {
                tokio::time::sleep(UNANSWERED / 10).await;
            }
            stock.put(vec![socket()]);
        };
        let (taken, ()) = tokio::join!(stock.take(UNANSWERED * 3), answered);
        assert!(taken.is_ok(), "{:?}", asked.borrow());
    }

    #[test]
    fn the_budget_is_given_back() {
        let budget = Budget::default();
        let stock = Stock::new(budget.clone(), Box::new(|_| {}));
        stock.put(vec![socket()]);
        assert_eq!(budget.0.load(Ordering::Relaxed), IDLE_TARGET as usize);
        stock.ask_again();
        drop(stock);
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }
}
