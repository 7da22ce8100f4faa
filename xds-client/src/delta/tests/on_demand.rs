//! Demands: found, absent, too late, asked again, across streams.

use super::*;

fn waiting(bench: &mut Bench, key: &str) {
    assert_eq!(bench.demand(key), Ok(Demanded::Waiting), "{key}");
}

/// Subscribed and unsubscribed names of each request.
fn names(sent: Vec<DeltaDiscoveryRequest>) -> Vec<(Vec<String>, Vec<String>)> {
    sent.into_iter().map(|it| (it.resource_names_subscribe, it.resource_names_unsubscribe)).collect()
}

fn asks(keys: &[&str]) -> (Vec<String>, Vec<String>) {
    (strings(keys), Vec::new())
}

fn leaves(keys: &[&str]) -> (Vec<String>, Vec<String>) {
    (Vec::new(), strings(keys))
}

#[test]
fn a_demand_is_answered_by_name_or_alias() {
    let mut bench = Bench::synced(Mode::OnDemand);
    for key in ["uid-1", "net/10.0.0.1", "net/10.0.0.9"] {
        waiting(&mut bench, key);
    }
    waiting(&mut bench, "uid-1");
    let sent = bench.sent();
    assert!(sent[0].response_nonce.is_empty() && sent[0].node.is_none());
    assert_eq!(names(sent), [asks(&["net/10.0.0.1", "net/10.0.0.9", "uid-1"])], "in one request, once each");
    let update = response(ADDRESS, "n1").with("uid-1", "1", &[]).with("uid-2", "1", &["net/10.0.0.1"]);
    let lent = bench.machine.received(update.without("net/10.0.0.9"), bench.now).expect("known");
    lent.ack();
    assert_eq!(
        bench.answered(),
        [
            ("uid-1".to_owned(), Outcome::Found),
            ("net/10.0.0.1".to_owned(), Outcome::Found),
            ("net/10.0.0.9".to_owned(), Outcome::Absent)
        ]
    );
    for key in ["uid-1", "uid-2", "net/10.0.0.1"] {
        assert_eq!(bench.demand(key), Ok(Demanded::Known(Outcome::Found)), "{key} is held");
    }
    waiting(&mut bench, "net/10.0.0.9");
    let sent = names(bench.sent());
    assert_eq!(sent[1..], [leaves(&["net/10.0.0.9"]), asks(&["net/10.0.0.9"])], "left before asked again");
}

#[test]
fn a_demand_without_an_answer_ends_and_may_be_made_again() {
    let mut bench = Bench::synced(Mode::OnDemand);
    waiting(&mut bench, "k");
    assert_eq!(names(bench.sent()), [asks(&["k"])]);
    bench.pass(4).expect("no deadline of the stream");
    assert!(bench.answered().is_empty());
    waiting(&mut bench, "k");
    bench.pass(1).expect("no deadline of the stream");
    assert_eq!(bench.answered(), [("k".to_owned(), Outcome::TimedOut)], "joining does not extend the wait");
    assert_eq!(names(bench.sent()), [leaves(&["k"])]);
    waiting(&mut bench, "k");
    assert_eq!(names(bench.sent()), [asks(&["k"])]);
    bench.ack(response(ADDRESS, "n1").with("k", "1", &[]));
    assert_eq!(bench.answered(), [("k".to_owned(), Outcome::Found)]);
    assert_eq!(bench.machine.next_deadline(), None);
}

#[test]
fn a_demand_that_was_never_sent_is_withdrawn_silently() {
    let mut bench = Bench::synced(Mode::OnDemand);
    waiting(&mut bench, "k");
    bench.pass(5).expect("no deadline of the stream");
    assert!(bench.sent().is_empty());
}

#[test]
fn without_a_server_a_demand_is_unavailable_in_time_not_absent() {
    let mut bench = Bench::synced(Mode::OnDemand);
    bench.disconnect();
    waiting(&mut bench, "k");
    bench.pass(5).expect("no stream");
    assert_eq!(bench.answered(), [("k".to_owned(), Outcome::Unavailable)]);
}

#[test]
fn what_cannot_be_applied_is_unavailable_not_absent() {
    let mut bench = Bench::synced(Mode::OnDemand);
    waiting(&mut bench, "net/10.0.0.1");
    waiting(&mut bench, "uid-2");
    bench.sent();
    let mut update = response(ADDRESS, "n1").with("uid-1", "1", &["net/10.0.0.1"]);
    update.resources.push(proto::Resource { name: "uid-2".to_owned(), ..Default::default() });
    bench.reject(update, &["uid-1"]);
    let unavailable = |key: &str| (key.to_owned(), Outcome::Unavailable);
    assert_eq!(bench.answered(), [unavailable("net/10.0.0.1"), unavailable("uid-2")]);
    waiting(&mut bench, "uid-2");
    let sent = names(bench.sent());
    assert_eq!(sent[1..], [leaves(&["net/10.0.0.1", "uid-2"]), asks(&["uid-2"])]);
}

