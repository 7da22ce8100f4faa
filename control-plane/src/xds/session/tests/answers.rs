//! First answers, ACK and NACK, one response in flight, and what is wrong with a request.

use super::*;

#[test]
fn everything_comes_then_what_changes_then_what_goes() {
    let mut script = Script::new();
    script.set(&[("a", "1"), ("b", "1")]);
    script.say(wildcard());
    assert_eq!(script.told(), "a=1 b=1");
    assert_eq!(script.told(), "nothing");
    script.set(&[("a", "2"), ("b", "1")]);
    assert_eq!(script.told(), "a=2");
    script.remove("b");
    script.remove("never there");
    assert_eq!(script.told(), "-b");
    script.set(&[("b", "1")]);
    assert_eq!(script.told(), "b=1");
}

#[test]
fn each_type_is_answered_once_even_with_nothing() {
    let mut script = Script::new();
    script.say(wildcard());
    script.say(DeltaDiscoveryRequest { type_url: AUTHORIZATION.to_owned(), ..change("", "") });
    let types: Vec<_> = [script.hear().unwrap(), script.hear().unwrap()]
        .into_iter()
        .inspect(|response| assert_eq!(short(response), "empty"))
        .map(|response| response.type_url)
        .collect();
    assert_eq!(types, [ADDRESS, AUTHORIZATION]);
    assert!(script.hear().is_none());
}

#[test]
fn nothing_is_answered_before_the_store_is_complete() {
    let (mut writer, store) = store_remembering(10);
    let mut session = Session::new(1, Settings::default(), Arc::new(Everything), None);
    let now = Instant::now();
    let held = HashMap::from([("a".to_owned(), "old".to_owned())]);
    session.received(first("", "", held), now).unwrap();
    assert!(matches!(session.poll(&store, now).unwrap(), Step::Idle));
    writer.complete();
    let Step::Send(response) = session.poll(&store, now).unwrap() else { panic!("it is time") };
    assert_eq!(short(&decode(response)), "-a");
}

#[test]
fn one_response_is_in_flight_and_changes_wait_and_merge() {
    let mut script = Script::new();
    script.say(wildcard());
    let response = script.hear().unwrap();
    for body in ["1", "2", "3"] {
        script.set(&[("a", body), ("b", body)]);
        assert!(script.hear().is_none());
    }
    script.remove("b");
    assert_eq!(script.say(answer(&response)), Received::Ack);
    assert_eq!(script.told(), "-b a=3");
}

#[test]
fn a_nack_is_kept_and_what_was_refused_is_not_repeated() {
    let mut script = Script::new();
    script.set(&[("a", "bad")]);
    script.say(wildcard());
    let response = script.hear().unwrap();
    let long = format!("a: cannot be used {}", "x".repeat(5000));
    let Received::Nack(nack) = script.say(refusal(&response, &long)) else { panic!("it is a NACK") };
    assert!(
        nack.nonce == response.nonce && nack.message.starts_with("a: cannot") && nack.message.len() == 1024
    );
    assert_eq!(script.told(), "nothing");
    script.set(&[("a", "good")]);
    assert_eq!(script.told(), "a=good");
    let report = script.session.reports(&script.store, script.now).remove(0);
    assert_eq!((report.nacks, report.acks, report.responses, report.resources), (1, 1, 2, 1));
    assert_eq!((report.sent, report.acked, report.pending), (2, 2, false));
    assert_eq!(report.last_nack, Some(nack), "it stays visible");
}

#[test]
fn an_answer_to_something_else_is_no_answer() {
    let mut script = Script::new();
    script.say(wildcard());
    let old = script.hear().unwrap();
    script.reconnect();
    script.say(wildcard());
    let new = script.hear().unwrap();
    assert_ne!(old.nonce, new.nonce);
    script.set(&[("a", "1")]);
    assert_eq!(script.say(answer(&old)), Received::Stale);
    assert_eq!(script.say(refusal(&old, "late")), Received::Stale);
    assert!(script.hear().is_none(), "the response is still in flight");
    assert_eq!(script.say(answer(&new)), Received::Ack);
    assert_eq!(script.say(answer(&new)), Received::Stale, "and only once");
    assert_eq!(script.told(), "a=1");
    let report = script.session.reports(&script.store, script.now).remove(0);
    assert_eq!((report.stale, report.nacks), (3, 0));
}

#[test]
fn who_does_not_answer_is_given_up_at_the_deadline() {
    let mut script = Script::new();
    script.say(wildcard());
    assert_eq!(script.session.next_deadline(), None);
    let response = script.hear().unwrap();
    let deadline = script.session.next_deadline().unwrap();
    assert_eq!(deadline - script.now, Duration::from_secs(300));
    script.session.tick(deadline - Duration::from_millis(1)).unwrap();
    let end = script.session.tick(deadline).unwrap_err();
    assert_eq!(end.status().code(), Code::DeadlineExceeded);
    assert!(end.to_string().contains(ADDRESS) && end.to_string().contains(&response.nonce), "{end}");
    script.say(answer(&response));
    script.session.tick(deadline + Duration::from_secs(3600)).unwrap();
    assert_eq!(script.session.next_deadline(), None, "an idle client may be idle for ever");
}

