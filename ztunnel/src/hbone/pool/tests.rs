use std::cell::Cell;
use std::time::{Duration, SystemTime};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use ztunnel_model::IdentitySet;

use super::*;
use crate::hbone::HANDSHAKE_DEADLINE;
use crate::hbone::server::{self, Incoming, Signals};
use crate::io::share::Account;
use crate::tls::test_ca::{Leaf, TestCa, identity};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";

/// A server that answers every CONNECT, and a pool whose dials are counted.
struct Bed {
    pool: Rc<Pool<&'static str>>,
    key: Key,
    ca: TestCa,
    svid: Rc<tls::svid::Svid>,
    bank: Rc<tls::svid::Svid>,
    dials: Rc<Cell<usize>>,
}

fn settings(max_streams: usize) -> Settings {
    Settings {
        stream_window: 1 << 20,
        connection_window: 1 << 20,
        frame_size: 1 << 16,
        max_streams,
        unused_release: Duration::from_secs(60),
    }
}

impl Bed {
    async fn new(max_streams: usize, client_not_after: SystemTime) -> Self {
        let ca = TestCa::new("root");
        let leaf = Leaf { not_after: client_not_after, ..Leaf::of(&identity(CART)) };
        let (svid, bank) = (Rc::new(ca.svid_trusting(&leaf, &[])), Rc::new(ca.svid(BANK)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let answering = bank.clone();
        tokio::task::spawn_local(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let bank = answering.clone();
                tokio::task::spawn_local(async move {
                    let Ok((tls, _)) = tls::server::accept(&bank, tcp, HANDSHAKE_DEADLINE).await else {
                        return;
                    };
                    let answer = |incoming: Incoming| async move {
                        drop(incoming.accept(http::HeaderMap::new()));
                    };
                    let _ = server::serve(tls, &settings(100), Signals::default(), answer).await;
                });
            }
        });
        let hop = Hop { addr, expected: IdentitySet::one(identity(BANK)) };
        Self {
            pool: Pool::new(settings(max_streams), Account::new(|_| {}), CancellationToken::new()),
            key: Key { hop, source: addr.ip() },
            ca,
            svid,
            bank,
            dials: Rc::default(),
        }
    }

    async fn stream(&self) -> Result<StreamHold, Rc<Error<&'static str>>> {
        let dial = || {
            self.dials.set(self.dials.get() + 1);
            let (svid, hop) = (self.svid.clone(), self.key.hop.clone());
            async move {
                let tcp = TcpStream::connect(hop.addr).await.map_err(|_| "no connection")?;
                let connected = tls::client::connect(&svid, &hop.expected, tcp, HANDSHAKE_DEADLINE).await;
                Ok(connected.map_err(|_| "no handshake")?.0)
            }
        };
        self.pool.stream(&self.key, dial).await
    }
}

fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

