//! What a decision costs beside policies of others: `cargo bench -p benches --bench policy`. It should be the same from
//! ten policies to a hundred thousand.

use std::hint::black_box;
use std::net::SocketAddr;

use benches::mesh;
use criterion::{Criterion, criterion_group, criterion_main};
use ztunnel::state::{Applier, Batch, Origin};
use ztunnel_model::policy::{Connection, Scope, decide};

fn decisions(criterion: &mut Criterion) {
    let source: SocketAddr = "10.0.0.1:40000".parse().expect("an address");
    let destination: SocketAddr = "10.0.0.2:8080".parse().expect("an address");
    for scope in [Scope::Namespace, Scope::WorkloadSelector] {
        for count in [10, 1_000, 100_000] {
            let mut applier = Applier::default();
            let policies = (0..count).map(|index| mesh::policy(index, scope)).collect();
            applier.apply(Origin::Discovery, Batch { policies, ..Batch::default() });
            let snapshot = applier.snapshot();
            let workload = mesh::workload(7, 100, 1);
            assert_eq!(snapshot.policies_for(&workload).count(), 1);
            let connection = Connection { identity: Some(&workload.identity), source, destination };
            criterion.bench_function(&format!("decision among {count} of scope {scope:?}"), |bencher| {
                bencher.iter(|| {
                    let missing = snapshot.missing_policy(&workload).is_some();
                    black_box((missing, decide(snapshot.policies_for(&workload), &connection)))
                });
            });
        }
    }
}

criterion_group!(benches, decisions);
criterion_main!(benches);
