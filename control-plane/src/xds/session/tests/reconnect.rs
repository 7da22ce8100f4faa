//! Coming back with what is held, and being left too far behind.

use super::*;

/// The versions of what the client was told, as it would say them.
fn versions(response: &DeltaDiscoveryResponse) -> HashMap<String, String> {
    response.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect()
}

fn three() -> (Script, HashMap<String, String>) {
    let mut script = Script::new();
    script.set(&[("a", "1"), ("b", "1"), ("c", "1")]);
    script.say(wildcard());
    let held = versions(&script.hear().unwrap());
    assert_eq!(held.len(), 3);
    (script, held)
}

#[test]
fn only_what_changed_and_what_is_gone_comes_again() {
    let (mut script, held) = three();
    script.set(&[("b", "2"), ("d", "1")]);
    script.remove("c");
    script.reconnect();
    script.say(first("", "", held));
    assert_eq!(script.told(), "-c b=2 d=1");
    assert_eq!(script.told(), "nothing");
}

#[test]
fn nothing_new_is_answered_with_nothing() {
    let (mut script, held) = three();
    script.reconnect();
    script.say(first("", "", held));
    assert_eq!(script.told(), "empty");
    assert_eq!(script.told(), "nothing");
}

#[test]
fn a_restarted_controller_recognises_what_it_gave() {
    let (_, held) = three();
    let mut script = Script::new();
    script.set(&[("c", "1"), ("a", "1"), ("x", "1")]);
    script.say(first("", "", held));
    assert_eq!(script.told(), "-b x=1");
}

#[test]
fn versions_of_another_server_count_as_old() {
    let mut script = Script::new();
    script.set(&[("a", "1")]);
    script.say(first("", "", HashMap::from([("a".to_owned(), "2024-05-01T10:00:00Z/7".to_owned())])));
    assert_eq!(script.told(), "a=1");
}

#[test]
fn changes_during_the_comparison_are_told_once_and_rightly() {
    let settings = Settings { response_bytes: 1, ..Settings::default() };
    let mut script = Script::with(1000, settings);
    script.set(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")]);
    let gone = ["x", "y", "z"].map(|name| (name.to_owned(), "old".to_owned()));
    script.say(first("", "", HashMap::from(gone)));
    assert_eq!(script.told(), "a=1");
    script.set(&[("a", "2"), ("x", "1"), ("c", "2")]);
    script.remove("b");
    let heard: Vec<_> = (0..20).map(|_| script.told()).take_while(|told| told != "nothing").collect();
    let (vanished, log) = (heard[1..3].to_vec(), heard[3..].to_vec());
    assert_eq!(heard[0], "d=1");
    assert!(vanished.contains(&"-y".to_owned()) && vanished.contains(&"-z".to_owned()), "{heard:?}");
    assert_eq!(log, ["a=2", "x=1", "c=2", "-b"]);
}

#[test]
fn single_resources_are_compared_too() {
    let mut script = Script::new();
    script.set_aliased(&[("a", "1", "ip"), ("b", "1", ""), ("c", "1", "")]);
    script.say(first("ip b c", "", HashMap::new()));
    let held = versions(&script.hear().unwrap());
    assert_eq!(held.len(), 3);
    script.set(&[("b", "2")]);
    script.remove("c");
    script.reconnect();
    script.say(first("ip a b c * new", "*", held.clone()));
    assert_eq!(script.told(), "-c -new b=2");
    script.reconnect();
    script.say(first("*", "*", held));
    assert_eq!(script.told(), "-c b=2", "what is held stays wanted, also if it is not asked for");
    script.set_aliased(&[("a", "2", "ip")]);
    assert_eq!(script.told(), "a=2");
}

#[test]
fn who_missed_removals_compares_anew() {
    let mut script = Script::with(2, Settings::default());
    script.set(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")]);
    script.say(wildcard());
    let response = script.hear().unwrap();
    let held = versions(&response);
    script.say(answer(&response));
    for name in ["a", "b"] {
        script.remove(name);
    }
    let response = script.hear().expect("two are remembered");
    assert_eq!(short(&response), "-a -b");
    for name in ["c", "d"] {
        script.remove(name);
    }
    script.set(&[("e", "1")]);
    script.remove("e");
    script.say(answer(&response));
    let end = script.session.poll(&script.store, script.now).unwrap_err();
    assert_eq!((&end, end.status().code()), (&End::Behind(ADDRESS.into()), Code::Aborted));
    script.reconnect();
    script.say(first("", "", held));
    assert_eq!(script.told(), "-a -b -c -d");
}

#[test]
fn on_demand_missed_removals_are_found_in_what_was_sent() {
    let mut script = Script::with(1, Settings::default());
    script.set(&[("a", "1"), ("b", "1"), ("c", "1")]);
    script.say(first("a b", "", HashMap::new()));
    let response = script.hear().unwrap();
    for name in ["a", "b", "c"] {
        script.remove(name);
    }
    script.set(&[("b", "2")]);
    script.say(answer(&response));
    assert_eq!(script.told(), "-a b=2");
    assert_eq!(script.told(), "nothing");
}
