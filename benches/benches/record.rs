//! What sealing and opening TLS records cost, without a socket: `cargo bench -p benches --bench record`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use benches::peers::Peers;
use benches::sockets;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ztunnel::tls::Records;

/// Bytes of a record: a short message, and the most that one holds.
const LENGTHS: [usize; 2] = [100, 16 * 1024];
/// Opened at once, about: what one read of a busy socket brings.
const READ: usize = 128 * 1024;

/// Both ends of a connection.
fn ends() -> (Records, Records) {
    let (client, server) = sockets::runtime().block_on(Peers::new().connected());
    (client.into_records(), server.into_records())
}

fn seal(criterion: &mut Criterion) {
    let (mut client, _) = ends();
    let mut group = criterion.benchmark_group("seal a record");
    for length in LENGTHS {
        let plain = vec![7; length];
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(format!("of {length} bytes"), |bencher| {
            bencher.iter(|| client.seal(black_box(&plain), |wire| _ = black_box(wire)).expect("keys"));
        });
    }
    group.finish();
}

fn open(criterion: &mut Criterion) {
    let (mut client, mut server) = ends();
    let mut group = criterion.benchmark_group("open a record");
    for length in LENGTHS {
        let plain = vec![7; length];
        // Room for the type behind the last record's bytes: without, it would be opened in place and copied.
        let mut opened = vec![0; READ + 1];
        let most = (READ / length) as u64;
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(format!("of {length} bytes"), |bencher| {
            bencher.iter_custom(|count| {
                let mut took = Duration::ZERO;
                for start in (0..count).step_by(most as usize) {
                    let records = most.min(count - start);
                    for _ in 0..records {
                        let receive = |wire: &[u8]| assert_eq!(server.receive(wire), wire.len());
                        client.seal(&plain, receive).expect("keys");
                    }
                    let started = Instant::now();
                    let got = server.open(black_box(&mut opened)).expect("they were sealed for it");
                    took += started.elapsed();
                    assert_eq!(got, records as usize * length);
                }
                took
            });
        });
    }
    group.finish();
}

criterion_group!(benches, seal, open);
criterion_main!(benches);
