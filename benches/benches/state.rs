//! What the state costs its writer and its readers: `cargo bench -p benches --bench state`. A look-up should cost the
//! same whatever the size of the mesh, and a batch what its own size says.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use benches::mesh;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ztunnel::state::{Applier, Batch, Origin, Snapshot};
use ztunnel_model::codec::{Address, Interner};
use ztunnel_model::service::Service;

const BATCH: usize = 10_000;

fn batch(indices: impl Iterator<Item = usize>, services: usize, revision: usize) -> Batch {
    let mut interner = Interner::default();
    let mut decoded = |index| {
        Address::decode_sharing(&mesh::encoded(index, services, revision), &mut interner)
            .expect("we encoded it")
    };
    Batch { addresses: indices.map(&mut decoded).collect(), ..Batch::default() }
}

fn loaded(workloads: usize) -> Applier {
    let mut applier = Applier::new(Some(&mesh::node(0)));
    for start in (0..workloads).step_by(BATCH) {
        applier.apply(Origin::Discovery, batch(start..workloads.min(start + BATCH), workloads / 15, 1));
    }
    applier
}

fn updates(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("10,000 updates");
    group.sample_size(10);
    for workloads in [100_000, 1_000_000] {
        let mut applier = loaded(workloads);
        // Held, as a reader would: what is changed must be copied.
        let mut held = applier.snapshot();
        let mut revision = 1;
        group.bench_function(format!("of {workloads}"), |bencher| {
            bencher.iter_batched(
                || {
                    revision += 1;
                    let spread = (0..BATCH).map(|index| index.wrapping_mul(7_919) % workloads);
                    batch(spread, workloads / 15, revision)
                },
                |batch| {
                    applier.apply(Origin::Discovery, batch);
                    held = applier.snapshot();
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn lookups(criterion: &mut Criterion) {
    let network = mesh::network();
    for workloads in [1_000, 100_000, 1_000_000] {
        let snapshot = loaded(workloads).snapshot();
        let mut index = 0_usize;
        criterion.bench_function(&format!("workload by address, of {workloads}"), |bencher| {
            bencher.iter(|| {
                index = (index + 7_919) % workloads;
                black_box(snapshot.workload_by_address(&network, mesh::pod_address(index))).is_some()
            });
        });
        let own = mesh::workload(0, workloads / 15, 1);
        let account = own.identity.service_account().to_owned();
        criterion.bench_function(&format!("local workload, of {workloads}"), |bencher| {
            bencher.iter(|| {
                black_box(snapshot.local_workload(&own.namespace, &own.name, &account, Some(&own.node)))
                    .expect("it is there")
                    .capacity
            });
        });
    }
}

fn vips(criterion: &mut Criterion) {
    for count in [10, 1_000, 100_000] {
        ask(criterion, &format!("exact VIP, of {count}"), count, mesh::service, mesh::vip);
        ask(criterion, &format!("prefix VIP, of {count}"), count, mesh::prefix_service, |index| {
            Ipv4Addr::from(0xac10_0003 + index as u32 * 16).into()
        });
    }
}

fn ask(
    criterion: &mut Criterion,
    name: &str,
    count: usize,
    service: impl Fn(usize) -> Service,
    address: impl Fn(usize) -> IpAddr,
) {
    let snapshot: Snapshot = {
        let mut applier = Applier::default();
        let addresses = (0..count).map(|index| Address::Service(Arc::new(service(index)))).collect();
        applier.apply(Origin::Discovery, Batch { addresses, ..Batch::default() });
        applier.snapshot()
    };
    let network = mesh::network();
    let mut index = 0;
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| {
            index = (index + 7_919) % count;
            black_box(snapshot.service_by_vip(&network, address(index), "elsewhere"))
                .expect("each address has a service")
                .canonical
        });
    });
}

criterion_group!(benches, updates, lookups, vips);
criterion_main!(benches);