#[test]
fn demands_are_bounded_and_name_something() {
    let mut bench = Bench::synced(Mode::OnDemand);
    for key in ["", "*", "x".repeat(1025).as_str()] {
        assert_eq!(bench.demand(key), Err(Refused::Key(key.len())));
    }
    for key in ["a", "b", "c"] {
        waiting(&mut bench, key);
    }
    assert_eq!(bench.demand("d"), Err(Refused::TooMany(3)));
    waiting(&mut bench, "a");
    bench.pass(5).expect("no deadline of the stream");
    waiting(&mut bench, "d");
    let unknown = bench.machine.demand(&"type/unknown".into(), "k", bench.now);
    assert_eq!(unknown, Err(Refused::UnknownType("type/unknown".into())));
    let wildcard = bench.machine.demand(&POLICY.into(), "k", bench.now);
    assert_eq!(wildcard, Err(Refused::NotOnDemand(POLICY.into())));
}

#[test]
fn a_new_stream_asks_for_what_is_still_wanted() {
    let mut bench = Bench::synced(Mode::OnDemand);
    for key in ["net/10.0.0.1", "gone", "pending"] {
        waiting(&mut bench, key);
    }
    bench.ack(response(ADDRESS, "n1").with("uid-1", "1", &["net/10.0.0.1", "net/fd::1"]).without("gone"));
    bench.disconnect();
    waiting(&mut bench, "meanwhile");
    let [address, _] = &bench.connect()[..] else { panic!("two requests and no more") };
    let wanted = strings(&["*", "meanwhile", "net/10.0.0.1", "pending", "uid-1"]);
    assert_eq!(address.resource_names_subscribe, wanted);
    assert_eq!(address.resource_names_unsubscribe, ["*"]);
    assert_eq!(resumed(address), versions(&[("uid-1", "1")]));
    bench.ack(response(ADDRESS, "m1").with("pending", "1", &[]).without("meanwhile"));
    let found: Vec<_> = bench.answered().into_iter().skip(2).collect();
    assert_eq!(found, [("pending".to_owned(), Outcome::Found), ("meanwhile".to_owned(), Outcome::Absent)]);
}

#[test]
fn what_went_is_not_held_under_any_key() {
    let mut bench = Bench::synced(Mode::OnDemand);
    waiting(&mut bench, "net/10.0.0.1");
    bench.sent();
    bench.ack(response(ADDRESS, "n1").with("uid-1", "1", &["net/10.0.0.1"]));
    // Another pod takes the address over; then it changes its address.
    bench.ack(response(ADDRESS, "n2").with("uid-2", "1", &["net/10.0.0.1"]).without("uid-1"));
    assert_eq!(bench.demand("net/10.0.0.1"), Ok(Demanded::Known(Outcome::Found)));
    assert_eq!(names(bench.sent())[2..], [leaves(&["uid-1"])]);
    bench.ack(response(ADDRESS, "n3").with("uid-2", "2", &["net/10.0.0.2"]));
    assert_eq!(bench.demand("net/10.0.0.2"), Ok(Demanded::Known(Outcome::Found)));
    waiting(&mut bench, "net/10.0.0.1");
    assert_eq!(names(bench.sent())[1..], [leaves(&["net/10.0.0.1"]), asks(&["net/10.0.0.1"])]);
    bench.ack(response(ADDRESS, "n4").without("uid-2"));
    waiting(&mut bench, "net/10.0.0.2");
    assert!(bench.held(ADDRESS).is_empty());
}

#[test]
fn many_demands_are_cut_into_requests() {
    let many = Settings { outstanding_demands: 5000, ..settings(Mode::OnDemand) };
    let mut bench = Bench { machine: Machine::new(many), now: Instant::now() };
    bench.connect();
    for index in 0..2500 {
        waiting(&mut bench, &format!("k{index}"));
    }
    let sizes: Vec<_> = bench.sent().iter().map(|request| request.resource_names_subscribe.len()).collect();
    assert_eq!(sizes, [1000, 1000, 500]);
}

#[test]
fn an_answer_that_crosses_an_unsubscription_is_asked_for_anew() {
    let mut bench = Bench::synced(Mode::OnDemand);
    waiting(&mut bench, "net/10.0.0.1");
    bench.sent();
    bench.pass(5).expect("no deadline of the stream");
    assert_eq!(names(bench.sent()), [leaves(&["net/10.0.0.1"])]);
    bench.ack(response(ADDRESS, "n1").with("uid-1", "1", &["net/10.0.0.1"]).with("uid-2", "1", &[]));
    assert_eq!(names(bench.sent())[1..], [asks(&["uid-1"])], "what was sent unasked is subscribed already");
}
