//! What it costs to find a place in a tunnel that is open: `cargo bench -p benches --bench pool`.

use std::future::Future;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use benches::peers::Peers;
use benches::sockets;
use criterion::{Criterion, criterion_group, criterion_main};
use futures::FutureExt;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use ztunnel::hbone::Settings;
use ztunnel::hbone::client::StreamHold;
use ztunnel::hbone::pool::{Key, Pool};
use ztunnel::hbone::server::{self, Signals};
use ztunnel::io::share::Account;
use ztunnel::tls::Stream;

const MAX_STREAMS: usize = 100;
const SETTINGS: Settings = Settings {
    stream_window: 1 << 20,
    connection_window: 1 << 20,
    frame_size: 1 << 16,
    max_streams: MAX_STREAMS,
    unused_release: Duration::from_secs(3600),
};

/// A pool whose tunnels lead to a server in this process.
struct Bed {
    pool: Rc<Pool<String>>,
    peers: Rc<Peers>,
}

impl Bed {
    fn new() -> Self {
        let pool = Pool::new(SETTINGS, Account::new(|_| {}), CancellationToken::new());
        Self { pool, peers: Rc::new(Peers::new()) }
    }

    /// Of a peer; each index is another.
    fn key(&self, index: usize) -> Key {
        let ip = IpAddr::from(Ipv4Addr::from(0x0b00_0000 + index as u32));
        Key { hop: self.peers.hop(SocketAddr::new(ip, 15008)), source: [127, 0, 0, 1].into() }
    }

    fn dial(&self) -> impl Future<Output = Result<Stream, String>> + use<> {
        let peers = self.peers.clone();
        async move {
            let (client, server) = peers.connected().await;
            tokio::task::spawn_local(async move {
                let _ = server::serve(server, &SETTINGS, Signals::default(), |_| async {}).await;
            });
            Ok(client)
        }
    }

    /// Holds so many places.
    async fn hold(&self, key: &Key, count: usize) -> Vec<StreamHold> {
        let mut held = Vec::new();
        for _ in 0..count {
            held.push(self.pool.stream(key, || self.dial()).await.unwrap_or_else(|error| panic!("{error}")));
        }
        held
    }

    /// In a tunnel that is open: nothing is waited for.
    fn place(&self, key: &Key) -> StreamHold {
        let no_dial = || async { Err("no tunnel was open".to_owned()) };
        let place = self.pool.stream(key, no_dial).now_or_never().expect("there is room");
        place.unwrap_or_else(|error| panic!("{error}"))
    }
}

fn among_peers(criterion: &mut Criterion) {
    for peers in [1, 200] {
        let (runtime, local, bed) = (sockets::runtime(), LocalSet::new(), Bed::new());
        let keys: Vec<Key> = (0..peers).map(|index| bed.key(index)).collect();
        local.block_on(&runtime, async {
            for key in &keys {
                bed.hold(key, 1).await;
            }
        });
        let mut keys = keys.iter().cycle();
        criterion.bench_function(
            &format!("place in one of {peers} tunnels, each to another peer"),
            |bencher| {
                bencher.iter(|| black_box(bed.place(keys.next().expect("it has no end"))));
            },
        );
    }
}

fn behind_full_ones(criterion: &mut Criterion) {
    for full in [1, 10] {
        let (runtime, local, bed) = (sockets::runtime(), LocalSet::new(), Bed::new());
        let key = bed.key(0);
        let held = local.block_on(&runtime, bed.hold(&key, full * MAX_STREAMS + 1));
        criterion.bench_function(&format!("place behind {full} full tunnels to the same peer"), |bencher| {
            bencher.iter(|| black_box(bed.place(&key)));
        });
        drop(held);
    }
}

criterion_group!(benches, among_peers, behind_full_ones);
criterion_main!(benches);
