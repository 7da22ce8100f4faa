//! What the two routing decisions cost: `cargo bench -p benches --bench route`. What grows
//! with the mesh should be no more than what misses the processor's caches.

use std::hint::black_box;
use std::net::SocketAddr;

use benches::mesh;
use criterion::{Criterion, criterion_group, criterion_main};
use ztunnel::route::inbound;
use ztunnel::route::outbound::{Route, route};
use ztunnel::state::Snapshot;
use ztunnel_model::{Authority, LocalAddr, OrigDst};

const SIZES: [usize; 2] = [1_000, 100_000];
const PODS_PER_SERVICE: usize = 15;
/// Spreads what is asked for over the mesh.
const STEP: usize = 7_919;

fn loaded(workloads: usize) -> (Snapshot, usize) {
    let services = workloads / PODS_PER_SERVICE;
    (mesh::snapshot(workloads, services), services)
}

fn outbound(criterion: &mut Criterion) {
    for workloads in SIZES {
        let (snapshot, services) = loaded(workloads);
        let own = mesh::workload(0, services, 1);
        let mut ask = |name: &str, count, destination: &dyn Fn(usize) -> SocketAddr| {
            let mut index = 0;
            criterion.bench_function(&format!("route to a {name}, of {workloads}"), |bencher| {
                bencher.iter(|| {
                    index = (index + STEP) % count;
                    let found = route(&snapshot, &own, OrigDst::new(destination(index)), &[]);
                    assert!(matches!(black_box(found), Ok(Route::Hbone { .. })));
                });
            });
        };
        ask("VIP", services, &|index| (mesh::vip(index), 80).into());
        ask("pod address", workloads, &|index| (mesh::pod_address(index), 8080).into());
    }
}

fn target(criterion: &mut Criterion) {
    for workloads in SIZES {
        let (snapshot, services) = loaded(workloads);
        let own = mesh::workload(0, services, 1);
        let address = SocketAddr::new(own.addresses[0], 8080);
        let local = LocalAddr::new(SocketAddr::new(address.ip(), 15008));
        let authority: Authority = address.to_string().parse().expect("an address and a port");
        criterion.bench_function(&format!("target of a stream and its service, of {workloads}"), |bencher| {
            bencher.iter(|| {
                let target = inbound::tunnelled(&snapshot, &own, local, black_box(&authority));
                let target = target.expect("its own address");
                black_box(inbound::service_of(&snapshot, &own, target, None))
                    .expect("it serves one")
                    .canonical
            });
        });
    }
}

criterion_group!(benches, outbound, target);
criterion_main!(benches);
