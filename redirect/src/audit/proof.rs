//! Proves that a connection which an application opens reaches the socket behind our rules.
//!
//! An unmarked socket in the pod's namespace sends a SYN to an address that nobody has. If capture works, a listener of
//! the proxy answers, and the answer arrives by loopback with the mark that only sockets of the proxy have. A filter on
//! the socket drops exactly such an answer, and the kernel counts what a filter drops: that count is the proof. The handshake
//! is thus never completed: no connection waits to be accepted, the proxy's log stays as it is, and the kernel takes the
//! half-open request back when its next answer finds no socket.
//!
//! Where capture fails, one SYN with a hop limit of one leaves the pod if no rule of ours is there to drop it, for an address that is
//! not routed, without a byte of payload.
//! A family in which the pod has no route out has nothing to prove.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::libc;
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use crate::PACKET_MARK;
use crate::rules::{MARK_MASK, PROOF_V4, PROOF_V6};

/// The discard service.
const PORT: u16 = 9;
/// The answer comes while the SYN is being sent, unless the node is so busy that the kernel's own thread must do it. Who asks waits
/// for it, so no longer than that; a proof that failed is tried again.
const ANSWER_DEADLINE: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("socket of the proof: {0}")]
    Socket(#[from] io::Error),
    #[error("a connection to {destination} that the pod opens does not reach the proxy's listener: {found}")]
    NotCaptured { destination: IpAddr, found: &'static str },
}

/// Who must answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A listener of the proxy.
    Listener,
    /// The namespace itself, be it a refusal: nobody listens there yet.
    Namespace,
}

/// In the namespace of the calling thread. Returns the addresses for which it is proven.
pub(crate) fn prove(answer: Answer) -> Result<Vec<IpAddr>, Error> {
    let mut sent = Vec::new();
    for destination in [IpAddr::from(PROOF_V4), IpAddr::from(PROOF_V6)] {
        if let Some(socket) = send(destination, answer)? {
            sent.push((destination, socket));
        }
    }
    let deadline = Instant::now() + ANSWER_DEADLINE;
    for (destination, socket) in &sent {
        while dropped(socket)? == 0 {
            let refused = socket.take_error()?.is_some();
            let found = match socket.peer_addr() {
                Ok(_) => "somebody else answers",
                Err(_) if refused => "it is refused",
                Err(_) if Instant::now() >= deadline => "nobody answers",
                Err(_) => {
                    std::thread::sleep(POLL);
                    continue;
                }
            };
            return Err(Error::NotCaptured { destination: *destination, found });
        }
    }
    Ok(sent.into_iter().map(|(destination, _)| destination).collect())
}

