use super::*;

#[test]
fn a_refusal_says_who_refused() {
    let said = |code| refused(io::Error::from_raw_os_error(code), "IORING_OP_RECV").to_string();
    assert!(said(nix::libc::ENOSYS).contains("ENOSYS"));
    assert!(said(nix::libc::EINVAL).contains("no IORING_OP_RECV"));
    assert!(said(nix::libc::EPERM).contains("seccomp") || said(nix::libc::EPERM).contains(DISABLED_NAME));
    assert!(said(nix::libc::ENOMEM).contains("cannot be set up"));
}

const DISABLED_NAME: &str = "kernel.io_uring_disabled";

#[test]
fn a_ring_runs_on_the_thread_that_is_in_it_and_nowhere_else() {
    probe().expect("this machine allows io_uring");
    let runtime = Runtime::new().expect("a ring");
    assert!(!is_running());
    runtime.block_on(async {
        assert!(is_running());
        assert!(!std::thread::spawn(is_running).join().expect("no panic"));
    });
    assert!(!is_running());
}
