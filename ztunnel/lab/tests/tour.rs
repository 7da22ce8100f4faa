//! The tour keeps what it promises; how fast this machine is, is for those who run it themselves to judge.

use std::time::Duration;

use ztunnel_lab::tour;

/// How long the tour may take once the programs are built.
const PROMISED: Duration = Duration::from_secs(60);

#[test]
fn the_tour_keeps_its_promises() {
    let report =
        tour::run(&format!("tour{}", std::process::id()), false).unwrap_or_else(|error| panic!("{error}"));
    let broken: Vec<_> = report.checks.iter().filter(|check| !check.holds && !check.measured).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    // A measured check that could not be measured at all says so.
    let failed: Vec<_> = report.checks.iter().filter(|check| check.seen.contains("failed")).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let json: serde_json::Value = serde_json::from_str(&report.json()).expect("the report is JSON");
    let seconds = json["seconds"].as_f64().expect("the tour tells how long it took");
    assert!(0.0 < seconds && seconds < PROMISED.as_secs_f64(), "the tour took {seconds} s");
    assert_eq!(json["checks"].as_array().map(Vec::len), Some(report.checks.len()));
}
