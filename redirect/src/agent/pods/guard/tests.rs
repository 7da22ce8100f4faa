use std::collections::HashSet;
use std::net::TcpListener;

use super::super::tests::Bed;
use super::*;
use crate::agent::pods::hold::Part;
use crate::rules::fixture::{Pair, within};
use crate::rules::{deeds, routing};

const DEADLINE: Duration = Duration::from_secs(10);

/// As the agent does, until it is so.
async fn until(pods: &mut Pods, what: &str, so: impl Fn(&mut Pods) -> bool) -> Duration {
    let start = Instant::now();
    let mut look = tokio::time::interval(Duration::from_millis(200));
    let wake = pods.guarding.wake.clone();
    while !so(pods) {
        assert!(start.elapsed() < DEADLINE, "never {what}");
        let soon = pods.soon();
        tokio::select! {
            () = soon => {}
            tokens = wake.woken() => pods.woken(tokens),
            _ = look.tick() => drop(pods.look().await),
        }
        pods.audit().await;
    }
    start.elapsed()
}

fn reasons(pods: &mut Pods) -> Vec<&'static str> {
    pods.reports().iter().map(|report| report.reason).collect()
}

fn repairs(pods: &Pods) -> u64 {
    pods.counts.repairs.values().sum()
}

#[tokio::test]
async fn whatever_is_done_to_the_rules_is_repaired_in_less_than_a_second() {
    type Deed = fn();
    let deeds: [(Deed, &str); 5] = [
        (|| rules::withdraw().expect("flushed"), "flushed"),
        (deeds::delete_output_chain, "changed"),
        (deeds::add_rule_to_replies, "changed"),
        (deeds::make_dormant, "changed"),
        (routing::remove_rule_v4, "routing"),
    ];
    let bed = Bed::new("repaired");
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    let shape = |bodies: Vec<Vec<u8>>| bodies.iter().map(Vec::len).collect::<Vec<_>>();
    let captured = shape(bed.dump().await);
    let quiet = |pods: &mut Pods| {
        let due = pods.captured["u"].guard.as_ref().map(|guard| guard.due);
        due.is_some_and(|due| due > Instant::now() + Duration::from_secs(2))
    };
    for (deed, kind) in deeds {
        // So that the kernel's word alone can bring the next audit in time.
        until(&mut pods, "quiet", quiet).await;
        let before = repairs(&pods);
        within(&bed.namespace, deed);
        let took = until(&mut pods, kind, |pods| repairs(pods) > before).await;
        println!("{kind}: repaired after {took:?}");
        assert!(took < Duration::from_secs(1), "{kind}: {took:?}");
        assert_eq!(shape(bed.dump().await), captured, "{kind}");
        assert!(reasons(&mut pods).contains(&"CaptureRepaired"));
    }
    assert_eq!(pods.counts.repairs["flushed"], 1);
    assert_eq!(pods.counts.repairs["changed"], 3);
    assert!(pods.members().quarantined.is_empty());
}

#[tokio::test]
async fn a_lost_notification_costs_a_period_and_not_a_pod() {
    let bed = Bed::new("deaf");
    let mut pods = bed.pods_every(Duration::from_millis(300));
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    pods.audit().await;
    pods.guarding.tokens.clear();
    within(&bed.namespace, || rules::withdraw().expect("flushed"));
    until(&mut pods, "repaired", |pods| repairs(pods) == 1).await;
}

#[tokio::test]
async fn foreign_chains_are_reported_and_left_alone() {
    let bed = Bed::new("foreign-chain");
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    within(&bed.namespace, deeds::add_foreign_drop);
    let changed = bed.dump().await;
    until(&mut pods, "reported", |pods| reasons(pods).contains(&"ForeignRules")).await;
    assert_eq!(repairs(&pods), 0);
    assert_eq!(bed.dump().await, changed);
}