/// Settings with small responses, so that little is much.
fn small() -> Settings {
    Settings { response_bytes: 64 * 1024, ..Settings::default() }
}

/// More than 5 MB of a kind.
fn fill(script: &mut Script, kind: Kind) -> Vec<String> {
    let mut all: Vec<(String, String)> = (0..5000).map(|n| (format!("name{n}"), "x".repeat(1000))).collect();
    all.push(("large".to_owned(), "y".repeat(100_000)));
    let set = all.iter().map(|(name, body)| resource(kind, name, body));
    script.writer.apply(Changes { set: set.collect(), removed: Vec::new() });
    let mut names: Vec<String> = all.into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

fn resource(kind: Kind, name: &str, body: &str) -> Resource {
    let body = Bytes::copy_from_slice(body.as_bytes());
    Resource { kind, name: name.into(), aliases: Vec::new(), belongs_to: Vec::new(), node: None, body }
}

fn policies(request: DeltaDiscoveryRequest) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: AUTHORIZATION.to_owned(), ..request }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let mut names: Vec<String> = response.resources.iter().map(|resource| resource.name.clone()).collect();
    names.sort();
    names
}

fn hear_all(script: &mut Script) -> Vec<DeltaDiscoveryResponse> {
    let mut heard = Vec::new();
    while let Some(response) = script.hear() {
        script.say(answer(&response));
        heard.push(response);
    }
    heard
}

#[test]
fn a_large_state_comes_in_small_responses() {
    let mut script = Script::with(10, small());
    let all = fill(&mut script, Kind::Address);
    script.say(wildcard());
    let heard = hear_all(&mut script);
    for response in &heard {
        let length = response.encoded_len();
        assert!(length <= 65 * 1024 || response.resources.len() == 1, "{length}");
    }
    assert!((80..120).contains(&heard.len()), "{}", heard.len());
    let mut heard: Vec<String> = heard.iter().flat_map(names).collect();
    heard.sort();
    assert_eq!(heard, all);
}

#[test]
fn policies_come_last_and_whole_because_clients_start_with_them() {
    let mut script = Script::with(10, small());
    let all = [Kind::Address, Kind::Authorization].map(|kind| fill(&mut script, kind));
    script.say(wildcard());
    script.say(policies(wildcard()));
    let mut heard = hear_all(&mut script);
    let last = heard.pop().expect("the policies");
    assert!(heard.len() > 80 && heard.iter().all(|response| response.type_url == ADDRESS));
    let mut before: Vec<String> = heard.iter().flat_map(names).collect();
    before.sort();
    assert_eq!(
        (before, last.type_url.as_str(), names(&last)),
        (all[0].clone(), AUTHORIZATION, all[1].clone())
    );
    assert_eq!(script.rooms.available_permits(), 1, "room is given back");
}

#[test]
fn what_changes_while_the_first_policies_wait_for_room_comes_after_them() {
    let mut script = Script::with(10, small());
    let all = fill(&mut script, Kind::Authorization);
    script.say(policies(wildcard()));
    let step = script.session.poll(&script.store, script.now).unwrap();
    assert!(matches!(step, Step::Idle) && script.session.waits_for_room(), "it is longer than others");
    let set =
        [("name8", "new"), ("another", "1")].map(|(name, body)| resource(Kind::Authorization, name, body));
    let removed = vec![(Kind::Authorization, "name7".into())];
    script.writer.apply(Changes { set: set.into(), removed });
    let first = script.hear().expect("the first answer");
    assert_eq!(names(&first), all);
    assert!(first.removed_resources.is_empty());
    script.say(answer(&first));
    assert_eq!(script.told(), "-name7 another=1 name8=new");
    assert_eq!(script.told(), "nothing");
}

#[test]
fn a_first_answer_without_room_holds_nobody_else_up() {
    let mut script = Script::with(10, small());
    fill(&mut script, Kind::Authorization);
    script.say(policies(wildcard()));
    assert!(matches!(script.session.poll(&script.store, script.now).unwrap(), Step::Idle));
    script.say(wildcard());
    let Step::Send(other) = script.session.poll(&script.store, script.now).unwrap() else {
        panic!("no answer")
    };
    assert_eq!(*other.type_url, *ADDRESS);
    assert!(script.session.waits_for_room());
    // It wants no more than one resource by now.
    script.say(policies(change("large", "*")));
    script.give_room();
    assert_eq!(names(&script.hear().expect("an answer")), ["large"]);
}

