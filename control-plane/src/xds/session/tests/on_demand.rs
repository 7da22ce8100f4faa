//! Single resources, by name and alias.

use super::*;

#[test]
fn nothing_at_first_then_what_is_asked_for() {
    let mut script = Script::new();
    script.set_aliased(&[("a", "1", "net/10.0.0.1"), ("b", "1", "net/10.0.0.2")]);
    script.say(nothing_at_first());
    assert_eq!(script.told(), "empty");
    script.say(change("a", ""));
    assert_eq!(script.told(), "a=1");
    script.set(&[("c", "1")]);
    assert_eq!(script.told(), "nothing", "nobody asked for it");
    script.say(change("net/10.0.0.2", ""));
    assert_eq!(script.told(), "b=1");
    script.set_aliased(&[("a", "2", "net/10.0.0.1"), ("b", "2", "net/10.0.0.2")]);
    assert_eq!(script.told(), "a=2 b=2");
    script.remove("a");
    assert_eq!(script.told(), "-a");
    script.set(&[("a", "3")]);
    assert_eq!(script.told(), "a=3", "it is still wanted");
}

#[test]
fn what_is_not_there_is_said_to_be_gone_and_comes_when_it_appears() {
    let mut script = Script::new();
    script.say(nothing_at_first());
    script.told();
    script.say(change("a net/10.0.0.2", ""));
    assert_eq!(script.told(), "-a -net/10.0.0.2");
    script.set_aliased(&[("a", "1", ""), ("b", "1", "net/10.0.0.1 net/10.0.0.2")]);
    assert_eq!(script.told(), "a=1 b=1");
}

#[test]
fn one_alias_may_mean_many() {
    let mut script = Script::with(10, Settings { response_bytes: 100, ..Settings::default() });
    let names: Vec<String> = (0..50).map(|n| format!("pod{n:02}")).collect();
    let pods: Vec<_> = names.iter().map(|name| (name.as_str(), "1", "shop/cart")).collect();
    script.set_aliased(&pods);
    script.set_aliased(&[("shop/cart", "svc", "pod00")]);
    script.say(first("shop/cart", "", HashMap::new()));
    let mut heard = Vec::new();
    while let Some(response) = script.hear() {
        heard.extend(response.resources.iter().map(|resource| resource.name.clone()));
        script.say(answer(&response));
    }
    heard.sort();
    assert_eq!(heard.len(), 51, "each once, although two are aliases of each other: {heard:?}");
    heard.dedup();
    assert_eq!(heard.len(), 51);
}

#[test]
fn what_is_unsubscribed_changes_unheard() {
    let mut script = Script::new();
    script.set(&[("a", "1"), ("b", "1")]);
    script.say(first("a b", "", HashMap::new()));
    assert_eq!(script.told(), "a=1 b=1");
    script.say(change("", "a"));
    assert_eq!(script.told(), "nothing");
    script.set(&[("a", "2"), ("b", "2")]);
    assert_eq!(script.told(), "b=2");
    script.remove("a");
    assert_eq!(script.told(), "nothing");
    script.say(change("a", ""));
    assert_eq!(script.told(), "-a");
    script.say(change("b", ""));
    assert_eq!(script.told(), "b=2", "what is asked for again is sent again");
    script.say(change("b", "b"));
    assert_eq!(script.told(), "nothing");
    script.set(&[("b", "3")]);
    assert_eq!(script.told(), "nothing", "within one message unsubscribing comes last");
}

#[test]
fn what_came_by_an_alias_is_followed_by_its_name() {
    let mut script = Script::new();
    script.set_aliased(&[("a", "1", "ip1")]);
    script.say(first("ip1", "", HashMap::new()));
    assert_eq!(script.told(), "a=1");
    script.set_aliased(&[("a", "2", "ip2")]);
    assert_eq!(script.told(), "a=2", "the client has it, so it must hear that it moved");
    script.say(change("", "ip1"));
    script.set_aliased(&[("a", "3", "ip2")]);
    assert_eq!(script.told(), "a=3");
    script.say(change("", "a"));
    script.set_aliased(&[("a", "4", "ip2")]);
    assert_eq!(script.told(), "-a", "they crossed, so the client may have kept it for an alias that it lost");
    script.set_aliased(&[("a", "5", "ip2")]);
    assert_eq!(script.told(), "nothing");
}

#[test]
fn a_name_that_is_left_may_be_wanted_by_an_alias() {
    let mut script = Script::new();
    script.set_aliased(&[("a", "1", "ip")]);
    script.say(first("a ip", "", HashMap::new()));
    assert_eq!(script.told(), "a=1");
    script.say(change("", "a"));
    assert_eq!(script.told(), "nothing");
    script.remove("a");
    assert_eq!(script.told(), "-a");
}

#[test]
fn the_wildcard_can_come_and_go() {
    let mut script = Script::new();
    script.set(&[("a", "1"), ("b", "1")]);
    script.say(first("a", "", HashMap::new()));
    assert_eq!(script.told(), "a=1");
    script.say(change("*", ""));
    assert_eq!(script.told(), "b=1", "a is there already");
    script.say(change("none", ""));
    assert_eq!(script.told(), "-none");
    script.say(change("", "*"));
    assert_eq!(script.told(), "-none a=1", "what stays wanted is said again");
    script.set(&[("b", "2"), ("c", "1")]);
    assert_eq!(script.told(), "nothing");
}

#[test]
fn keys_are_bounded() {
    let mut script = Script::with(10, Settings { keys: 3, ..Settings::default() });
    script.say(first("a b c", "", HashMap::new()));
    script.say(change("d", "a"));
    let end = script.session.received(change("e", ""), script.now).unwrap_err();
    assert_eq!(end.status().code(), Code::ResourceExhausted);
    assert!(end.to_string().contains("at most 3"), "{end}");
}
