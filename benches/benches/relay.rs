//! The relay alone, without tunnels: `cargo bench -p benches --bench relay`. Between sockets it stands beside one
//! connection without it; between ends in memory nothing but the relay is left.

use std::cell::Cell;
use std::future::pending;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::TcpStream;

use benches::sockets;
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ztunnel::io::buffer;
use ztunnel::relay::{Broken, Receive, Transmit, relay};

const MESSAGES: [usize; 2] = [1, 1024];
const BULK: usize = 16 * 1024 * 1024;
const PIECES: usize = 1000;
const PIECE: &[u8] = &[7; 1024];

/// Both ends of a connection, or of one that a relay on a thread of its own carries on to another. All threads end with the
/// ends.
fn ends(relay: bool) -> (TcpStream, TcpStream) {
    if !relay {
        return sockets::pair();
    }
    let ((client, near), (far, server)) = (sockets::pair(), sockets::pair());
    std::thread::spawn(move || sockets::runtime().block_on(sockets::relayed(near, far)));
    (client, server)
}

fn messages(criterion: &mut Criterion) {
    for length in MESSAGES {
        let mut group = criterion.benchmark_group(format!("there and back, {length} bytes"));
        for (name, relay) in [("direct", false), ("relay", true)] {
            let (mut client, server) = ends(relay);
            std::thread::spawn(move || sockets::echo(server, length));
            let mut message = vec![7; length];
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    client.write_all(&message).expect("it is read");
                    client.read_exact(&mut message).expect("it comes back");
                });
            });
        }
        group.finish();
    }
}

fn bulk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bulk");
    group.throughput(Throughput::Bytes(BULK as u64)).sample_size(20);
    for (name, relay) in [("direct", false), ("relay", true)] {
        let (mut client, server) = ends(relay);
        std::thread::spawn(move || confirm(server));
        let chunk = vec![7; 256 * 1024];
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for _ in 0..BULK / chunk.len() {
                    client.write_all(&chunk).expect("it is read");
                }
                client.read_exact(&mut [0]).expect("it all arrived");
            });
        });
    }
    group.finish();
}

/// Answers each bulk with a byte, until there is no other.
fn confirm(mut stream: TcpStream) {
    let mut buffer = vec![0; 256 * 1024];
    let mut got = 0;
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        got += count;
        if got == BULK {
            stream.write_all(&[1]).expect("whoever sent waits for it");
            got = 0;
        }
    }
}

/// A side that sends so many pieces.
struct Source(usize);

impl Receive for Source {
    async fn receive(&mut self, to: &impl Transmit) -> Result<Option<buffer::Read>, Broken> {
        let Some(left) = self.0.checked_sub(1) else { return Ok(None) };
        self.0 = left;
        let taken = to.offer(PIECE);
        Ok(Some(buffer::Read { taken, rest: Bytes::from_static(&PIECE[taken..]) }))
    }

    fn taken(&mut self, count: usize) {
        black_box(count);
    }
}

/// A side that takes everything, at once as a socket does or kept as HTTP/2 keeps it.
struct Sink {
    at_once: bool,
    got: Cell<usize>,
}

impl Transmit for Sink {
    fn offer(&self, bytes: &[u8]) -> usize {
        let count = if self.at_once { bytes.len() } else { 0 };
        self.got.set(self.got.get() + count);
        count
    }

    async fn transmit(&self, bytes: Bytes) -> Result<(), Broken> {
        self.got.set(self.got.get() + bytes.len());
        Ok(())
    }

    async fn finish(&self) -> Result<(), Broken> {
        assert!([0, PIECES * PIECE.len()].contains(&self.got.get()), "all or, on the way back, nothing");
        Ok(())
    }

    async fn reset(&self) -> Broken {
        pending().await
    }

    fn abort(&self) {}
}

fn in_memory(criterion: &mut Criterion) {
    let runtime = sockets::runtime();
    let mut group = criterion.benchmark_group(format!("{PIECES} pieces in memory"));
    group.throughput(Throughput::Elements(PIECES as u64));
    for (name, at_once) in [("taken at once", true), ("kept", false)] {
        let sink = || Sink { at_once, got: Cell::new(0) };
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let (app, far) = ((Source(PIECES), sink()), (Source(0), sink()));
                runtime.block_on(relay(app, far, |_| {}, |_| {})).expect("clean ends");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, messages, bulk, in_memory);
criterion_main!(benches);
