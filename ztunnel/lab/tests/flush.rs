//! The rules of a pod are deleted while it talks: less than a second later it opens no connection in plaintext any more, each
//! time. One that it opened until then stays as it is, also if its SYN is answered only after that.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ztunnel_lab::capture::Capture;
use ztunnel_lab::{Lab, Mesh, namespace, traffic, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);
const BOUND: Duration = Duration::from_secs(1);
/// So few, and so far apart, that nobody takes them for somebody who undoes every repair.
const FLUSHES: usize = 5;
const APART: Duration = Duration::from_secs(2);
const PORT: u16 = 7000;
const MARKER: &[u8] = b"in plaintext for a moment at most";

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn less_than_a_second_after_its_rules_were_deleted_a_pod_opens_nothing_in_plaintext() {
    let lab = Lab::for_test(&Mesh::new().pod("node1", "default/client").pod("node2", "default/server"), &[]);
    let (client, server) = (lab.pod("client"), lab.pod("server"));
    traffic::serve(server, PORT, traffic::echo).expect("a free port");
    let to = SocketAddr::new(server.ipv4(), PORT);
    let passes = || traffic::request(client, to, MARKER).is_ok_and(|said| said == MARKER);
    assert!(wait_until(DEADLINE, passes));
    let capture =
        Capture::start(&lab.underlay(), client.ipv4(), server.ipv4(), MARKER).expect("it can be watched");
    let (ends, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let flushes = std::thread::scope(|scope| {
        // Also when an assertion fails.
        let _end = End(&ends);
        let ask = || {
            while !ends.load(Ordering::Relaxed) {
                // One that is under way while the rules go may fail.
                asked.fetch_add(usize::from(passes()), Ordering::Relaxed);
            }
        };
        (0..4).for_each(|_| drop(scope.spawn(ask)));
        let flush = |number: usize| {
            let at = Instant::now();
            namespace::run(client.namespace(), redirect::rules::withdraw)
                .expect("the namespace is there")
                .expect("root may");
            let repaired =
                || lab.node("node1").agent_log().matches("what=\"the table is gone\"").count() >= number;
            assert!(wait_until(DEADLINE, repaired), "{}", lab.node("node1").agent_log());
            let (back, before) = (Instant::now(), asked.load(Ordering::Relaxed));
            // So long that what is late would be seen.
            let goes_on = || at.elapsed() > APART && asked.load(Ordering::Relaxed) > before + 20;
            assert!(wait_until(DEADLINE, goes_on), "requests pass");
            (at, back)
        };
        (1..=FLUSHES).map(flush).collect::<Vec<_>>()
    });
    let seen = capture.finish().expect("a capture that ends well");
    let longest = flushes.iter().map(|(at, back)| *back - *at).max().unwrap_or_default();
    println!(
        "{} requests, {} packets in plaintext, rules back after {longest:?} at most",
        asked.into_inner(),
        seen.with_marker
    );
    assert!(seen.ports.contains(&redirect::HBONE_PORT), "{seen:?}");
    for opened in &seen.opened {
        let cause = flushes.iter().rev().find(|(at, _)| at <= opened);
        let (at, _) = cause.unwrap_or_else(|| panic!("plaintext before any rule was deleted: {seen:?}"));
        assert!(
            *opened - *at < BOUND,
            "opened in plaintext {:?} after the rules were deleted",
            *opened - *at
        );
    }
}