fn local<F: Future<Output = ()>>(test: F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn all_who_wait_share_one_dial() {
    local(async {
        let bed = Bed::new(100, later()).await;
        let held = futures::future::try_join_all((0..100).map(|_| bed.stream())).await;
        assert_eq!(held.expect("all find a place").len(), 100);
        assert_eq!((bed.dials.get(), bed.pool.len()), (1, 1));
    });
}

#[test]
fn a_full_tunnel_is_joined_by_another_and_an_empty_place_is_used_again() {
    local(async {
        let bed = Bed::new(3, later()).await;
        let held = futures::future::try_join_all((0..10).map(|_| bed.stream())).await.expect("places");
        assert_eq!((bed.dials.get(), bed.pool.len()), (4, 4), "three streams in each");
        drop(held);
        let again = futures::future::try_join_all((0..10).map(|_| bed.stream())).await.expect("places");
        assert_eq!(bed.dials.get(), 4, "no dial for places that are free");
        drop(again);
    });
}

#[test]
fn a_failed_dial_fails_all_who_wait_and_the_next_one_tries_again() {
    local(async {
        let mut bed = Bed::new(100, later()).await;
        let good = std::mem::replace(&mut bed.key.hop.expected, IdentitySet::one(identity(CART)));
        let failed = futures::future::join_all((0..20).map(|_| bed.stream())).await;
        for outcome in failed {
            let error = outcome.err().expect("the server is somebody else");
            assert!(matches!(*error, Error::Dial("no handshake")), "{error:?}");
        }
        assert_eq!((bed.dials.get(), bed.pool.len()), (1, 0));
        assert!(bed.stream().await.is_err());
        assert_eq!(bed.dials.get(), 2, "a failure is not remembered");
        bed.key.hop.expected = good;
        assert!(bed.stream().await.is_ok());
    });
}

#[test]
fn a_caller_that_gives_up_strands_nobody() {
    local(async {
        let bed = Bed::new(100, later()).await;
        let (first, second) = (bed.stream(), bed.stream());
        let mut first = Box::pin(first);
        // Polled once, so that the dial is its own.
        assert!(futures::poll!(&mut first).is_pending());
        drop(first);
        assert!(second.await.is_ok());
        assert_eq!(bed.dials.get(), 1);
    });
}

/// A stream for which something holds; others are asked for until then.
async fn once(bed: &Bed, holds: impl Fn(&StreamHold) -> bool) -> StreamHold {
    let asked = async {
        loop {
            let stream = bed.stream().await.expect("room");
            if holds(&stream) {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await.expect("it holds within 10 s")
}

#[test]
fn nobody_joins_a_tunnel_that_carries_bulk() {
    local(async {
        let bed = Bed::new(100, later()).await;
        let bulk = bed.stream().await.expect("a tunnel");
        let early = bed.stream().await.expect("room in it");
        assert!(early.shares_with(&bulk));
        let beside = once(&bed, |stream| {
            bulk.moved(1 << 30);
            !stream.shares_with(&bulk)
        });
        let beside = beside.await;
        assert!(bed.stream().await.expect("room").shares_with(&beside));
        assert_eq!(bed.dials.get(), 2);
        // Once it is over, tunnels are filled one after the other again.
        once(&bed, |stream| stream.shares_with(&bulk)).await;
    });
}

#[test]
fn where_no_other_tunnel_can_be_had_a_stream_goes_beside_bulk() {
    local(async {
        let bed = Bed::new(100, later()).await;
        let bulk = bed.stream().await.expect("a tunnel");
        let refused = Cell::new(0);
        let asked = async {
            while refused.get() == 0 {
                bulk.moved(1 << 30);
                tokio::time::sleep(Duration::from_millis(10)).await;
                // One that hangs, and then one that fails.
                let refuse = || {
                    refused.set(refused.get() + 1);
                    let hangs = refused.get() == 1;
                    async move {
                        if hangs {
                            std::future::pending::<()>().await;
                        }
                        Err("refused")
                    }
                };
                let stream = bed.pool.stream(&bed.key, refuse).await;
                assert!(stream.expect("room beside it").shares_with(&bulk));
            }
        };
        tokio::time::timeout(Duration::from_secs(10), asked).await.expect("it is bulk within 10 s");
    });
}

#[test]
fn what_a_burst_needed_goes_before_the_last_tunnel() {
    local(async {
        let bed = Bed::new(1, later()).await;
        let holds = [bed.stream().await.expect("a tunnel"), bed.stream().await.expect("another")];
        bed.pool.review();
        assert_eq!(bed.pool.len(), 2, "in use");
        drop(holds);
        bed.pool.review();
        assert_eq!(bed.pool.len(), 2, "just used");
        tokio::time::pause();
        tokio::time::advance(SURPLUS).await;
        bed.pool.review();
        assert_eq!(bed.pool.len(), 1);
        tokio::time::advance(bed.pool.settings.unused_release).await;
        bed.pool.review();
        assert_eq!(bed.pool.len(), 0);
    });
}

#[test]
fn a_tunnel_takes_no_stream_beyond_its_certificate() {
    local(async {
        // Certificates are written in whole seconds.
        let mut bed = Bed::new(100, SystemTime::now() + Duration::from_secs(3)).await;
        let held = bed.stream().await.expect("it is valid now");
        assert!(bed.stream().await.is_ok());
        assert_eq!(bed.dials.get(), 1);
        let over = async {
            while held.is_valid() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), over).await.expect("it ends");
        bed.svid = Rc::new(bed.ca.svid(CART));
        let renewed = bed.stream().await.expect("with a new certificate");
        assert!(renewed.is_valid());
        assert_eq!(bed.dials.get(), 2, "the old tunnel was not used");
    });
}

#[tokio::test]
async fn a_tunnel_whose_peer_is_revoked_is_dropped_and_says_why() {
    LocalSet::new()
        .run_until(async {
            let bed = Bed::new(2, later()).await;
            let hold = bed.stream().await.expect("a tunnel");
            let peer = bed.bank.serial();
            assert!(hold.revoked().is_none());
            bed.ca.1.deliver(&bed.ca.crl(&[&peer])).expect("a CRL");
            let told = async {
                while hold.revoked().is_none() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(2), told).await.expect("soon");
            let error = hold.connect("10.0.0.1:80", http::HeaderMap::new()).await.err().expect("it is gone");
            assert!(matches!(error, client::Error::Revoked(_)), "{error}");
            assert!(bed.stream().await.is_err(), "no other is made with a revoked peer");
        })
        .await;
}

#[tokio::test]
async fn a_server_cuts_the_tunnel_of_a_revoked_client_at_once() {
    LocalSet::new()
        .run_until(async {
            let bed = Bed::new(2, later()).await;
            let connected =
                bed.stream().await.expect("a tunnel").connect("10.0.0.1:80", http::HeaderMap::new());
            let connected = connected.await.expect("answered");
            bed.ca.1.deliver(&bed.ca.crl(&[&bed.svid.serial()])).expect("a CRL");
            // Only the server judges the client's certificate.
            let closed = async {
                while !bed.pool.entries.borrow()[&bed.key].tunnels[0].is_closed() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(2), closed).await.expect("soon");
            assert!(connected.hold.revoked().is_none());
        })
        .await;
}
