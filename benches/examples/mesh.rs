//! Time to ready and memory of the state of a large mesh:
//! `cargo run --release -p benches --example mesh [WORKLOADS [SERVICES]]` (1,000,000 in 66,000 unless told).
//!
//! Encoded resources are decoded and applied batch by batch, as they come over xDS, and published when all are there;
//! making them is not in the times and their bytes are not in the memory. Times are those of the thread on its core, so
//! that what else the machine does is not in them. Then 10,000 updates a second are applied while a thread asks as a connection
//! does, and its delays are told beside those without updates.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use benches::mesh;
use ztunnel::state::{self, Batch, Origin, Reader, Writer};
use ztunnel_model::codec::{Address, Interner};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 10_000;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let workloads = arguments.next().unwrap_or(1_000_000);
    let services = arguments.next().unwrap_or(66_000);
    let (mut writer, reader) = state::on_node(Some(&mesh::node(0)));
    let mut interner = Interner::default();
    let empty = resident();

    let (mut decoding, mut applying) = (Duration::ZERO, Duration::ZERO);
    let mut load = |bytes: Vec<Vec<u8>>| {
        let start = on_core();
        let batch = decode(&bytes, &mut interner);
        let decoded = on_core();
        writer.prepare(Origin::Discovery, batch);
        decoding += decoded - start;
        applying += on_core() - decoded;
    };
    for start in (0..services).step_by(BATCH) {
        let some = start..services.min(start + BATCH);
        load(some.map(|index| Address::Service(Arc::new(mesh::service(index))).encode()).collect());
    }
    for start in (0..workloads).step_by(BATCH) {
        let some = start..workloads.min(start + BATCH);
        load(some.map(|index| mesh::encoded(index, services, 1)).collect());
    }
    writer.publish();
    let resident = resident();
    println!("{workloads} workloads in {services} services, batches of {BATCH}");
    println!("ready in {:.2?}: decoding {decoding:.2?}, applying {applying:.2?}", decoding + applying);
    let each = (resident - empty) / workloads.max(1) as u64;
    println!("RSS {} MB ({} MB before), {each} bytes a workload", resident >> 20, empty >> 20);

    let quiet = while_asking(&reader, workloads, || std::thread::sleep(Duration::from_secs(5)));
    println!("asked while nothing changes: {quiet}");
    let mut slowest = Duration::ZERO;
    let busy = while_asking(&reader, workloads, || {
        for round in 0..50 {
            let due = Instant::now() + Duration::from_millis(100);
            slowest = slowest.max(update(&mut writer, &mut interner, round, workloads, services));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    });
    println!("asked under 10,000 updates/s in batches of 1,000: {busy}; slowest batch {slowest:.2?}");
}

fn decode(bytes: &[Vec<u8>], interner: &mut Interner) -> Batch {
    let read = |bytes: &Vec<u8>| Address::decode_sharing(bytes, interner).expect("we encoded it");
    Batch { addresses: bytes.iter().map(read).collect(), ..Batch::default() }
}

fn update(
    writer: &mut Writer,
    interner: &mut Interner,
    round: usize,
    workloads: usize,
    services: usize,
) -> Duration {
    let spread = |index: usize| (round * 1_000 + index).wrapping_mul(7_919) % workloads;
    let bytes: Vec<_> = (0..1_000).map(|index| mesh::encoded(spread(index), services, 2 + round)).collect();
    let start = on_core();
    writer.apply(Origin::Discovery, decode(&bytes, interner));
    on_core() - start
}

/// The 50th, 99th and 99.9th of a hundred, of what a connection asks of the state.
fn while_asking(reader: &Reader, workloads: usize, work: impl FnOnce()) -> String {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, reader) = (stop.clone(), reader.clone());
    let asking = std::thread::spawn(move || {
        let network = mesh::network();
        let mut times = Vec::new();
        let mut index: usize = 0;
        while !stopped.load(Ordering::Relaxed) {
            index = index.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let ip = mesh::pod_address((index >> 33) % workloads);
            let start = Instant::now();
            let snapshot = reader.snapshot();
            let workload = snapshot.workload_by_address(&network, ip).expect("it is in the mesh");
            black_box(snapshot.policies_for(workload).count());
            black_box(snapshot.service_by_vip(&network, ip, &workload.namespace));
            drop(snapshot);
            times.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
            std::thread::sleep(Duration::from_micros(50));
        }
        times
    });
    work();
    stop.store(true, Ordering::Relaxed);
    let mut times = asking.join().expect("it does not panic");
    times.sort_unstable();
    let at = |part: f64| Duration::from_nanos(times[((times.len() - 1) as f64 * part) as usize].into());
    format!("p50 {:.2?}, p99 {:.2?}, p99.9 {:.2?} of {}", at(0.5), at(0.99), at(0.999), times.len())
}

fn on_core() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("procfs");
    let nanoseconds = stat.split(' ').next().and_then(|text| text.parse().ok());
    Duration::from_nanos(nanoseconds.expect("a number"))
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