#[test]
fn what_no_client_takes_at_once_comes_in_parts() {
    let mut script = Script::with(10, Settings { first_response_bytes: 1024 * 1024, ..small() });
    let all = fill(&mut script, Kind::Authorization);
    script.say(policies(wildcard()));
    let heard = hear_all(&mut script);
    let lengths: Vec<usize> = heard.iter().map(Message::encoded_len).collect();
    assert!((1000 * 1024..1025 * 1024).contains(&lengths[0]) && lengths.len() > 50, "{lengths:?}");
    let mut rest =
        heard[1..].iter().filter(|response| response.resources.len() > 1).map(Message::encoded_len);
    assert!(rest.all(|length| length <= 65 * 1024), "{lengths:?}");
    let mut heard: Vec<String> = heard.iter().flat_map(names).collect();
    heard.sort();
    assert_eq!(heard, all);
}

#[test]
fn policies_wait_neither_for_unknown_types_nor_for_single_questions() {
    let mut script = Script::new();
    let set = vec![resource(Kind::Authorization, "policy", "1"), resource(Kind::Address, "pod", "names it")];
    script.writer.apply(Changes { set, removed: Vec::new() });
    script.say(first("* pod missing", "", HashMap::new()));
    script.say(policies(wildcard()));
    script.say(DeltaDiscoveryRequest { type_url: "type.googleapis.com/other".to_owned(), ..wildcard() });
    let heard = hear_all(&mut script);
    let policies: Vec<String> =
        heard.iter().filter(|response| response.type_url == AUTHORIZATION).flat_map(names).collect();
    assert_eq!(policies, ["policy"]);
    assert_eq!(heard.len(), 3, "each type once: {heard:?}");
}

#[test]
fn who_goes_on_reading_has_time_to_answer() {
    let mut script = Script::new();
    script.say(wildcard());
    let response = script.hear().expect("the first answer");
    let later = script.session.next_deadline().expect("an answer is waited for");
    script.session.goes_on(later);
    script.session.tick(later).unwrap();
    let deadline = script.session.next_deadline().unwrap();
    assert_eq!(deadline, later + Settings::default().answer_deadline);
    assert!(script.session.tick(deadline).unwrap_err().to_string().contains(&response.nonce));
}

#[test]
fn an_unknown_type_is_answered_with_nothing() {
    let mut script = Script::new();
    let unknown =
        |request| DeltaDiscoveryRequest { type_url: "type.googleapis.com/other".to_owned(), ..request };
    script.say(unknown(first("a b", "", HashMap::from([("c".to_owned(), "1".to_owned())]))));
    assert_eq!(script.told(), "-a -b -c");
    script.say(unknown(change("d", "")));
    assert_eq!(script.told(), "-d");
    script.say(wildcard());
    assert_eq!(script.told(), "empty", "the known are unharmed");
    for n in 2..16 {
        script.say(DeltaDiscoveryRequest { type_url: n.to_string(), ..change("", "") });
    }
    let one_more = DeltaDiscoveryRequest { type_url: "x".to_owned(), ..change("", "") };
    let end = script.session.received(one_more, script.now).unwrap_err();
    assert_eq!((&end, end.status().code()), (&End::Types(17), Code::ResourceExhausted));
}

#[test]
fn a_client_says_who_it_is_and_its_token_agrees() {
    let receive = |node: Option<proto::Node>, shown: Option<&str>| {
        let scope = Arc::new(Everything);
        let mut session = Session::new(1, Settings::default(), scope, shown.map(Arc::from));
        let request = DeltaDiscoveryRequest { node, ..wildcard() };
        session.received(request, Instant::now())?;
        Ok::<_, End>(session.node().unwrap().name.as_deref().map(str::to_owned))
    };
    assert_eq!(receive(None, Some("n1")).unwrap_err(), End::NoNode);
    assert_eq!(receive(Some(node(Some("n1"))), Some("n1")), Ok(Some("n1".to_owned())));
    assert_eq!(receive(Some(node(None)), Some("n1")), Ok(Some("n1".to_owned())));
    assert_eq!(receive(Some(proto::Node::default()), None), Ok(None));
    assert_eq!(receive(Some(node(Some("n2"))), None), Ok(Some("n2".to_owned())));
    let end = receive(Some(node(Some("n2"))), Some("n1")).unwrap_err();
    assert_eq!(end.status().code(), Code::PermissionDenied);
    let mut odd = node(None);
    let number = Value { kind: Some(value::Kind::NumberValue(1.0)) };
    odd.metadata.as_mut().unwrap().fields.insert("NODE_NAME".to_owned(), number);
    assert_eq!(receive(Some(odd), Some("n1")).unwrap_err().status().code(), Code::InvalidArgument);
}

#[test]
fn a_request_names_its_type() {
    let mut script = Script::new();
    let request = DeltaDiscoveryRequest { type_url: String::new(), ..wildcard() };
    assert_eq!(script.session.received(request, script.now), Err(End::NoType));
}
