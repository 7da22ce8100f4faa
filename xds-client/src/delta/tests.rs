//! Scripted servers in virtual time.

use std::collections::BTreeMap;

use prost_types::Any;
use tonic::Status;

use super::*;

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const POLICY: &str = "type.googleapis.com/istio.security.Authorization";

/// A machine, its clock, and the server's side of the wire.
struct Bench {
    machine: Machine,
    now: Instant,
}

fn settings(address: Mode) -> Settings {
    let node = proto::Node { id: "me".to_owned(), ..Default::default() };
    let types = vec![(ADDRESS.into(), address), (POLICY.into(), Mode::Wildcard)];
    Settings { outstanding_demands: 3, ..Settings::new(node, types) }
}

impl Bench {
    fn new(address: Mode) -> Self {
        Self { machine: Machine::new(settings(address)), now: Instant::now() }
    }

    /// With its first requests sent and both types answered with nothing.
    fn synced(address: Mode) -> Self {
        let mut bench = Self::new(address);
        bench.connect();
        bench.ack(response(ADDRESS, "a0"));
        bench.ack(response(POLICY, "p0"));
        bench.sent();
        bench
    }

    fn connect(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.machine.connected(self.now);
        self.sent()
    }

    fn disconnect(&mut self) {
        self.machine.disconnected(&Lost::Closed, 0.5, self.now);
    }

    fn sent(&mut self) -> Vec<DeltaDiscoveryRequest> {
        std::iter::from_fn(|| self.machine.poll_request()).collect()
    }

    fn ack(&mut self, response: DeltaDiscoveryResponse) {
        self.machine.received(response, self.now).expect("a known type").ack();
    }

    fn reject(&mut self, response: DeltaDiscoveryResponse, names: &[&str]) {
        let rejected = names.iter().map(|name| Rejection::new(*name, "bad")).collect();
        self.machine.received(response, self.now).expect("a known type").answer(rejected);
    }

    fn pass(&mut self, seconds: u64) -> Result<(), Lost> {
        self.now += Duration::from_secs(seconds);
        self.machine.tick(self.now)
    }

    fn demand(&mut self, key: &str) -> Result<Demanded, Refused> {
        self.machine.demand(&ADDRESS.into(), key, self.now)
    }

    fn answered(&mut self) -> Vec<(String, Outcome)> {
        std::iter::from_fn(|| self.machine.poll_answered())
            .map(|it| (it.key.to_string(), it.outcome))
            .collect()
    }

    fn held(&self, type_url: &str) -> BTreeMap<String, String> {
        self.machine
            .held(&type_url.into())
            .map(|(name, version)| (name.to_string(), version.to_string()))
            .collect()
    }
}

fn response(type_url: &str, nonce: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { type_url: type_url.to_owned(), nonce: nonce.to_owned(), ..Default::default() }
}

impl DeltaDiscoveryResponse {
    fn with(mut self, name: &str, version: &str, aliases: &[&str]) -> Self {
        self.resources.push(proto::Resource {
            name: name.to_owned(),
            version: version.to_owned(),
            aliases: strings(aliases),
            resource: Some(Any { type_url: self.type_url.clone(), value: b"body".to_vec() }),
            ..Default::default()
        });
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.removed_resources.push(name.to_owned());
        self
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

fn versions(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, version)| (name.to_string(), version.to_string())).collect()
}

fn resumed(request: &DeltaDiscoveryRequest) -> BTreeMap<String, String> {
    request.initial_resource_versions.clone().into_iter().collect()
}

