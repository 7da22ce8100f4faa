use std::cell::Cell;
use std::future::pending;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use futures::poll;
use http::HeaderMap;
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, libc, sockopt_impl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use ztunnel_model::IdentitySet;

use super::*;
use crate::hbone::client::Tunnel;
use crate::hbone::server::{self, Incoming, Signals};
use crate::hbone::{HANDSHAKE_DEADLINE, Settings};
use crate::io::share::Account;
use crate::relay::{Receive, Transmit};
use crate::tls::test_ca::{TestCa, identity};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";
const DEADLINE: Duration = Duration::from_secs(10);
/// All together far from what the stream would send by itself, and from what one segment of loopback holds.
const FRAMES: usize = 16;
/// Longer than what HTTP/2 copies, so that it flushes behind each.
const FRAME: &[u8] = &[7; 300];
const ALL: usize = FRAMES * FRAME.len();

sockopt_impl!(TcpInfo, GetOnly, libc::IPPROTO_TCP, libc::TCP_INFO, libc::tcp_info);

/// A socket whose writes can be told apart: without Nagle's algorithm each leaves as a segment at once.
struct Sender(OwnedFd);

impl Sender {
    fn new(tcp: &TcpStream) -> Self {
        tcp.set_nodelay(true).expect("an option");
        Self(tcp.as_fd().try_clone_to_owned().expect("a descriptor is free"))
    }

    /// Segments with data so far.
    fn writes(&self) -> u32 {
        getsockopt(&self.0, TcpInfo).expect("a TCP socket").tcpi_data_segs_out
    }
}

async fn pair() -> (tls::Stream, Sender, tls::Stream) {
    let ca = TestCa::new("root");
    let (cart, bank) = (ca.svid(CART), ca.svid(BANK));
    let expected = IdentitySet::one(identity(BANK));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let addr = listener.local_addr().expect("a bound listener has an address");
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let (near, far) = (near.expect("loopback connects"), far.expect("loopback accepts").0);
    let sender = Sender::new(&near);
    let (near, far) = tokio::join!(
        tls::client::connect(&cart, &expected, near, HANDSHAKE_DEADLINE),
        tls::server::accept(&bank, far, HANDSHAKE_DEADLINE)
    );
    (near.expect("accepted").0, sender, far.expect("accepted").0)
}

#[tokio::test]
async fn what_is_written_in_a_turn_leaves_at_its_end_in_one_write() {
    let (near, sender, mut far) = pair().await;
    let (mut io, flusher) = gather(near);
    let before = sender.writes();
    let turn = async {
        for _ in 0..FRAMES {
            io.write_all(FRAME).await.expect("there is room");
            io.flush().await.expect("it is only noted");
        }
        assert_eq!(sender.writes(), before, "nothing leaves within the turn");
        pending::<()>().await;
    };
    let mut turns = pin!(flusher.around(turn));
    assert!(poll!(&mut turns).is_pending());
    assert_eq!(sender.writes() - before, 1);
    let mut got = [0; ALL];
    tokio::time::timeout(DEADLINE, far.read_exact(&mut got)).await.expect("in time").expect("all of it");
    assert_eq!(got, [FRAME[0]; ALL]);
}

fn settings() -> Settings {
    Settings {
        stream_window: 1 << 20,
        connection_window: 1 << 20,
        frame_size: 1 << 16,
        max_streams: FRAMES,
        unused_release: Duration::from_secs(60),
    }
}

/// Serves a tunnel whose streams are read to their end, and tells when all frames were.
async fn read_all(tls: tls::Stream, all: Rc<Notify>) {
    let left = Rc::new(Cell::new(ALL));
    let read = |incoming: Incoming| {
        let (left, all) = (left.clone(), all.clone());
        async move {
            let (mut receive, transmit) = incoming.accept(HeaderMap::new()).expect("it is open").halves();
            while let Ok(Some(read)) = receive.receive(&transmit).await {
                left.set(left.get() - read.rest.len());
                if left.get() == 0 {
                    all.notify_one();
                }
            }
        }
    };
    let _ = server::serve(tls, &settings(), Signals::default(), read).await;
}

#[tokio::test]
async fn what_many_streams_send_at_once_leaves_their_tunnel_in_one_write() {
    LocalSet::new()
        .run_until(async {
            let (near, sender, far) = pair().await;
            let all = Rc::new(Notify::new());
            tokio::task::spawn_local(read_all(far, all.clone()));
            let account = Account::new(|_| {});
            let tunnel = Tunnel::open(near, &settings(), &account, CancellationToken::new()).await;
            let tunnel = tunnel.expect("both speak HTTP/2");
            let connects = (0..FRAMES).map(|_| tunnel.hold().connect("10.0.0.1:80", HeaderMap::new()));
            let streams = try_join_all(connects).await.expect("each is accepted");
            let before = sender.writes();
            let sent = streams.iter().map(|one| one.stream.transmit.transmit(Bytes::from_static(FRAME)));
            assert!(poll!(pin!(join_all(sent))).is_ready(), "HTTP/2 has room for all");
            tokio::time::timeout(DEADLINE, all.notified()).await.expect("they arrive in time");
            assert_eq!(sender.writes() - before, 1);
        })
        .await;
}
