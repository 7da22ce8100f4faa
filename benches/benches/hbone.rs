//! HBONE beside direct TCP, across two nodes of a lab, in one run: `cargo bench -p benches`. Compare the throughputs of
//! `direct` and `hbone` with each other; alone they say something about the machine only. Needs root.

use std::net::SocketAddr;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ztunnel_lab::bulk::{self, Direction, Until};
use ztunnel_lab::lab::Options;
use ztunnel_lab::{Lab, Spec, spec, traffic};

const BULK: u16 = 8082;
const ECHO: u16 = 8080;
const BYTES: u64 = 256 * 1024 * 1024;

fn hbone(criterion: &mut Criterion) {
    let spec = Spec::parse(spec::DEFAULT, "built-in").expect("the built-in lab is valid");
    let lab = Lab::up("bench", spec, Options::default()).unwrap_or_else(|error| panic!("{error}"));
    let pairs = [("direct", "legacy", "legacy-2"), ("hbone", "web", "bench")];
    for (_, _, server) in pairs {
        bulk::serve(lab.pod(server), BULK).expect("a free port");
        traffic::serve(lab.pod(server), ECHO, traffic::echo).expect("a free port");
    }
    for connections in [1, 8] {
        let mut group = criterion.benchmark_group(format!("bulk on {connections} connections"));
        group.throughput(Throughput::Bytes(BYTES)).sample_size(10).measurement_time(Duration::from_secs(10));
        for (name, client, server) in pairs {
            let to = SocketAddr::new(lab.pod(server).ipv4(), BULK);
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    bulk::transfer(lab.pod(client), to, connections, Direction::Up, Until::Bytes(BYTES))
                        .expect("a transfer")
                });
            });
        }
        group.finish();
    }
    let mut group = criterion.benchmark_group("new connection and request");
    // Each leaves a client port in TIME_WAIT for a minute; of 28,000, half can be found quickly.
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700));
    for (name, client, server) in pairs {
        let to = SocketAddr::new(lab.pod(server).ipv4(), ECHO);
        group.bench_function(name, |bencher| {
            bencher.iter(|| traffic::request(lab.pod(client), to, b"x").expect("a reply"));
        });
    }
    group.finish();
}

criterion_group!(benches, hbone);
criterion_main!(benches);
