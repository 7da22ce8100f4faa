use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::*;
use crate::rules::fixture::{Named, Pair, within};
use crate::rules::nftables::{self, TABLE, deeds};
use crate::rules::{Uncaptured, withdraw};

const POD: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2))];
const NODE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1))];
const SERVER: u16 = 8080;
const CLIENT: u16 = 40_000;
const DEADLINE: Duration = Duration::from_secs(5);
/// A connection that is let through is there at once, or at the second attempt of the kernel.
const BLOCKED: Duration = Duration::from_millis(1500);

fn listen(at: &Named, ip: IpAddr) -> TcpListener {
    within(at, move || TcpListener::bind((ip, SERVER)).expect("a free port"))
}

fn connect(from: IpAddr, to: IpAddr, within: Duration) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address((from, 0).into()), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    // Closing resets, so that nothing of it stays.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::from((from, CLIENT)).into())?;
    socket.connect_timeout(&SocketAddr::from((to, SERVER)).into(), within)?;
    Ok(socket)
}

fn waits(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).expect("an option");
    listener.accept().is_ok()
}

/// Connection tracking sees the connection begin and not end.
fn half_seen(pair: &Pair, from: IpAddr, to: IpAddr, by: &Named) {
    pair.in_pod(|| nftables::release().expect("rules that capture nothing"));
    let open = within(by, move || connect(from, to, DEADLINE).expect("nothing is captured"));
    pair.in_pod(|| {
        withdraw().expect("withdrawn");
        until_untracked();
    });
    drop(open);
}

/// The kernel ends it some time after the rules.
fn until_untracked() {
    let tracked = || {
        let all = Message::new("all", operation(GET), DUMP, &family_header(0, 0));
        Exchange::open(NETLINK_NETFILTER).and_then(|mut exchange| exchange.dump(&all)).expect("entries").len()
    };
    let deadline = Instant::now() + DEADLINE;
    loop {
        let before = tracked();
        let new = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        new.send_to(b"?", (Ipv4Addr::LOCALHOST, SERVER)).expect("sent");
        if tracked() <= before {
            return;
        }
        assert!(Instant::now() < deadline, "still tracked");
    }
}

#[test]
fn what_ended_unseen_hides_no_connection_that_leaves() {
    let pair = Pair::new("stale-out");
    for (pod, node) in POD.into_iter().zip(NODE) {
        let server = listen(&pair.node, node);
        half_seen(&pair, pod, node, &pair.pod);
        assert!(waits(&server));
        let installed = pair.enrol();
        let again = pair.in_pod(move || connect(pod, node, DEADLINE));
        assert!(!waits(&server), "{pod} to {node} went past the capture");
        assert!(again.is_ok() && waits(&installed.listeners().outbound), "{again:?}");
        pair.in_pod(|| withdraw().expect("withdrawn"));
    }
}

#[test]
fn what_ended_unseen_hides_no_connection_that_arrives() {
    let pair = Pair::new("stale-in");
    for (pod, node) in POD.into_iter().zip(NODE) {
        let server = listen(&pair.pod, pod);
        half_seen(&pair, node, pod, &pair.node);
        assert!(waits(&server));
        let installed = pair.enrol();
        let again = pair.in_node(move || connect(node, pod, DEADLINE));
        assert!(!waits(&server), "{node} to {pod} went past the capture");
        assert!(again.is_ok() && waits(&installed.listeners().plaintext), "{again:?}");
        pair.in_pod(|| withdraw().expect("withdrawn"));
    }
}

#[test]
fn what_is_open_lives_on() {
    use std::io::{Read, Write};
    let pair = Pair::new("open");
    let (pod, node) = (POD[0], NODE[0]);
    let server = listen(&pair.node, node);
    pair.in_pod(|| nftables::release().expect("rules that capture nothing"));
    let mut client = pair.in_pod(move || connect(pod, node, DEADLINE).expect("nothing is captured"));
    let (mut served, _) = server.accept().expect("connected");
    let _installed = pair.enrol();
    client.write_all(b"ping").expect("sent");
    let mut bytes = [0; 4];
    served.set_read_timeout(Some(DEADLINE)).expect("an option");
    served.read_exact(&mut bytes).expect("it arrives");
    served.write_all(&bytes).expect("sent");
    client.set_read_timeout(Some(DEADLINE)).expect("an option");
    client.read_exact(&mut bytes).expect("it comes back");
}

#[test]
fn what_is_not_tracked_is_not_let_through() {
    let pair = Pair::new("untracked");
    for (pod, node) in POD.into_iter().zip(NODE) {
        let outside = listen(&pair.node, node);
        let inside = listen(&pair.pod, pod);
        let _installed = pair.enrol();
        pair.in_pod(deeds::track_nothing);
        let left = pair.in_pod(move || connect(pod, node, BLOCKED));
        assert!(left.is_err() && !waits(&outside), "{pod} to {node} went past the capture");
        let arrived = pair.in_node(move || connect(node, pod, BLOCKED));
        assert!(arrived.is_err() && !waits(&inside), "{node} to {pod} went past the capture");
        // A permissive pod, and one that has left, go without.
        pair.in_pod(|| nftables::install(Uncaptured::Passes).expect("permissive"));
        pair.in_pod(move || connect(pod, node, DEADLINE)).expect("permissive");
        pair.in_node(move || connect(node, pod, DEADLINE)).expect("permissive");
        pair.in_pod(|| nftables::release().expect("released"));
        pair.in_pod(move || connect(pod, node, DEADLINE)).expect("released");
        pair.in_node(move || connect(node, pod, DEADLINE)).expect("released");
        pair.in_pod(|| {
            deeds::remove_foreign();
            nftables::remove(TABLE).expect("removed");
        });
    }
}
