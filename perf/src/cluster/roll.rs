//! Which pods have come to the Job, and orders to them.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::orders::{Answer, Hello, Line, Order};
use crate::figures::Role;
use crate::load::DEADLINE;

/// For what a pod says first, and after an accept that failed.
const HELLO: Duration = Duration::from_secs(5);
const BACK_OFF: Duration = Duration::from_millis(100);

/// Which variant, and which of its ends.
pub type Seat = (&'static str, Role);

/// One pod for each seat: the one that came last.
#[derive(Default)]
pub struct Roll {
    seats: Mutex<BTreeMap<Seat, Arc<Present>>>,
    came: Condvar,
}

pub struct Present {
    pub hello: Hello,
    line: Mutex<Line>,
}

impl Roll {
    /// Takes in who dials, one after the other; a pod that is started again comes again.
    pub fn called(listener: TcpListener, seats: Vec<Seat>) -> Arc<Self> {
        let roll = Arc::new(Self::default());
        let kept = roll.clone();
        std::thread::spawn(move || {
            loop {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        if let Err(error) = Line::new(stream).and_then(|line| kept.seat(line, &seats)) {
                            eprintln!("{peer}: {error}");
                        }
                    }
                    Err(error) => {
                        eprintln!("nobody is accepted: {error}");
                        std::thread::sleep(BACK_OFF);
                    }
                }
            }
        });
        roll
    }

    fn seat(&self, mut line: Line, seats: &[Seat]) -> io::Result<()> {
        let hello: Hello = line.hear(HELLO)?;
        let Hello { variant, role, version, .. } = &hello;
        let seat = seats.iter().find(|seat| seat.0 == variant && seat.1 == *role);
        let seat = *seat
            .ok_or_else(|| io::Error::other(format!("nobody measures a {} {variant:?}", role.name())))?;
        let own = env!("CARGO_PKG_VERSION");
        if version != own {
            let told =
                format!("{} {}: it is of version {version}, and the Job of {own}", seat.0, role.name());
            return Err(io::Error::other(told));
        }
        let from = line.peer_address()?;
        // Whoever else it names would be sent a load.
        if hello.address != from {
            let (named, variant, role) = (hello.address, seat.0, seat.1.name());
            return Err(io::Error::other(format!(
                "{variant} {role}: it is {from}, and says that it is {named}"
            )));
        }
        eprintln!("{} {} came: {} on {}", seat.0, role.name(), hello.address, hello.node);
        self.seats().insert(seat, Arc::new(Present { hello, line: Mutex::new(line) }));
        self.came.notify_all();
        Ok(())
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<Seat, Arc<Present>>> {
        // A map is whole after every step.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wait(&self, seat: Seat, deadline: Duration) -> io::Result<Arc<Present>> {
        let missing = |seats: &mut BTreeMap<_, _>| !seats.contains_key(&seat);
        let (seats, _) = self
            .came
            .wait_timeout_while(self.seats(), deadline, missing)
            .unwrap_or_else(PoisonError::into_inner);
        let present = seats.get(&seat).cloned();
        present.ok_or_else(|| {
            let told = format!(
                "the {} {} did not come within {deadline:?}: see whether its pod runs, and what it says",
                seat.0,
                seat.1.name()
            );
            io::Error::new(io::ErrorKind::TimedOut, told)
        })
    }

    /// A pod that does not answer loses its seat until it comes again.
    pub fn order(&self, seat: Seat, order: &Order, deadline: Duration) -> io::Result<Answer> {
        let present = self.wait(seat, DEADLINE)?;
        let mut line = present.line.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = line.say(order, DEADLINE).and_then(|()| line.hear(deadline));
        answer.map_err(|error| {
            let mut seats = self.seats();
            if seats.get(&seat).is_some_and(|one| Arc::ptr_eq(one, &present)) {
                seats.remove(&seat);
            }
            let told = format!("the {} {} does not answer: {error}", seat.0, seat.1.name());
            io::Error::new(error.kind(), told)
        })
    }
}
