//! Who goes first when there is less CPU than work.

/// Ten steps below the workers: a tenth of their share while they are busy (sched(7), setpriority(2)), all of the rest
/// while they are not.
const CONTROL_NICE: i32 = 10;

/// Lowers the priority of the calling thread, and of those that it starts from now on: a large update of the state is work
/// for many milliseconds, and a connection must not wait for that. It cannot be raised again without privileges.
pub fn yield_to_workers() {
    if let Err(error) = rustix::process::setpriority_process(None, CONTROL_NICE) {
        tracing::warn!(%error, "cannot put the data path before the control thread");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_yields() {
        let own = || rustix::process::getpriority_process(None).expect("a thread has a priority");
        let before = own();
        let lowered = std::thread::spawn(move || {
            yield_to_workers();
            own()
        });
        assert_eq!(lowered.join().expect("it does not panic"), CONTROL_NICE);
        assert_eq!(own(), before);
    }
}
