//! HBONE beside direct TCP, across two nodes of a lab, in one run: `cargo bench -p benches`. Compare `direct` and `hbone`
//! with each other, as the table at the end does; alone they say something about the machine only. Needs root.

mod summary;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use summary::{Row, Summary};
use ztunnel_lab::bulk::{self, Direction, Until};
use ztunnel_lab::lab::Options;
use ztunnel_lab::{Lab, Manifests, measure, traffic};

const BULK: u16 = 8082;
const ECHO: u16 = 8080;
const BYTES: u64 = 256 * 1024 * 1024;
const IDLE: usize = 1000;
/// Client and server of each way.
const DIRECT: [&str; 2] = ["legacy", "legacy-2"];
const HBONE: [&str; 2] = ["web", "bench"];

fn hbone(criterion: &mut Criterion) {
    let lab =
        Lab::up("bench", &Manifests::builtin(), Options::default()).unwrap_or_else(|error| panic!("{error}"));
    for [_, server] in [DIRECT, HBONE] {
        bulk::serve(&lab.pod(server).netns(), BULK).expect("a free port");
        traffic::serve(lab.pod(server), ECHO, traffic::echo).expect("a free port");
    }
    let mut summary = Summary::default();
    // Before the bulk, whose buffers would hide what an idle connection takes.
    let [client, server] = HBONE;
    summary.idle = Some(measure::idle_connection(&lab, client, server, ECHO, IDLE).expect("a measurement"));
    for connections in [1, 8] {
        bulk_on(&lab, criterion, &mut summary, connections);
    }
    new_connections(&lab, criterion, &mut summary);
    drop(lab);
    print!("{summary}");
}

fn bulk_on(lab: &Lab, criterion: &mut Criterion, summary: &mut Summary, connections: usize) {
    let title = format!("bulk on {connections} connections");
    let mut group = criterion.benchmark_group(&title);
    group.throughput(Throughput::Bytes(BYTES)).sample_size(10).measurement_time(Duration::from_secs(10));
    let row = compare(&mut group, |[client, server]| {
        let to = SocketAddr::new(lab.pod(server).ipv4(), BULK);
        bulk::transfer(&lab.pod(client).netns(), to, connections, Direction::Up, Until::Bytes(BYTES))
            .expect("a transfer");
    });
    group.finish();
    summary.rows.push(Row { title, bytes: Some(BYTES), ..row });
}

fn new_connections(lab: &Lab, criterion: &mut Criterion, summary: &mut Summary) {
    let title = "new connection and request";
    let mut group = criterion.benchmark_group(title);
    // Each leaves a client port in TIME_WAIT for a minute; of 28,000, half can be found quickly.
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700));
    let row = compare(&mut group, |[client, server]| {
        let to = SocketAddr::new(lab.pod(server).ipv4(), ECHO);
        traffic::request(lab.pod(client), to, b"x").expect("a reply");
    });
    group.finish();
    summary.rows.push(Row { title: title.to_owned(), ..row });
}

/// Measures both ways; what criterion times is what the row holds.
fn compare(group: &mut BenchmarkGroup<'_, WallTime>, work: impl Fn([&str; 2])) -> Row {
    let mut measure = |name: &str, ends| {
        let mut times = Vec::new();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                let whole = Instant::now();
                for _ in 0..count {
                    let started = Instant::now();
                    work(ends);
                    times.push(started.elapsed());
                }
                whole.elapsed()
            });
        });
        times
    };
    Row { direct: measure("direct", DIRECT), hbone: measure("hbone", HBONE), ..Row::default() }
}

criterion_group!(benches, hbone);
criterion_main!(benches);
