//! What "everything" means when a node does not get everything.

use super::*;

/// What belongs to no node, or to the client's.
struct OwnNode;

impl Scope for OwnNode {
    fn includes(&self, client: Option<&str>, resource: Facts<'_>) -> bool {
        assert_eq!(resource.kind, Kind::Address);
        resource.node.is_none() || resource.node == client
    }
}

fn script() -> Script {
    let mut script = Script::new();
    script.scope = Arc::new(OwnNode);
    script.reconnect();
    script
}

fn place(script: &mut Script, name: &str, node: &str) {
    let resource = Resource {
        kind: Kind::Address,
        name: name.into(),
        aliases: Vec::new(),
        belongs_to: Vec::new(),
        node: Some(node.into()),
        body: Bytes::from(node.to_owned()),
    };
    script.writer.apply(Changes { set: vec![resource], removed: Vec::new() });
}

#[test]
fn a_node_gets_its_own_and_asks_for_others() {
    let mut script = script();
    place(&mut script, "mine", "n1");
    place(&mut script, "other", "n2");
    script.set(&[("service", "1")]);
    script.say(wildcard());
    assert_eq!(script.told(), "mine=n1 service=1");
    place(&mut script, "third", "n3");
    assert_eq!(script.told(), "nothing");
    script.say(change("other", ""));
    assert_eq!(script.told(), "other=n2");
    script.remove("other");
    assert_eq!(script.told(), "-other");
}

#[test]
fn what_moves_to_another_node_is_taken_away() {
    let mut script = script();
    place(&mut script, "mine", "n1");
    script.say(wildcard());
    assert_eq!(script.told(), "mine=n1");
    place(&mut script, "mine", "n2");
    assert_eq!(script.told(), "-mine");
    place(&mut script, "mine", "n1");
    assert_eq!(script.told(), "mine=n1");
}

#[test]
fn what_moved_while_away_is_taken_away() {
    let mut script = script();
    place(&mut script, "mine", "n1");
    script.say(wildcard());
    let response = script.hear().unwrap();
    let held = response.resources.iter().map(|held| (held.name.clone(), held.version.clone())).collect();
    place(&mut script, "mine", "n2");
    script.reconnect();
    script.say(first("", "", held));
    assert_eq!(script.told(), "-mine");
}
