use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use nix::sys::socket::{getsockopt, sockopt};

use super::fixture::fresh_netns;
use super::*;
use crate::sockets;

fn enrol(namespace: Ident) -> Installed {
    let listeners = Listeners::bind().expect("listeners");
    Installed::install(Ports::prove(listeners, namespace).expect("live"), Uncaptured::Dropped).expect("rules")
}

#[test]
fn withdrawing_leaves_the_namespace_as_it_was() {
    let netns = fresh_netns();
    let ident = netns.ident();
    netns
        .run_blocking(move || {
            let before = dump().expect("dump");
            let installed = enrol(ident);
            assert_ne!(dump().expect("dump"), before);
            withdraw().expect("withdraw");
            drop(installed);
            assert_eq!(dump().expect("dump"), before);
            withdraw().expect("withdraw again");
            assert_eq!(dump().expect("dump"), before);
        })
        .expect("namespace");
}

#[test]
fn installing_again_changes_nothing() {
    let netns = fresh_netns();
    let ident = netns.ident();
    netns
        .run_blocking(move || {
            let installed = enrol(ident);
            let shape = |bodies: Vec<Vec<u8>>| bodies.iter().map(Vec::len).collect::<Vec<_>>();
            let once = shape(dump().expect("dump"));
            let again = Installed::install(installed.ports, Uncaptured::Dropped).expect("rules again");
            assert_eq!(shape(dump().expect("dump")), once);
            drop(again);
            assert_eq!(shape(dump().expect("dump")), once, "rules stay when the listeners go");
        })
        .expect("namespace");
}

#[test]
fn other_tables_are_left_alone() {
    let netns = fresh_netns();
    let ident = netns.ident();
    netns
        .run_blocking(move || {
            let theirs = super::nftables::add_foreign_table();
            theirs.expect("foreign table");
            let before = dump().expect("dump");
            let _installed = enrol(ident);
            withdraw().expect("withdraw");
            assert_eq!(dump().expect("dump"), before);
        })
        .expect("namespace");
}

#[test]
fn another_programs_equal_routing_is_left_alone() {
    let netns = fresh_netns();
    let ident = netns.ident();
    netns
        .run_blocking(move || {
            super::routing::add_foreign().expect("foreign routing");
            let before = dump().expect("dump");
            let _installed = enrol(ident);
            withdraw().expect("withdraw");
            assert_eq!(dump().expect("dump"), before);
        })
        .expect("namespace");
}

#[test]
fn sockets_have_their_options() {
    fresh_netns()
        .run_blocking(|| {
            let listeners = Listeners::bind().expect("listeners");
            for (listener, port) in listeners.each().into_iter().zip([15001, 15006, 15008]) {
                let socket = SockRef::from(listener);
                let expected: SocketAddr = (std::net::Ipv6Addr::UNSPECIFIED, port).into();
                assert_eq!(listener.local_addr().expect("address"), expected);
                assert_eq!(socket.mark().expect("mark"), 0x539);
                assert!(!socket.only_v6().expect("v6 only"));
                assert!(socket.ip_transparent_v4().expect("transparent"));
                assert!(socket.ip_transparent_v6().expect("transparent"));
                assert!(socket.reuse_address().expect("reuse address"));
                assert!(!socket.reuse_port().expect("reuse port"));
                assert!(socket.nonblocking().expect("non-blocking"));
                assert!(!socket.keepalive().expect("keepalive"));
            }
            for socket in sockets::stock(3).expect("stock") {
                check_dialing_socket(&socket);
            }
        })
        .expect("namespace");
}

fn check_dialing_socket(socket: &OwnedFd) {
    assert!(getsockopt(socket, sockopt::IpBindAddressNoPort).expect("bind without port"));
    let socket = SockRef::from(socket);
    assert_eq!(socket.mark().expect("mark"), 0x539);
    assert!(socket.ip_transparent_v4().expect("transparent"));
    assert!(socket.ip_transparent_v6().expect("transparent"));
    assert!(socket.freebind_v4().expect("freebind"));
    assert!(socket.freebind_v6().expect("freebind"));
    assert!(socket.tcp_nodelay().expect("nodelay"));
    assert!(socket.nonblocking().expect("non-blocking"));
    assert!(!socket.only_v6().expect("v6 only"));
}

#[test]
fn a_taken_port_is_named() {
    fresh_netns()
        .run_blocking(|| {
            let _taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PLAINTEXT_PORT)).expect("bind");
            let error = Listeners::bind().expect_err("port taken");
            assert!(matches!(error, sockets::Error::PortInUse { port: PLAINTEXT_PORT }), "{error}");
        })
        .expect("namespace");
}

#[test]
fn only_live_listeners_of_this_namespace_are_ports() {
    let (netns, other) = (fresh_netns(), fresh_netns().ident());
    let ident = netns.ident();
    netns
        .run_blocking(move || {
            let swapped = Listeners::bind().expect("listeners");
            let swapped =
                Listeners { outbound: swapped.hbone, plaintext: swapped.plaintext, hbone: swapped.outbound };
            assert!(matches!(Ports::prove(swapped, ident), Err(NotLive::WrongPort { port: 15001, .. })));

            let elsewhere = Ports::prove(Listeners::bind().expect("listeners"), other);
            assert!(matches!(elsewhere, Err(NotLive::WrongNamespace { .. })));

            let mut unmarked = Listeners::bind().expect("listeners");
            SockRef::from(&unmarked.hbone).set_mark(1).expect("mark");
            unmarked = match Ports::prove(unmarked, ident) {
                Err(NotLive::WrongMark { port: HBONE_PORT, found: 1 }) => {
                    Listeners::bind().expect("listeners")
                }
                outcome => panic!("{outcome:?}"),
            };

            let mut stock = sockets::stock(1).expect("stock");
            unmarked.plaintext = stock.remove(0).into();
            let dead = Ports::prove(unmarked, ident);
            assert!(matches!(dead, Err(NotLive::NotListening { port: PLAINTEXT_PORT })));
        })
        .expect("namespace");
}
