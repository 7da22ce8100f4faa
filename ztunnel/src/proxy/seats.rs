//! Which worker carries what. The connections of a pod stay together on one worker, and so do the tunnels of each of its
//! callers: both legs and the tunnel are served by one thread, and what a pod does costs its neighbours on other workers nothing.
//!
//! - Who has no connection gets a worker that nobody else has, or else the one that it had.
//! - Who has many spreads over half of the workers, and over more when those that it has are loaded; but while others have
//!   connections too, one worker is left to them.
//!
//! Asked where connections are accepted: on one worker for each pod.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use crate::io::load::Loads;

/// Connections of one that share a worker before it gets a second one.
const TOGETHER: usize = 8;
/// Of 1,000: a worker with more gets nothing that can go elsewhere.
const LOADED: u32 = 750;
/// A worker with less is a relief for one that is loaded.
const RELIEF: u32 = 500;

/// Whose connections they are: the pod's own, or a caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    Own,
    Caller(IpAddr),
}

/// A place on a worker, for as long as one of the connections there lives.
pub struct Seat {
    worker: usize,
    loads: Arc<Loads>,
}

pub(super) struct Seats {
    loads: Arc<Loads>,
    known: RefCell<HashMap<Whose, Known>>,
}

#[derive(Default)]
struct Known {
    last: Option<usize>,
    seats: Vec<Weak<Seat>>,
}

/// A worker, as somebody sees it who looks for a place.
#[derive(Clone, Copy, Debug, Default)]
struct Worker {
    permille: u32,
    seated: u32,
    /// Their connections there.
    own: usize,
}

impl Seat {
    fn take(worker: usize, loads: &Arc<Loads>) -> Arc<Self> {
        loads.seat(worker);
        Arc::new(Self { worker, loads: loads.clone() })
    }

    pub(super) fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.loads.unseat(self.worker);
    }
}

impl Seats {
    pub(super) fn new(loads: Arc<Loads>) -> Self {
        Self { loads, known: RefCell::default() }
    }

    /// For one more connection; `near` is preferred by who has no reason for another.
    pub(super) fn take(&self, whose: Whose, near: usize) -> Arc<Seat> {
        self.loads.look();
        let mut known = self.known.borrow_mut();
        if known.len() == known.capacity() {
            known.retain(|_, one| one.seats.iter().any(|seat| seat.strong_count() > 0));
        }
        let one = known.entry(whose).or_default();
        one.seats.retain(|seat| seat.strong_count() > 0);
        let mut workers: Vec<Worker> = (0..self.loads.active())
            .map(|worker| Worker {
                permille: self.loads.permille(worker),
                seated: self.loads.seated(worker),
                own: 0,
            })
            .collect();
        let mut held = Vec::with_capacity(one.seats.len());
        for seat in one.seats.iter().filter_map(Weak::upgrade) {
            // None of a worker that is no longer active.
            if let Some(worker) = workers.get_mut(seat.worker) {
                worker.own = Arc::strong_count(&seat) - 1;
                held.push(seat);
            }
        }
        let worker = choose(&workers, one.last, near);
        one.last = Some(worker);
        if let Some(seat) = held.into_iter().find(|seat| seat.worker == worker) {
            return seat;
        }
        let seat = Seat::take(worker, &self.loads);
        one.seats.push(Arc::downgrade(&seat));
        seat
    }
}

fn choose(workers: &[Worker], last: Option<usize>, near: usize) -> usize {
    let own = || workers.iter().enumerate().filter(|(_, worker)| worker.own > 0);
    let others = || workers.iter().enumerate().filter(|(_, worker)| worker.own == 0);
    let Some((first, _)) = own().min_by_key(|(_, worker)| (worker.permille >= LOADED, worker.own)) else {
        let fit = |(index, worker): &(usize, &Worker)| {
            let (last, near) = (Some(*index) != last, *index != near);
            (worker.permille >= LOADED, worker.seated > 0, last, worker.seated, near)
        };
        return others().min_by_key(fit).map_or(0, |(index, _)| index);
    };
    let Some((next, relief)) = others().min_by_key(|(_, worker)| (worker.permille, worker.seated)) else {
        return first;
    };
    let held = own().count();
    let crowded = workers[first].own >= TOGETHER && held < workers.len() / 2;
    let loaded = own().all(|(_, worker)| worker.permille >= LOADED) && relief.permille < RELIEF;
    let alone = workers.iter().map(|worker| worker.seated as usize).sum::<usize>() <= held;
    if (crowded || loaded) && (alone || held + 1 < workers.len()) { next } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Whose = Whose::Caller(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    fn worker(permille: u32, seated: u32, own: usize) -> Worker {
        Worker { permille, seated, own }
    }

    #[test]
    fn connections_of_one_stay_together_and_others_go_elsewhere() {
        let loads = Arc::new(Loads::new(2, 2));
        let seats = Seats::new(loads.clone());
        let first = seats.take(Whose::Own, 0);
        let second = seats.take(Whose::Own, 0);
        assert_eq!((first.worker(), second.worker()), (0, 0));
        let caller = seats.take(CALLER, 0);
        assert_eq!(caller.worker(), 1);
        drop((first, second));
        assert_eq!(loads.seated(0), 0);
        drop(caller);
        assert_eq!(loads.seated(1), 0);
        assert_eq!(seats.take(CALLER, 0).worker(), 1, "where its tunnels were");
    }

    #[test]
    fn one_that_is_alone_may_have_every_worker_but_only_when_they_are_needed() {
        let idle = worker(10, 0, 0);
        assert_eq!(choose(&[worker(600, 1, 32), idle], Some(0), 0), 0);
        assert_eq!(choose(&[worker(900, 1, 32), idle], Some(0), 0), 1);
        assert_eq!(choose(&[worker(900, 1, 32), worker(700, 0, 0)], Some(0), 0), 0, "no relief");
    }

    #[test]
    fn one_worker_is_left_to_the_others() {
        let mouse = worker(10, 1, 0);
        assert_eq!(choose(&[worker(900, 1, 32), mouse], Some(0), 0), 0);
        assert_eq!(choose(&[worker(900, 1, 32), worker(0, 0, 0), mouse], Some(0), 0), 1);
    }

    #[test]
    fn many_connections_spread_over_half_of_the_workers_from_the_start() {
        let seats = Seats::new(Arc::new(Loads::new(8, 8)));
        let all: Vec<_> = (0..64).map(|_| seats.take(Whose::Own, 0)).collect();
        let on = |worker| all.iter().filter(|seat| seat.worker() == worker).count();
        assert_eq!((0..8).map(on).collect::<Vec<_>>(), [16, 16, 16, 16, 0, 0, 0, 0]);
    }

    #[test]
    fn who_is_new_avoids_a_loaded_worker() {
        assert_eq!(choose(&[worker(900, 0, 0), worker(100, 5, 0)], None, 0), 1);
        assert_eq!(choose(&[worker(0, 2, 0), worker(0, 3, 0)], None, 1), 0);
        assert_eq!(choose(&[worker(0, 2, 0), worker(0, 3, 0)], Some(1), 0), 1, "where its tunnels are");
    }

    #[test]
    fn a_worker_that_is_no_longer_active_gets_nothing_new() {
        let loads = Arc::new(Loads::new(2, 2));
        let seats = Seats::new(loads.clone());
        let (_own, before) = (seats.take(Whose::Own, 0), seats.take(CALLER, 0));
        assert_eq!(before.worker(), 1);
        loads.set_active(1);
        assert_eq!(seats.take(CALLER, 0).worker(), 0);
    }
}
