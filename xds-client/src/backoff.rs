//! How long to wait before the next try, and which ends of a stream are ordinary. Pure: the caller brings the random
//! number and the clock.
//!
//! As the peer (interop.md section 4.4): 10 ms, doubled each time, at most 15 s; an ordinary end (the server restarts,
//! a connection reached its age) costs the shortest wait. Two things differ. Every wait has jitter, or the nodes of a
//! cluster come back in step. And "ordinary" and "reconnect at once" hold only after a stream that worked for a while:
//! a server that accepts, answers and hangs up would otherwise be asked, and send everything, in a tight loop.

use std::time::Duration;

use tonic::{Code, Status};

const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(15);

/// A stream that brought a response and lived this long was a good one.
const GOOD_STREAM: Duration = LONGEST;

/// How a try to have a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// What happens to every stream at some time.
    Ordinary,
    Failure,
}

#[derive(Debug)]
pub struct Backoff {
    last: Duration,
}

impl End {
    /// Unknown, Cancelled and DeadlineExceeded are how a stream ends when something between here and the server goes
    /// away, and so is Unavailable with either of two texts of the server's gRPC library.
    pub fn of(status: &Status) -> Self {
        let leaves = |text| status.message().contains(text);
        match status.code() {
            Code::Ok | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => Self::Ordinary,
            Code::Unavailable if leaves("transport is closing") || leaves("received prior goaway") => {
                Self::Ordinary
            }
            _ => Self::Failure,
        }
    }
}

impl Backoff {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { last: Duration::ZERO }
    }

    /// The wait before the next try. `worked` is how long the stream lived, if it did its duty; `random` is
    /// in 0..1. The wait lies between half of the step and the whole step.
    pub fn next(&mut self, end: End, worked: Option<Duration>, random: f64) -> Duration {
        let good = worked.is_some_and(|lived| lived >= GOOD_STREAM);
        self.last = match (good, end) {
            (true, End::Ordinary) => FIRST,
            (true, End::Failure) => FIRST * 2,
            (false, _) => (self.last * 2).clamp(FIRST, LONGEST),
        };
        self.last.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(60));

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> =
            (0..13).map(|_| backoff.next(End::Failure, None, 1.0).as_millis() as u64).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000]);
    }

    #[test]
    fn jitter_takes_up_to_half() {
        for (random, expected) in [(0.0, 5), (0.5, 7), (1.0, 10), (7.0, 10)] {
            let wait = Backoff::new().next(End::Failure, None, random);
            assert_eq!(wait.as_millis(), expected, "random {random}");
        }
    }

    #[test]
    fn a_good_stream_resets_the_wait() {
        let mut backoff = Backoff::new();
        for _ in 0..9 {
            backoff.next(End::Failure, None, 1.0);
        }
        assert_eq!(backoff.next(End::Ordinary, LONG, 1.0), FIRST);
        assert_eq!(backoff.next(End::Failure, LONG, 1.0), FIRST * 2);
    }

    #[test]
    fn a_server_that_hangs_up_at_once_is_not_asked_in_a_loop() {
        let mut backoff = Backoff::new();
        let short = Some(Duration::from_millis(3));
        let waits: Vec<_> = (0..4).map(|_| backoff.next(End::Ordinary, short, 1.0).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80]);
    }

    #[test]
    fn ends_are_told_apart_as_the_peer_does() {
        let ordinary = [
            Status::unknown("x"),
            Status::cancelled("x"),
            Status::deadline_exceeded("x"),
            Status::unavailable("the transport is closing"),
            Status::unavailable("closing: received prior goaway: code NO_ERROR"),
        ];
        let failures = [
            Status::unavailable("x"),
            Status::permission_denied("x"),
            Status::unauthenticated("x"),
            Status::internal("x"),
            Status::resource_exhausted("x"),
        ];
        assert!(ordinary.iter().all(|status| End::of(status) == End::Ordinary));
        assert!(failures.iter().all(|status| End::of(status) == End::Failure));
    }
}