#[test]
fn a_stream_begins_with_one_request_for_each_type() {
    for (mode, names) in [(Mode::Wildcard, vec![]), (Mode::OnDemand, vec!["*".to_owned()])] {
        let mut bench = Bench::new(mode);
        assert!(bench.sent().is_empty(), "nothing is sent without a stream");
        let [address, policy] = &bench.connect()[..] else { panic!("two requests") };
        assert_eq!((address.type_url.as_str(), policy.type_url.as_str()), (ADDRESS, POLICY));
        assert_eq!(
            (&address.resource_names_subscribe, &address.resource_names_unsubscribe),
            (&names, &names),
            "{mode:?}"
        );
        for request in [address, policy] {
            assert_eq!(request.node.as_ref().map(|node| node.id.as_str()), Some("me"));
            assert!(request.initial_resource_versions.is_empty() && request.response_nonce.is_empty());
        }
        assert!(policy.resource_names_subscribe.is_empty() && policy.resource_names_unsubscribe.is_empty());
    }
}

#[test]
fn an_answer_carries_its_nonce_and_nothing_else() {
    let mut bench = Bench::new(Mode::Wildcard);
    bench.connect();
    for nonce in ["n1", "n1", "", "n0"] {
        bench.ack(response(ADDRESS, nonce).with("w", "1", &[]));
        let expected = DeltaDiscoveryRequest {
            type_url: ADDRESS.to_owned(),
            response_nonce: nonce.to_owned(),
            ..Default::default()
        };
        assert_eq!(bench.sent(), [expected], "repeated, empty and old nonces are the server's business");
    }
}

#[test]
fn a_refusal_names_each_bad_resource_and_the_good_ones_count() {
    let mut bench = Bench::new(Mode::Wildcard);
    bench.connect();
    bench.ack(response(ADDRESS, "n1").with("old", "1", &[]));
    bench.sent();
    let mut mixed =
        response(ADDRESS, "n2").with("good", "2", &[]).with("bad", "2", &[]).with("old", "2", &[]);
    mixed.resources.push(proto::Resource { name: "empty".to_owned(), ..Default::default() });
    mixed = mixed.with("foreign", "2", &[]);
    mixed.resources[4].resource = Some(Any { type_url: POLICY.to_owned(), value: Vec::new() });
    let mut lent = bench.machine.received(mixed, bench.now).expect("a known type");
    let given: Vec<_> = lent.update().changed().iter().map(|resource| resource.name().to_string()).collect();
    assert_eq!(given, ["good", "bad", "old"]);
    let rejections = vec![Rejection::new("bad", "no such port"), Rejection::new("old", "no such host")];
    lent.nack(Rejections::new(rejections).expect("two rejections"));
    let [answer] = &bench.sent()[..] else { panic!("one answer") };
    assert_eq!(answer.response_nonce, "n2");
    let detail = answer.error_detail.clone().expect("a refusal");
    assert_eq!(
        (detail.code, detail.message.as_str()),
        (
            0,
            "empty: the resource has no body; foreign: the body is a \
             \"type.googleapis.com/istio.security.Authorization\" in a response of type \
             \"type.googleapis.com/istio.workload.Address\"; bad: no such port; old: no such host"
        )
    );
    let kept = versions(&[("good", "2"), ("old", "1")]);
    assert_eq!(bench.held(ADDRESS), kept, "what was rejected keeps its old version, or has none");
    bench.disconnect();
    assert_eq!(resumed(&bench.connect()[0]), kept, "so the server sends the rejected ones again");
    let report = &bench.machine.reports()[0];
    assert_eq!((report.nacks, report.rejected, report.held), (1, 4, 2));
}

#[test]
fn an_endless_refusal_is_cut() {
    let rejections: Vec<_> =
        (0..10_000).map(|index| Rejection::new(format!("r{index}"), "é".repeat(5000))).collect();
    let text = response::refusal(&rejections).expect("a refusal");
    assert!(text.len() < 20_000 && text.starts_with("r0: é"), "{} bytes", text.len());
    assert!(text.ends_with(" more"), "{}", &text[text.len() - 20..]);
}

