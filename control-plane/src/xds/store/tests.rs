use super::*;

fn resource(name: &str, body: &str) -> Resource {
    Resource {
        kind: Kind::Address,
        name: name.into(),
        aliases: vec![format!("net/{name}").into()],
        belongs_to: Vec::new(),
        node: None,
        body: Bytes::from(body.to_owned()),
    }
}

fn set(writer: &mut Writer, name: &str, body: &str) -> u64 {
    writer.apply(Changes { set: vec![resource(name, body)], removed: Vec::new() })
}

fn remove(writer: &mut Writer, name: &str) -> u64 {
    writer.apply(Changes { set: Vec::new(), removed: vec![(Kind::Address, name.into())] })
}

/// The log after a sequence number: "+a" is there, "-a" is gone.
fn after(store: &Store, sequence: u64) -> String {
    store.read(Kind::Address, |table| {
        let words = table.after(sequence).map(|(_, item)| match item {
            Item::Live(entry) => format!("+{}", entry.name),
            Item::Gone(name) => format!("-{name}"),
        });
        words.collect::<Vec<_>>().join(" ")
    })
}

#[test]
fn the_log_has_each_name_once_at_its_latest_change() {
    let (mut writer, store) = store();
    set(&mut writer, "a", "1");
    set(&mut writer, "b", "1");
    set(&mut writer, "a", "2");
    assert_eq!(after(&store, 0), "+b +a");
    assert_eq!(after(&store, 2), "+a");
    remove(&mut writer, "b");
    assert_eq!(after(&store, 0), "+a -b");
    set(&mut writer, "b", "1");
    assert_eq!(after(&store, 0), "+a +b");
    assert_eq!(store.extent(Kind::Address), Extent { resources: 2, latest: 5 });
    assert_eq!(store.extent(Kind::Authorization), Extent::default());
}

#[test]
fn what_does_not_change_is_no_change() {
    let (mut writer, store) = store();
    assert_eq!(set(&mut writer, "a", "1"), 1);
    assert_eq!(set(&mut writer, "a", "1"), 1);
    assert_eq!(remove(&mut writer, "nothing"), 1);
    let both = Changes { set: vec![resource("a", "1")], removed: vec![(Kind::Address, "a".into())] };
    assert_eq!(writer.apply(both), 1, "what is removed and set is set");
    assert_eq!(after(&store, 0), "+a");
}

#[test]
fn the_same_content_has_the_same_version_everywhere() {
    let version = |name: &str, body: &str| Entry::new(resource(name, body)).version;
    assert_eq!(version("a", "1"), version("a", "1"));
    assert_ne!(version("a", "1"), version("a", "2"));
    assert_ne!(version("a", "1"), version("b", "1"));
    assert_ne!(version("a1", ""), version("a", "1"), "the border between name and body counts");
    // Another release must say the same, or every client is sent everything when the controller is upgraded.
    assert_eq!(version_text(version("a", "1")), "928ae5af26f74edd");
    assert_eq!(parse_version(&version_text(7)), Some(7));
    for foreign in ["", "7", "2024-01-01T00:00", "zzzzzzzzzzzzzzzz"] {
        assert_eq!(parse_version(foreign), None);
    }
}

#[test]
fn aliases_follow_their_resources() {
    let (mut writer, store) = store();
    let aliased = |name: &str, alias: &str| Resource { aliases: vec![alias.into()], ..resource(name, "1") };
    let names = |alias: &str| {
        store.read(Kind::Address, |table| {
            table.names_of_alias(alias).iter().map(ToString::to_string).collect()
        })
    };
    let both = vec![aliased("b", "ip"), aliased("a", "ip")];
    writer.apply(Changes { set: both, removed: Vec::new() });
    let found: Vec<String> = names("ip");
    assert_eq!(found, ["a", "b"]);
    writer.apply(Changes { set: vec![aliased("a", "other")], removed: Vec::new() });
    assert_eq!((names("ip"), names("other")), (vec!["b".to_owned()], vec!["a".to_owned()]));
    remove(&mut writer, "b");
    assert!(names("ip").is_empty());
    assert!(store.read(Kind::Address, |table| table.aliases.len()) == 1, "nothing is left behind");
}

#[test]
fn notes_of_what_is_gone_are_bounded() {
    let (mut writer, store) = store_remembering(2);
    for name in ["a", "b", "c", "d"] {
        set(&mut writer, name, "1");
    }
    for name in ["a", "b", "c"] {
        remove(&mut writer, name);
    }
    assert_eq!(after(&store, 0), "+d -b -c");
    store.read(Kind::Address, |table| {
        assert_eq!((table.forgotten(), table.latest(), table.places.len()), (5, 7, 3));
    });
    assert_eq!(store.extent(Kind::Address).resources, 1);
}

#[test]
fn who_waits_is_woken_by_changes_and_by_completion() {
    let (mut writer, store) = store();
    let mut changes = store.changes();
    assert!(!changes.has_changed().unwrap() && !store.is_complete());
    set(&mut writer, "a", "1");
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    writer.complete();
    assert!(changes.has_changed().unwrap() && store.is_complete());
}

#[test]
fn the_encoding_is_an_element_of_a_response() {
    let entry = Entry::new(resource("a", "body"));
    let response = proto::DeltaDiscoveryResponse::decode(entry.encoded.clone()).unwrap();
    let element = &response.resources[0];
    assert_eq!((element.name.as_str(), element.aliases.as_slice()), ("a", &["net/a".to_owned()][..]));
    assert_eq!(parse_version(&element.version), Some(entry.version));
    let any = element.resource.as_ref().unwrap();
    assert_eq!((any.type_url.as_str(), any.value.as_slice()), (Kind::Address.type_url(), &b"body"[..]));
}
