//! What telemetry costs a connection and a scrape: `cargo bench -p benches --bench metrics`. Nobody takes the log lines
//! here, so they are not in it.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use benches::mesh;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ztunnel::telemetry::Metrics;
use ztunnel::telemetry::events::{Connection, Endpoint, Facts, Reporter, Security, Trace};

/// Each with labels of its own; below what one proxy keeps.
const SETS: [usize; 2] = [100, 5_000];

/// A connection between neighbours in the list of services.
fn facts(index: usize, services: usize) -> Facts {
    let [source, destination] =
        [index, (index + 1) % services].map(|index| Arc::new(mesh::workload(index, services, 1)));
    let port = |address, port| SocketAddr::new(address, port);
    Facts {
        reporter: Reporter::Source,
        src: port(source.addresses[0], 40_000),
        dst: port(destination.addresses[0], 15008),
        hbone_addr: Some(port(destination.addresses[0], 8080).to_string()),
        source_principal: Some(source.identity.clone()),
        destination_principal: Some(destination.identity.clone()),
        source: Endpoint::Workload(source),
        destination: Endpoint::Workload(destination),
        destination_service: Some(Arc::new(mesh::service((index + 1) % services))),
        security: Security::MutualTls,
        trace: Some(Trace::random()),
    }
}

/// With a connection of each set of labels opened and ended.
fn metrics(all: &[Facts]) -> Arc<Metrics> {
    let metrics = Arc::new(Metrics::new("bench"));
    all.iter().for_each(|facts| Connection::open(&metrics, facts.clone()).finish(Ok(())));
    metrics
}

fn connections(criterion: &mut Criterion) {
    for sets in SETS {
        let all: Vec<Facts> = (0..sets).map(|index| facts(index, sets)).collect();
        let metrics = metrics(&all);
        let mut next = all.iter().cycle();
        criterion.bench_function(
            &format!("open and finish a connection, {sets} sets of labels"),
            |bencher| {
                bencher.iter_batched(
                    || next.next().expect("it has no end").clone(),
                    |facts| Connection::open(&metrics, facts).finish(Ok(())),
                    criterion::BatchSize::SmallInput,
                );
            },
        );
    }
}

fn bytes(criterion: &mut Criterion) {
    let metrics = Arc::new(Metrics::new("bench"));
    let connection = Connection::open(&metrics, facts(0, 2));
    criterion.bench_function("count bytes of both directions", |bencher| {
        bencher.iter(|| {
            connection.add_received(black_box(1_000));
            connection.add_sent(black_box(1_000));
        });
    });
    connection.finish(Ok(()));
}

fn scrapes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scrape");
    group.sample_size(10);
    for sets in SETS {
        let all: Vec<Facts> = (0..sets).map(|index| facts(index, sets)).collect();
        let metrics = metrics(&all);
        let text = metrics.render();
        let opened = text.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total{"));
        assert_eq!(opened.count(), sets, "each has labels of its own");
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(format!("of {sets} sets of labels"), |bencher| {
            bencher.iter(|| black_box(metrics.render()).len());
        });
    }
    group.finish();
}

criterion_group!(benches, connections, bytes, scrapes);
criterion_main!(benches);