#[test]
fn a_new_stream_resumes_from_what_is_held() {
    let mut bench = Bench::new(Mode::Wildcard);
    bench.connect();
    bench.ack(response(ADDRESS, "n1").with("w1", "1", &[]).with("w2", "1", &[]).with("w3", "1", &[]));
    bench.ack(response(ADDRESS, "n2").with("w2", "2", &[]).without("w3").without("never seen"));
    bench.ack(response(POLICY, "n3").with("ns/p", "7", &[]));
    bench.disconnect();
    let [address, policy] = &bench.connect()[..] else { panic!("answers to the old stream are not sent") };
    assert_eq!(resumed(address), versions(&[("w1", "1"), ("w2", "2")]));
    assert_eq!(resumed(policy), versions(&[("ns/p", "7")]));
    assert!(address.node.is_some() && address.resource_names_subscribe.is_empty());
    assert!(bench.machine.synced(), "a lost stream does not take the sync back");
    bench.ack(response(ADDRESS, "m1").without("w1"));
    assert_eq!(bench.held(ADDRESS), versions(&[("w2", "2")]), "what went meanwhile is learnt");
}

#[test]
fn a_response_of_an_unknown_type_is_reported_and_acknowledged() {
    let mut bench = Bench::new(Mode::Wildcard);
    bench.connect();
    let unknown = response("type/unknown", "u1").with("x", "1", &[]);
    let error = bench.machine.received(unknown, bench.now).expect_err("unknown");
    assert_eq!(error, Unexpected::UnknownType { type_url: "type/unknown".into(), resources: 1 });
    let [answer] = &bench.sent()[..] else { panic!("one answer") };
    assert_eq!((answer.type_url.as_str(), answer.response_nonce.as_str()), ("type/unknown", "u1"));
    assert!(answer.error_detail.is_none() && !bench.machine.synced());
    assert_eq!(bench.machine.counters().unknown_type, 1);
}

#[test]
fn a_response_that_is_not_answered_is_refused() {
    let mut bench = Bench::new(Mode::Wildcard);
    bench.connect();
    for leak in [false, true] {
        let lent = bench
            .machine
            .received(response(ADDRESS, "n1").with("w", "1", &[]).without("v"), bench.now)
            .expect("a known type");
        if leak {
            std::mem::forget(lent)
        } else {
            drop(lent)
        }
        let [answer] = &bench.sent()[..] else { panic!("one answer") };
        let message = answer.error_detail.as_ref().map(|detail| detail.message.as_str());
        assert_eq!((answer.response_nonce.as_str(), message), ("n1", Some(response::UNANSWERED)));
        assert!(bench.held(ADDRESS).is_empty(), "nothing of it counts");
        assert_eq!(bench.machine.unsynced().len(), 2, "least of all as the first sync");
    }
}

#[test]
fn the_first_answered_response_syncs_although_it_was_refused() {
    let mut bench = Bench::new(Mode::Wildcard);
    bench.connect();
    bench.reject(response(ADDRESS, "n1").with("bad", "1", &[]), &["bad"]);
    assert_eq!(bench.machine.unsynced(), [TypeUrl::from(POLICY)]);
    bench.ack(response(POLICY, "n2"));
    assert!(bench.machine.synced());
    assert_eq!(
        Bench::new(Mode::OnDemand).machine.unsynced(),
        [TypeUrl::from(POLICY)],
        "nothing comes unasked"
    );
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let mut bench = Bench::new(Mode::Wildcard);
    assert_eq!(bench.machine.next_deadline(), None);
    bench.connect();
    assert_eq!(bench.machine.next_deadline(), Some(bench.now + Duration::from_secs(60)));
    bench.pass(59).expect("still patient");
    let lost = bench.pass(1).expect_err("too long");
    assert_eq!(lost.to_string(), format!("the server answered nothing for {ADDRESS}, {POLICY} in 60 s"));
    let waits: Vec<_> = (0..3)
        .map(|_| {
            let wait = bench.machine.disconnected(&lost, 1.0, bench.now).as_millis();
            bench.connect();
            wait
        })
        .collect();
    assert_eq!(waits, [10, 20, 40], "and asked again at growing intervals");
    bench.ack(response(ADDRESS, "n1"));
    bench.pass(299).expect("one type was answered, so the other gets longer");
    let lost = bench.pass(1).expect_err("too long");
    assert_eq!(lost.to_string(), format!("the server answered nothing for {POLICY} in 300 s"));
    bench.disconnect();
    bench.connect();
    bench.ack(response(POLICY, "n2"));
    assert_eq!(bench.machine.next_deadline(), None, "all types were answered once");
    bench.disconnect();
    bench.connect();
    assert_eq!(bench.machine.next_deadline(), None, "a server to which nothing changed may say nothing");
}

