//! Changes of different types reach a client in the order in which they happened.

use super::*;

fn resource(kind: Kind, name: &str, body: &str) -> Resource {
    Resource {
        kind,
        name: name.into(),
        aliases: vec![format!("net/{name}").into()],
        belongs_to: Vec::new(),
        node: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn of_policies(subscribe: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: AUTHORIZATION.to_owned(), ..change(subscribe, "") }
}

impl Script {
    /// A client of both types, addresses first, that is up to date.
    fn of_both(addresses: DeltaDiscoveryRequest) -> Self {
        let mut script = Self::new();
        script.say(addresses);
        script.say(of_policies(""));
        assert_eq!((script.told(), script.told()), ("empty".to_owned(), "empty".to_owned()));
        script
    }

    fn apply(&mut self, set: Vec<Resource>, removed: Vec<(Kind, Arc<str>)>) {
        self.writer.apply(Changes { set, removed });
    }
}

#[test]
fn a_workload_comes_after_the_policy_that_it_names() {
    let mut script = Script::of_both(wildcard());
    script.apply(
        vec![resource(Kind::Authorization, "policy", "1"), resource(Kind::Address, "pod", "names it")],
        Vec::new(),
    );
    assert_eq!((script.told(), script.told()), ("policy=1".to_owned(), "pod=names it".to_owned()));
    assert_eq!(script.told(), "nothing");
}

#[test]
fn a_workload_waits_while_the_policies_last_response_is_not_answered() {
    let mut script = Script::of_both(wildcard());
    script.apply(vec![resource(Kind::Authorization, "first", "1")], Vec::new());
    let unanswered = script.hear().expect("the first policy");
    script.apply(
        vec![resource(Kind::Authorization, "second", "1"), resource(Kind::Address, "pod", "names it")],
        Vec::new(),
    );
    assert!(script.hear().is_none(), "the second policy cannot be sent yet, so neither can the workload");
    script.say(answer(&unanswered));
    assert_eq!((script.told(), script.told()), ("second=1".to_owned(), "pod=names it".to_owned()));
}

#[test]
fn a_policy_goes_after_the_last_workload_that_named_it() {
    let mut script = Script::of_both(wildcard());
    script.apply(
        vec![resource(Kind::Authorization, "policy", "1"), resource(Kind::Address, "pod", "names it")],
        Vec::new(),
    );
    script.told();
    let unanswered = script.hear().expect("the workload");
    let gone = vec![(Kind::Authorization, "policy".into())];
    script.apply(vec![resource(Kind::Address, "pod", "names nothing")], gone);
    assert!(script.hear().is_none(), "the workload still names it for all that the client knows");
    script.say(answer(&unanswered));
    assert_eq!((script.told(), script.told()), ("pod=names nothing".to_owned(), "-policy".to_owned()));
}

#[test]
fn what_the_client_does_not_get_holds_up_nothing() {
    let mut script = Script::of_both(nothing_at_first());
    for round in ["1", "2"] {
        script.apply(
            vec![resource(Kind::Address, "pod", round), resource(Kind::Authorization, "policy", round)],
            Vec::new(),
        );
        assert_eq!(script.told(), format!("policy={round}"));
    }
}

#[test]
fn an_answer_to_a_demand_waits_for_the_policies_before_it() {
    let mut script = Script::of_both(nothing_at_first());
    script.apply(vec![resource(Kind::Authorization, "first", "1")], Vec::new());
    let unanswered = script.hear().expect("the first policy");
    script.apply(
        vec![
            resource(Kind::Address, "stranger", "1"),
            resource(Kind::Authorization, "second", "1"),
            resource(Kind::Address, "pod", "names it"),
        ],
        Vec::new(),
    );
    script.say(change("net/pod", ""));
    assert!(script.hear().is_none(), "the policy cannot be sent yet");
    script.say(answer(&unanswered));
    assert_eq!((script.told(), script.told()), ("second=1".to_owned(), "pod=names it".to_owned()));
}
