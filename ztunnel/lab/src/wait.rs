//! Waiting for a condition, with a deadline.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};

const PERIOD: Duration = Duration::from_millis(10);
const STEADY_LOOKS: u32 = 30;

/// Looks until `condition` gives something; `None` when the deadline passed first.
pub fn poll<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = condition() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(PERIOD);
    }
}

/// Whether the condition came true before the deadline.
pub fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    poll(deadline, || condition().then_some(())).is_some()
}

/// What `look` gives once it gives the same again and again; `None` when it never did before the deadline.
pub fn steady<T: PartialEq>(deadline: Duration, mut look: impl FnMut() -> T) -> Option<T> {
    let (mut last, mut repeated) = (None, 0);
    poll(deadline, || {
        let found = Some(look());
        repeated = if found == last { repeated + 1 } else { 0 };
        last = found;
        if repeated < STEADY_LOOKS { None } else { last.take() }
    })
}

/// Which of the sockets are ready, in order; an error when none is before the deadline.
pub(crate) fn ready<S: AsFd>(
    sockets: impl Iterator<Item = (S, PollFlags)>,
    deadline: Duration,
) -> io::Result<Vec<usize>> {
    let sockets: Vec<(S, PollFlags)> = sockets.collect();
    let mut polled: Vec<PollFd<'_>> =
        sockets.iter().map(|(socket, flags)| PollFd::new(socket.as_fd(), *flags)).collect();
    let timeout = PollTimeout::try_from(deadline).unwrap_or(PollTimeout::MAX);
    if nix::poll::poll(&mut polled, timeout)? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok((0..polled.len()).filter(|&index| polled[index].any().unwrap_or(true)).collect())
}