#[test]
fn versions_that_a_server_finds_too_large_are_left_out() {
    let mut bench = Bench::synced(Mode::Wildcard);
    let name = |index: u32| format!("{}{index}", "n".repeat(1000));
    let whole = |nonce: &str, range: std::ops::Range<u32>| {
        range.fold(response(ADDRESS, nonce), |response, index| response.with(&name(index), "1", &[]))
    };
    bench.ack(whole("n1", 0..1200));
    bench.ack(response(POLICY, "n2").with("ns/p", "1", &[]));
    bench.disconnect();
    assert_eq!(bench.connect()[0].initial_resource_versions.len(), 1200);
    let lost = |text: &str| Lost::Status(Box::new(Status::resource_exhausted(text)));
    bench.machine.disconnected(&lost("request rate limit exceeded"), 0.5, bench.now);
    assert_eq!(bench.connect()[0].initial_resource_versions.len(), 1200);
    let too_large = lost("grpc: received message larger than max (5000000 vs. 4194304)");
    bench.machine.disconnected(&too_large, 0.5, bench.now);
    let [address, policy] = &bench.connect()[..] else { panic!("two requests") };
    assert!(address.initial_resource_versions.is_empty());
    assert_eq!(resumed(policy), versions(&[("ns/p", "1")]), "a small type resumes");
    let mut lent = bench.machine.received(whole("m1", 100..1201), bench.now).expect("a known type");
    let mut gone: Vec<_> = lent.update().removed().iter().map(ToString::to_string).collect();
    gone.sort();
    let mut expected: Vec<_> = (0..100).map(name).collect();
    expected.sort();
    assert_eq!(gone, expected, "what the whole does not bring has gone");
    lent.ack();
    assert_eq!(bench.held(ADDRESS).len(), 1101);
    bench.ack(response(ADDRESS, "m2"));
    assert_eq!(bench.held(ADDRESS).len(), 1101, "only the first response is the whole");
}

#[test]
fn a_stream_that_had_nothing_to_say_was_a_good_one() {
    let mut bench = Bench::synced(Mode::Wildcard);
    let mut wait = |seconds: u64| {
        bench.now += Duration::from_secs(seconds);
        let wait = bench.machine.disconnected(&Lost::Closed, 1.0, bench.now).as_millis();
        bench.machine.connected(bench.now);
        wait
    };
    assert_eq!([wait(1), wait(1), wait(1), wait(3600), wait(1)], [10, 20, 40, 10, 20]);
}

#[test]
fn what_a_server_says_cannot_break_a_log_line() {
    let lost = Lost::Status(Box::new(Status::internal(format!("a\nb{}", "c".repeat(5000)))));
    let text = lost.to_string();
    assert!(
        text.starts_with("the server ended the stream with Internal: a\\nbcc") && text.len() < 600,
        "{text}"
    );
    let unknown = Unexpected::UnknownType { type_url: "x\ny".into(), resources: 1 };
    assert!(unknown.to_string().contains("\"x\\ny\""), "{unknown}");
}

#[test]
fn a_held_resource_costs_its_name_and_32_bytes() {
    assert!(size_of::<(ResourceName, resource::Version)>() <= 32);
}

mod on_demand;
