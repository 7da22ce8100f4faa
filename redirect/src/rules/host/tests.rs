//! The kubelet's probes and the quarantine, between namespaces of a node, its pods and another node.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::*;
use crate::rules::Installed;
use crate::rules::fixture::{Named, Pair, setting, within};

const V4: &str = "10.77.0.2";
const V6: &str = "fd77::2";
const APP: u16 = 8080;
/// What does not get through within this time does not get through.
const PATIENCE: Duration = Duration::from_millis(300);

/// A captured pod behind whose listeners nobody accepts, and its app, which answers each connection.
fn captured(name: &str) -> (Pair, Installed) {
    let pair = Pair::new(name);
    let app = pair.in_pod(|| TcpListener::bind(("::", APP)).expect("a free port"));
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = app.accept() {
            let _ = stream.write_all(b"app");
        }
    });
    let installed = pair.enrol();
    (pair, installed)
}

fn members(pods: &[&str], quarantined: &[&str]) -> Members {
    let set = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
    Members { pods: set(pods), quarantined: set(quarantined) }
}

/// Whether the app itself answers: the proxy's listener takes connections too, but says nothing.
fn reaches(from: &Named, ip: &'static str) -> bool {
    within(from, move || answers(ip))
}

fn connects(from: &Named, ip: &'static str, port: u16) -> bool {
    let to = SocketAddr::new(ip.parse().expect("an address"), port);
    within(from, move || TcpStream::connect_timeout(&to, PATIENCE).is_ok())
}

fn answers(ip: &str) -> bool {
    let to = SocketAddr::new(ip.parse().expect("an address"), APP);
    let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).expect("an option");
    let mut word = [0; 3];
    stream.read_exact(&mut word).is_ok() && word == *b"app"
}

#[test]
fn probes_reach_the_app_and_nothing_else_does() {
    let (pair, _installed) = captured("probes");
    let other = pair.neighbour("other", &["10.77.1.2", "fd77:1::2"]);
    for ip in [V4, V6] {
        assert!(!reaches(&pair.node, ip), "{ip}: captured before there are host rules");
    }
    pair.in_node(|| install(0, &members(&[V4, V6], &[])).expect("host rules"));
    for filter in ["0", "1", "2"] {
        for namespace in [&pair.pod, &pair.node] {
            within(namespace, move || setting("net/ipv4/conf/all/rp_filter", filter));
        }
        for ip in [V4, V6] {
            assert!(reaches(&pair.node, ip), "{ip}: a probe of the node, rp_filter {filter}");
            assert!(connects(&other, ip, APP), "{ip}: the proxy's listener takes it");
            assert!(!reaches(&other, ip), "{ip}: another pod or node, forwarded");
        }
    }
    pair.in_node(|| install(4242, &members(&[V4, V6], &[])).expect("host rules"));
    for ip in [V4, V6] {
        assert!(!reaches(&pair.node, ip), "{ip}: a process of another user");
    }
    pair.in_node(|| install(0, &members(&[V4, V6], &[])).expect("host rules"));
    pair.in_node(|| replace(&members(&[], &[])).expect("replaced"));
    for ip in [V4, V6] {
        assert!(!reaches(&pair.node, ip), "{ip}: no longer a member");
    }
}

#[test]
fn a_forged_probe_opens_nothing() {
    let (pair, _installed) = captured("forged");
    let other = pair.neighbour("forger", &["10.77.1.2", "fd77:1::2"]);
    pair.in_node(|| install(0, &members(&[V4, V6], &[])).expect("host rules"));
    let opened = within(&other, || {
        [(V4, IpAddr::from(PROBE_V4)), (V6, PROBE_V6.into())].map(|(ip, from)| {
            let domain = if from.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
            match from {
                IpAddr::V4(_) => socket.set_freebind_v4(true).expect("an option"),
                IpAddr::V6(_) => socket.set_freebind_v6(true).expect("an option"),
            }
            socket.bind(&SocketAddr::new(from, 0).into()).expect("any address binds");
            let to = SocketAddr::new(ip.parse().expect("an address"), APP);
            socket.connect_timeout(&to.into(), PATIENCE).is_ok()
        })
    });
    assert_eq!(opened, [false, false]);
}

#[test]
fn the_quarantined_pass_nothing_in_either_direction() {
    let (pair, _installed) = captured("quarantine");
    let other = pair.neighbour("friend", &["10.77.1.2", "fd77:1::2"]);
    let _echo = within(&other, || TcpListener::bind(("::", APP)).expect("a free port"));
    let marked = |ip: &'static str| {
        pair.in_pod(move || {
            let domain = if ip.contains(':') { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 };
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
            socket.set_mark(crate::PACKET_MARK).expect("root may");
            let to = SocketAddr::new(ip.parse().expect("an address"), APP);
            socket.connect_timeout(&to.into(), PATIENCE).is_ok()
        })
    };
    let all = |expected: bool| {
        for (ip, far) in [(V4, "10.77.1.2"), (V6, "fd77:1::2")] {
            assert_eq!(connects(&other, ip, 15008), expected, "{ip} from another pod");
            assert_eq!(reaches(&pair.node, ip), expected, "{ip} from the node");
            assert_eq!(marked(far), expected, "to {far}, as the proxy would");
        }
    };
    pair.in_node(|| install(0, &members(&[V4, V6], &[])).expect("host rules"));
    all(true);
    pair.in_node(|| replace(&members(&[V4, V6], &[V4, V6])).expect("in"));
    all(false);
    pair.in_node(|| install(0, &members(&[V4, V6], &[V4, V6])).expect("made anew"));
    all(false);
    pair.in_node(|| replace(&members(&[V4, V6], &[])).expect("out"));
    all(true);
}

#[test]
fn the_table_says_what_it_was_told_and_goes_without_a_trace() {
    let pair = Pair::of_families("table", &["10.77.0.2"]);
    pair.in_node(|| {
        let before = crate::rules::dump().expect("dump");
        assert_eq!(super::members().expect("no table, no members"), Members::default());
        let many: Members = Members {
            pods: (0..2500u32).map(|n| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + n))).collect(),
            quarantined: ["fd00::1".parse().expect("an address")].into(),
        };
        install(0, &many).expect("installed");
        assert_eq!(super::members().expect("members"), many);
        let form = form(0).expect("a form");
        let found =
            Form::read(&mut Exchange::open(NETLINK_NETFILTER).expect("netlink"), TABLE).expect("read");
        assert_eq!(form.difference(&found), None);
        assert_ne!(super::form(7).expect("a form"), form, "the user is part of it");
        replace(&Members::default()).expect("replaced");
        assert_eq!(super::members().expect("members"), Members::default());
        withdraw().expect("withdrawn");
        assert_eq!(crate::rules::dump().expect("dump"), before);
        withdraw().expect("withdrawn again");
    });
}
