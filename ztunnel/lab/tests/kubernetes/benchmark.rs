//! The benchmark of `deploy/benchmark`, as short as it can be: that it measures both variants, and that they are what they are called.

use std::time::Duration;

use super::apps::proxies;
use super::kubectl::{apply, attempt, eventually, json, kubectl, require, within};

const NAMESPACE: &str = "ztunnel-benchmark";
/// For the pods to start and to be captured, and for one round of the shortest suite.
const DEADLINE: Duration = Duration::from_secs(180);
const HEAD: &str = "| scenario | figure | unmeshed | meshed | meshed / unmeshed |";
/// Of every scenario of the shortest suite.
const ROWS: [&str; 4] = [
    "| bulk, 8 streams sending | throughput, Gbit/s |",
    "| ping-pong of one byte | p50, µs |",
    "| HTTP, 32 keep-alive connections | rate, /s |",
    CONNECTIONS,
];
/// A second long.
const CONNECTIONS: &str = "| new connections, 32 at once | rate, /s |";

/// What a user applies, with the image that is loaded on the nodes, and as short as it can be.
fn manifests() -> String {
    let image = std::env::var("ZTUNNEL_BENCHMARK_IMAGE").unwrap_or_else(|_| "localhost/perf:dev".to_owned());
    let released = format!("ghcr.io/ztunnel/perf:{}", env!("CARGO_PKG_VERSION"));
    let changes = [
        (released.as_str(), image.as_str()),
        ("--suite=quick", "--suite=smoke"),
        ("--rounds=3", "--rounds=1"),
    ];
    let rendered = kubectl(&["kustomize", concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/benchmark")]);
    changes.into_iter().fold(rendered, |text, (from, to)| {
        assert!(text.contains(from), "deploy/benchmark has no {from:?}");
        text.replace(from, to)
    })
}

pub fn run() {
    kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true"]);
    let before = ["meshed", "unmeshed"].map(opened);
    apply(&manifests());
    let log = finished();
    println!("{}", log.trim_end());
    assert!(log.lines().any(|line| line == HEAD), "no table: {log}");
    for row in ROWS {
        let cells = cells(&log, row);
        assert!(cells.len() == 3 && cells.iter().all(|cell| *cell > 0.0), "{row} {cells:?}");
    }
    assert!(!log.contains("failed:"), "{log}");
    let now = ["meshed", "unmeshed"].map(opened);
    let [meshed, unmeshed] = [now[0] - before[0], now[1] - before[1]];
    // Three digits are told.
    let told = cells(&log, CONNECTIONS)[1] * 0.99;
    assert!(meshed >= told, "{meshed} connections were tunnelled, of {told} at least");
    assert_eq!(unmeshed, 0.0, "unmeshed pods talk through proxies");
    kubectl(&["delete", "namespace", NAMESPACE, "--wait=true"]);
}

/// The numbers of a row of the table.
fn cells(log: &str, row: &str) -> Vec<f64> {
    let cells =
        log.lines().find_map(|line| line.strip_prefix(row)).unwrap_or_else(|| panic!("no {row}: {log}"));
    let number = |cell: &str| {
        let cell = cell.trim().trim_end_matches('x');
        let (digits, times) = cell.strip_suffix('k').map_or((cell, 1.0), |digits| (digits, 1000.0));
        digits.parse::<f64>().unwrap_or_else(|_| panic!("{row} {cells}: {cell:?} is no number")) * times
    };
    cells.trim_end_matches('|').split('|').map(number).collect()
}

/// The connections between the pods of a variant that proxies have seen, by tunnel or otherwise.
fn opened(variant: &str) -> f64 {
    let pods = [
        format!("source_workload=\"client-{variant}\""),
        format!("destination_workload=\"server-{variant}\""),
    ];
    let tunnelled = (variant == "meshed").then_some("connection_security_policy=\"mutual_tls\"");
    let labels = pods.iter().map(String::as_str).chain(["reporter=\"destination\""]).chain(tunnelled);
    proxies("istio_tcp_connections_opened_total", &labels.collect::<Vec<_>>())
}

/// What the Job said, once it has ended well.
fn finished() -> String {
    let log = || attempt(&["logs", "--namespace", NAMESPACE, "job/benchmark"]);
    let failed = within(DEADLINE, "the benchmark ends", || {
        let job = json(&["get", "job", "--namespace", NAMESPACE, "benchmark"]);
        let conditions = job["status"]["conditions"].as_array().into_iter().flatten();
        let ended = |what: &str| conditions.clone().any(|one| one["type"] == what && one["status"] == "True");
        require(ended("Complete") || ended("Failed"), log().unwrap_or_else(|error| error))?;
        Ok(ended("Failed"))
    });
    let log = eventually("the log is there", log);
    assert!(!failed, "the benchmark failed: {log}");
    log
}