#[tokio::test]
async fn who_undoes_repairs_over_and_over_is_reported() {
    let bed = Bed::new("contested");
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    for repair in 0..11 {
        within(&bed.namespace, || rules::withdraw().expect("flushed"));
        until(&mut pods, "repaired", |pods| repairs(pods) > repair).await;
    }
    assert!(reasons(&mut pods).contains(&"CaptureContested"));
    let took = until(&mut pods, "quarantined", |pods| !pods.members().quarantined.is_empty()).await;
    assert!(took < BOUND + Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_strict_pod_without_proof_is_quarantined_until_it_is_proven() {
    let pair = Pair::new("unproven");
    let bed = Bed::new("unproven");
    let pod = |strict| Pod {
        netns: pair.pod.path.clone().into(),
        addresses: vec!["10.77.0.2".parse().expect("an address")],
        strict,
        ..bed.pod()
    };
    pair.in_pod(deeds::add_foreign_drop);
    let mut pods = bed.pods();
    pods.listed(vec![pod(true)], &HashSet::new(), true).await;
    assert!(reasons(&mut pods).contains(&"CaptureUnproven"));
    assert!(pods.members().quarantined.is_empty(), "not before the bound");
    until(&mut pods, "quarantined", |pods| pods.members().quarantined.len() == 1).await;
    pods.listed(vec![pod(false)], &HashSet::new(), true).await;
    assert!(pods.members().quarantined.is_empty(), "permissive");
    pods.listed(vec![pod(true)], &HashSet::new(), true).await;
    assert_eq!(pods.members().quarantined.len(), 1);
    pair.in_pod(deeds::remove_foreign);
    until(&mut pods, "let out", |pods| pods.members().quarantined.is_empty()).await;
    assert!(reasons(&mut pods).contains(&"CaptureProven"));
}

#[tokio::test]
async fn a_pod_that_cannot_be_found_is_quarantined_and_one_that_is_closed_is_not() {
    let bed = Bed::new("lost");
    let lost = Pod {
        uid: "lost".into(),
        netns: bed.folder.join("nowhere").into(),
        addresses: vec!["10.0.0.9".parse().expect("an address")],
        ..bed.pod()
    };
    let mut first = bed.pods();
    first.listed(vec![bed.pod()], &HashSet::new(), true).await;
    let _kept = first.captured["u"].hold.listeners().expect("opened").try_clone().expect("descriptors");
    drop(first);
    let mut pods = bed.pods();
    pods.listed(vec![bed.pod(), lost.clone()], &HashSet::new(), true).await;
    assert!(!pods.is_captured("u"), "an older proxy has its ports");
    until(&mut pods, "quarantined", |pods| pods.members().quarantined.contains(&lost.addresses[0])).await;
    assert_eq!(pods.members().quarantined.len(), 1, "closed by the rules that are there");
    let again = Pod { netns: bed.pod().netns, ..lost };
    drop(pods);
    drop(_kept);
    let mut pods = bed.pods();
    pods.listed(vec![again], &HashSet::new(), true).await;
    assert!(pods.members().quarantined.is_empty(), "the address of a pod that is captured well");
}

/// What 250 pods cost where nothing happens: printed, and bounded loosely.
#[tokio::test]
async fn quiet_pods_cost_next_to_nothing() {
    const PODS: usize = 250;
    let bed = Bed::new("quiet");
    let namespaces: Vec<_> =
        (0..PODS).map(|n| crate::rules::fixture::Named::make(bed.folder.join(format!("ns{n}")))).collect();
    let pod = |n: usize| Pod {
        uid: format!("u{n}"),
        netns: namespaces[n].path.clone().into(),
        addresses: Vec::new(),
        ..bed.pod()
    };
    let mut pods = bed.pods();
    let start = Instant::now();
    pods.listed((0..PODS).map(pod).collect(), &HashSet::new(), true).await;
    let captured = start.elapsed();
    // The first audit of each compares the whole; those after it do not.
    pods.audit().await;
    let (count, time) = (pods.counts.audits, pods.counts.audit_time);
    assert_eq!(count, PODS as u64);
    for held in pods.captured.values_mut() {
        held.guard.as_mut().expect("guarded").due = Instant::now();
    }
    pods.audit().await;
    let (quiet, first) = ((pods.counts.audit_time - time) / PODS as u32, time / PODS as u32);
    let share = quiet.as_secs_f64() * PODS as f64 / 5.0 * 100.0;
    println!(
        "capture of {PODS}: {captured:?}; first audit {first:?}, quiet audit {quiet:?}: {share:.3} % of a core"
    );
    assert!(share < 5.0, "{share} %");
    assert_eq!(repairs(&pods), 0);
}

#[tokio::test]
async fn beneath_other_rules_nothing_is_audited() {
    let bed = Bed::new("others-rules");
    let mut pods = bed.pods_of(Part::Sockets);
    pods.listed(vec![bed.pod()], &HashSet::new(), true).await;
    pods.audit().await;
    assert_eq!(pods.counts.audits, 0);
    assert!(pods.members().pods.is_empty());
    let bind = || TcpListener::bind("[::]:15008").is_err();
    assert!(within(&bed.namespace, bind));
}