/// None where the pod cannot send in this family.
fn send(destination: IpAddr, answer: Answer) -> Result<Option<Socket>, Error> {
    let domain = if destination.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = match Socket::new(domain, Type::STREAM, Some(Protocol::TCP)) {
        Err(error) if cannot_leave(&error) => return Ok(None),
        made => made?,
    };
    socket.set_nonblocking(true)?;
    // If it answers all the same, it is reset and not drained.
    socket.set_linger(Some(Duration::ZERO))?;
    match domain {
        Domain::IPV4 => socket.set_ttl_v4(1)?,
        _ => socket.set_unicast_hops_v6(1)?,
    }
    socket.attach_filter(&filter(answer))?;
    match socket.connect(&SockAddr::from(SocketAddr::new(destination, PORT))) {
        Ok(()) => Ok(Some(socket)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(Some(socket)),
        Err(error) if cannot_leave(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn cannot_leave(error: &io::Error) -> bool {
    let known = [
        libc::EAFNOSUPPORT,
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::EADDRNOTAVAIL,
        libc::ENETDOWN,
        libc::EACCES,
    ];
    error.raw_os_error().is_some_and(|errno| known.contains(&errno))
}

/// Drops what proves capture, and passes all else.
fn filter(answer: Answer) -> Vec<SockFilter> {
    const LOAD: u16 = 0x20;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const LOOPBACK: u32 = 1;
    let beside = |what: i32| (libc::SKF_AD_OFF + what).cast_unsigned();
    let mark = match answer {
        Answer::Listener => vec![
            SockFilter::new(LOAD, 0, 0, beside(libc::SKF_AD_MARK)),
            SockFilter::new(AND, 0, 0, MARK_MASK),
            SockFilter::new(JUMP_IF_EQUAL, 0, 1, PACKET_MARK),
        ],
        Answer::Namespace => Vec::new(),
    };
    let over = 1 + u8::try_from(mark.len()).expect("invariant: three at most");
    let mut filter = vec![
        SockFilter::new(LOAD, 0, 0, beside(libc::SKF_AD_IFINDEX)),
        SockFilter::new(JUMP_IF_EQUAL, 0, over, LOOPBACK),
    ];
    filter.extend(mark);
    filter.push(SockFilter::new(RETURN, 0, 0, 0));
    filter.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    filter
}

/// How many packets for the socket were dropped.
#[expect(unsafe_code, reason = "SO_MEMINFO has no safe wrapper")]
fn dropped(socket: &Socket) -> io::Result<u32> {
    /// linux/sock_diag.h
    const SO_MEMINFO: libc::c_int = 55;
    const DROPS: usize = 8;
    let mut counts = [0u32; DROPS + 1];
    let mut length = size_of_val(&counts) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `counts`, which are plain numbers.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            counts.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if outcome == 0 { Ok(counts[DROPS]) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::rules::fixture::Pair;
    use crate::rules::{Closed, Uncaptured, withdraw};

    /// As a guard does, which tries again on a busy node.
    fn proven_soon(answer: Answer) -> Vec<IpAddr> {
        let mut tries = 0;
        loop {
            match prove(answer) {
                Ok(proven) => return proven,
                Err(error) if tries == 20 => panic!("{error}"),
                Err(_) => tries += 1,
            }
        }
    }

    /// It fails each time, and once for this reason.
    fn failed_soon(reason: &str) {
        let mut failures =
            (0..20).map(|_| prove(Answer::Listener).expect_err("no socket of ours answers").to_string());
        assert!(failures.any(|failure| failure.contains(reason)), "not because of: {reason}");
    }

    #[test]
    fn what_is_captured_is_proven_and_nobody_is_disturbed() {
        let pair = Pair::new("proof");
        let before = pair.in_pod(|| prove(Answer::Listener)).expect_err("not captured yet").to_string();
        assert!(before.contains("192.0.2.1"), "{before}");
        let installed = pair.enrol();
        for _ in 0..100 {
            let proven = pair.in_pod(|| proven_soon(Answer::Listener));
            assert_eq!(proven, [IpAddr::from(PROOF_V4), IpAddr::from(PROOF_V6)]);
        }
        for listener in installed.listeners().each() {
            let accepted = listener.accept().map(drop).expect_err("nobody connected");
            assert_eq!(accepted.kind(), io::ErrorKind::WouldBlock);
        }
        pair.in_pod(|| withdraw().expect("withdrawn"));
        assert!(pair.in_pod(|| prove(Answer::Listener)).is_err());
    }

    #[test]
    fn somebody_elses_listener_proves_nothing() {
        let pair = Pair::new("stranger");
        pair.in_pod(|| {
            Closed::install(Uncaptured::Dropped).expect("rules");
            assert_eq!(proven_soon(Answer::Namespace).len(), 2, "a refusal comes from within");
            failed_soon("refused");
        });
        let _stranger = pair.in_pod(|| TcpListener::bind("[::]:15001").expect("a free port"));
        pair.in_pod(|| failed_soon("somebody else"));
    }

    #[test]
    fn a_family_without_a_way_out_has_nothing_to_prove() {
        for (name, address, proven) in
            [("families", "10.77.0.2", IpAddr::from(PROOF_V4)), ("six", "fd77::2", IpAddr::from(PROOF_V6))]
        {
            let pair = Pair::of_families(name, &[address]);
            let _installed = pair.enrol();
            assert_eq!(pair.in_pod(|| proven_soon(Answer::Listener)), [proven]);
        }
    }
}
