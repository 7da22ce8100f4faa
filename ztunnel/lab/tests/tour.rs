//! The tour keeps what it promises; how fast this machine is, is for those who run it themselves to judge.

use ztunnel_lab::tour;

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
    assert_eq!(json["checks"].as_array().map(Vec::len), Some(report.checks.len()));
}
