//! A service that is asked for comes with its workloads.

use super::*;

/// Names in the order in which they stand.
fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

/// A service with two addresses and two pods, one of which is of another service too; and a stranger.
fn mesh() -> Script {
    let mut script = Script::new();
    script.set_belonging(&[
        ("shop/cart", "svc", "net/10.9.0.1 net/fd00::9", ""),
        ("shop/other", "svc", "net/10.9.0.2", ""),
        ("pod1", "1", "net/10.1.0.1", "shop/cart"),
        ("pod2", "1", "net/10.1.0.2", "shop/cart shop/other"),
        ("stranger", "1", "net/10.1.0.3", ""),
    ]);
    script.say(nothing_at_first());
    assert_eq!(script.told(), "empty");
    script
}

#[test]
fn an_address_of_a_service_brings_its_endpoints_before_it() {
    for key in ["net/10.9.0.1", "net/fd00::9", "shop/cart"] {
        let mut script = mesh();
        script.say(change(key, ""));
        let response = script.hear().unwrap();
        assert_eq!(names(&response), ["pod1", "pod2", "shop/cart"], "{key}");
        let service = response.resources.last().unwrap();
        assert_eq!(
            service.aliases,
            ["net/10.9.0.1", "net/fd00::9"],
            "who waits for an address finds it here"
        );
        script.say(answer(&response));
        assert_eq!(script.told(), "nothing");
    }
}

#[test]
fn an_address_of_a_pod_brings_the_pod_alone() {
    let mut script = mesh();
    script.say(change("net/10.1.0.1", ""));
    assert_eq!(script.told(), "pod1=1");
    script.set_belonging(&[("pod3", "1", "", "shop/cart")]);
    assert_eq!(script.told(), "nothing");
}

#[test]
fn endpoints_are_followed_as_they_come_change_move_and_go() {
    let mut script = mesh();
    script.say(change("net/10.9.0.1", ""));
    script.told();
    script.set_belonging(&[("pod3", "1", "net/10.1.0.9", "shop/cart")]);
    assert_eq!(script.told(), "pod3=1");
    script.set_belonging(&[("pod1", "2", "net/10.1.0.1", "shop/cart")]);
    assert_eq!(script.told(), "pod1=2");
    script.remove("pod1");
    assert_eq!(script.told(), "-pod1");
    script.set_belonging(&[("stranger", "2", "net/10.1.0.3", "shop/cart")]);
    assert_eq!(script.told(), "stranger=2", "it has become an endpoint");
    script.set_belonging(&[("stranger", "3", "net/10.1.0.3", "")]);
    assert_eq!(
        script.told(),
        "stranger=3",
        "the client has it as an endpoint, so it must hear that it is none"
    );
    script.set_belonging(&[("pod4", "1", "", "shop/other")]);
    assert_eq!(script.told(), "nothing", "nobody asked for that service");
    script.remove("shop/cart");
    assert_eq!(script.told(), "-shop/cart");
    script.set_belonging(&[("pod5", "1", "", "shop/cart")]);
    assert_eq!(script.told(), "nothing", "there is no service that it is an endpoint of");
}

#[test]
fn a_service_that_appears_later_brings_those_that_were_there_before() {
    let mut script = mesh();
    script.say(change("net/10.9.0.3", ""));
    assert_eq!(script.told(), "-net/10.9.0.3");
    script.set_belonging(&[("early", "1", "", "shop/late")]);
    assert_eq!(script.told(), "nothing");
    script.set_belonging(&[("shop/late", "svc", "net/10.9.0.3", "")]);
    let response = script.hear().unwrap();
    assert_eq!(names(&response), ["early", "shop/late"]);
}

#[test]
fn what_is_there_already_is_not_sent_again() {
    let mut script = mesh();
    script.say(change("shop/other net/10.1.0.1", ""));
    assert_eq!(script.told(), "pod1=1 pod2=1 shop/other=svc");
    script.say(change("net/10.9.0.1", ""));
    assert_eq!(script.told(), "shop/cart=svc");
    script.say(change("pod1 shop/cart", ""));
    assert_eq!(script.told(), "pod1=1 shop/cart=svc", "but what is asked for by its own name is, and once");
}

#[test]
fn a_client_that_comes_back_hears_what_became_of_its_endpoints() {
    let mut script = mesh();
    script.say(change("net/10.9.0.1", ""));
    let response = script.hear().unwrap();
    let held = response.resources.iter().map(|held| (held.name.clone(), held.version.clone())).collect();
    script.remove("pod1");
    script.set_belonging(&[("pod3", "1", "", "shop/cart")]);
    script.reconnect();
    script.say(first("* net/10.9.0.1 shop/cart pod1 pod2", "*", held));
    assert_eq!(script.told(), "-pod1 pod3=1");
    script.set_belonging(&[("pod4", "1", "", "shop/cart")]);
    assert_eq!(script.told(), "pod4=1");
}

#[test]
fn who_was_left_behind_finds_new_endpoints_too() {
    let mut script = Script::with(1, Settings::default());
    script.set_belonging(&[("shop/cart", "svc", "vip", ""), ("pod1", "1", "", "shop/cart")]);
    script.say(first("vip", "", HashMap::new()));
    let response = script.hear().unwrap();
    script.set_belonging(&[("pod2", "1", "", "shop/cart"), ("a", "1", "", ""), ("b", "1", "", "")]);
    ["pod1", "a", "b"].into_iter().for_each(|name| script.remove(name));
    script.say(answer(&response));
    assert_eq!(script.told(), "-pod1 pod2=1");
}

#[test]
fn a_service_that_is_let_go_is_no_reason_any_more() {
    let mut script = mesh();
    script.say(change("net/10.9.0.1", ""));
    script.told();
    script.say(change("", "net/10.9.0.1 shop/cart"));
    script.set_belonging(&[("pod3", "1", "", "shop/cart"), ("pod1", "2", "net/10.1.0.1", "shop/cart")]);
    assert_eq!(script.told(), "pod1=2", "what the client has is followed, nothing new is sent");
}

#[test]
fn thousands_of_endpoints_come_in_pieces_and_each_once() {
    let mut script = Script::with(10, Settings { response_bytes: 4096, ..Settings::default() });
    let pods: Vec<String> = (0..20_000).map(|n| format!("pod{n:05}")).collect();
    let all: Vec<_> = pods.iter().map(|name| (name.as_str(), "1", "", "shop/cart")).collect();
    script.set_belonging(&all);
    script.set_belonging(&[("shop/cart", "svc", "vip", "")]);
    script.say(first("vip shop/cart pod00007", "", HashMap::new()));
    let mut heard = Vec::new();
    while let Some(response) = script.hear() {
        assert!(response.resources.iter().map(Message::encoded_len).sum::<usize>() <= 4096);
        heard.extend(response.resources.iter().map(|resource| resource.name.clone()));
        script.say(answer(&response));
    }
    assert_eq!(heard.pop().as_deref(), Some("shop/cart"), "the service comes when its endpoints are there");
    heard.sort();
    assert!(heard == pods, "each once");
}
