use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
struct Item {
    name: String,
    #[serde(default)]
    ports: Vec<u16>,
    #[serde(default)]
    map: BTreeMap<u16, u16>,
    #[serde(default)]
    flag: Option<bool>,
    #[serde(default)]
    kind: Kind,
    #[serde(default)]
    inner: Option<Inner>,
    #[serde(default)]
    share: f64,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Inner {
    address: std::net::IpAddr,
    count: u32,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
enum Kind {
    #[default]
    Plain,
    Port(u16),
    Empty(),
    Both {
        left: u16,
        right: u16,
    },
}

fn read(text: &str) -> (Vec<Item>, Vec<String>) {
    let mut mistakes = Vec::new();
    let items = match Document::parse(text, "f.yaml") {
        Ok(document) => {
            document.only_keys(&["items"], &mut mistakes);
            let places = document.items("items", &mut mistakes);
            places.iter().filter_map(|place| place.decode(&mut mistakes)).collect()
        }
        Err(mistake) => {
            mistakes.push(mistake);
            Vec::new()
        }
    };
    sort(&mut mistakes);
    (items, mistakes.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let (_, mistakes) = read(text);
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    for (mistake, expected) in mistakes.iter().zip(expected) {
        assert!(mistake.starts_with(expected), "{mistake}\n  does not start with\n{expected}");
    }
}

#[test]
fn values_of_every_kind_are_read() {
    let text = r#"
items:
- name: "80"
  ports: [80, 0x51]
  map: {80: 8080, "81": 8081}
  flag: true
  kind: {Port: 3}
  inner: {address: fd00::1, count: 2}
  share: 0.5
- {name: b, kind: {Empty: []}, flag: null, share: 1}
- {name: c, kind: Plain}
- {name: d, kind: {Both: {left: 1, right: 2}}}
"#;
    let (items, mistakes) = read(text);
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    assert_eq!((items[0].name.as_str(), &items[0].ports[..]), ("80", &[80, 0x51][..]));
    assert_eq!((items[0].map[&81], items[0].flag), (8081, Some(true)));
    assert_eq!(items[0].inner.as_ref().map(|inner| inner.count), Some(2));
    let kinds: Vec<&Kind> = items.iter().map(|item| &item.kind).collect();
    assert_eq!(kinds, [&Kind::Port(3), &Kind::Empty(), &Kind::Plain, &Kind::Both { left: 1, right: 2 }]);
    let json = text_as_json();
    assert_eq!(read(&json).0[0].name, "a\u{e9}\n\u{1F600}");
}

fn text_as_json() -> String {
    "{\n\t\"items\": [\n\t\t{\"name\": \"a\\u00e9\\n\u{1F600}\", \"ports\": [1,2], \"map\": {\"1\": 2}}\n\t]\n}\n".to_owned()
}

#[test]
fn every_mistake_is_found_with_its_place() {
    let (items, _) = read("items:\n- name: a\n  extra: 1\n- name: b\n  ports: [x]\n- name: c\n");
    assert_eq!(items.iter().map(|item| item.name.as_str()).collect::<Vec<_>>(), ["c"]);
    check(
        "items:
- name: a
  extra: 1
  other: {}
- name: 5
  ports: [x, 70000, 80, '81']
  map: {a: 1, 2: b, 070: 3}
  flag: 1
  kind: Round
  inner: {address: 10.0.0.300, extra: 1, count: 1}
- []
- flag: yes
  inner: {}
  kind: {Both: {}}
more: 1
",
        &[
            "f.yaml:3:3: items[0].extra: unknown key \"extra\" (known: name, ports,",
            "f.yaml:4:3: items[0].other: unknown key",
            "f.yaml:5:9: items[1].name: expected a text, found the number 5; put it in quotes",
            "f.yaml:6:11: items[1].ports[0]: expected a whole number, found the text \"x\"",
            "f.yaml:6:14: items[1].ports[1]: invalid value: integer `70000`, expected u16",
            "f.yaml:6:25: items[1].ports[3]: expected a whole number, found the text \"81\"; leave the quotes",
            "f.yaml:7:9: items[1].map.a: expected a key that is a whole number, found \"a\"",
            "f.yaml:7:18: items[1].map.2: expected a whole number, found the text \"b\"",
            "f.yaml:7:21: items[1].map.070: expected a key that is a whole number, found \"070\"",
            "f.yaml:8:9: items[1].flag: expected true or false, found the number 1",
            "f.yaml:9:9: items[1].kind: unknown value \"Round\" (known: Plain, Port, Empty, Both)",
            "f.yaml:10:20: items[1].inner.address: \"10.0.0.300\": invalid IP address syntax",
            "f.yaml:10:32: items[1].inner.extra: unknown key \"extra\" (known: address, count)",
            "f.yaml:11:3: items[2]: expected a mapping, found a list",
            "f.yaml:12:3: items[3]: the key \"name\" is missing",
            "f.yaml:12:9: items[3].flag: expected true or false, found the text \"yes\"",
            "f.yaml:13:10: items[3].inner: the key \"address\" is missing",
            "f.yaml:14:16: items[3].kind.Both: the key \"left\" is missing",
            "f.yaml:14:16: items[3].kind.Both: the key \"right\" is missing",
            "f.yaml:15:1: more: unknown key \"more\" (known: items)",
        ],
    );
}

#[test]
fn mistakes_inside_variants_are_found() {
    check(
        "items:
- {name: a, kind: {Port: x}}
- {name: a, kind: {Port: 1, Plain: []}}
- {name: a, kind: Port}
- {name: a, kind: {Plain: 1}}
- {name: a, kind: {Both: {left: x, more: 1}}}
- {name: a, kind: []}
",
        &[
            "f.yaml:2:26: items[0].kind.Port: expected a whole number",
            "f.yaml:3:19: items[1].kind: expected one key out of Plain, Port, Empty, Both, found a mapping",
            "f.yaml:4:19: items[2].kind: \"Port\": expected a mapping with this word as its key",
            "f.yaml:5:27: items[3].kind.Plain: expected []",
            "f.yaml:6:26: items[4].kind.Both: the key \"right\" is missing",
            "f.yaml:6:33: items[4].kind.Both.left: expected a whole number",
            "f.yaml:6:36: items[4].kind.Both.more: unknown key",
            "f.yaml:7:19: items[5].kind: expected one out of Plain",
        ],
    );
}

#[test]
fn mistakes_of_the_document_are_found_with_those_of_its_items() {
    check(
        "items:
- name: a
  name: b
  ports: &p []
  ports: [1]
- {name: x, map: *p}
- {name: !!str y, [1]: 2, {a: b}: c, flag: 3}
items: []
",
        &[
            "f.yaml:3:3: items[0].name: the key \"name\" stands twice, first in line 2",
            "f.yaml:4:",
            "f.yaml:5:3: items[0].ports: the key \"ports\" stands twice, first in line 4",
            "f.yaml:6:18: items[1].map: aliases are not supported",
            "f.yaml:7:",
            "f.yaml:7:19: items[2][\"?\"]: a key is a plain word",
            "f.yaml:7:27: items[2][\"?\"]: a key is a plain word",
            "f.yaml:7:44: items[2].flag: expected true or false",
            "f.yaml:8:1: items: the key \"items\" stands twice",
        ],
    );
    let aliased = "items:\n- {name: &n a}\n- {name: *n}\n";
    assert_eq!(read(aliased).0.len(), 1, "a value that was not readable is not left out of a whole one");
}

#[test]
fn what_is_no_document_is_one_mistake() {
    for (text, expected) in [
        ("[", "f.yaml:"),
        ("- a", "f.yaml:1:1: the document must be a mapping, found a list"),
        ("a", "f.yaml:1:1: the document must be a mapping, found the text \"a\""),
        ("a: b: c", "f.yaml:1:"),
        ("items: []\n\u{0}items", "f.yaml:2:1: a NUL character is not allowed"),
        ("items: []\n---\nitems: [a]\n", "f.yaml:2:1: a second document starts here"),
        ("items: []\n...\n[\n", "f.yaml:"),
        ("items: []\n...\nmore: 1\n", "f.yaml:3:1: a second document starts here"),
    ] {
        check(text, &[expected]);
    }
    for text in ["", "# nothing\n", "---\n", "{}", "items:\n", "items: null", "--- {items: []}\n..."] {
        check(text, &[]);
    }
}

#[test]
fn a_null_is_no_text_and_no_list() {
    check(
        "items:\n- {name: null, ports: ~}\n- {name: , map: }\n",
        &[
            "f.yaml:2:10: items[0].name: expected a text, found nothing",
            "f.yaml:2:23: items[0].ports: expected a list, found nothing",
            "f.yaml:3:",
            "f.yaml:3:",
        ],
    );
    check("items: 5", &["f.yaml:1:8: items: expected a list, found the number 5"]);
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    for text in ["[".repeat(100_000), "{a: ".repeat(100_000), format!("a:\n {}", "- ".repeat(100_000))] {
        let (_, mistakes) = read(&text);
        // The scanner has a limit of its own for brackets.
        let told = ["deeper than", "recursion limit"].iter().any(|reason| mistakes[0].contains(reason));
        assert!(told && mistakes.len() == 1, "{mistakes:?}");
    }
}

#[test]
fn a_type_that_refuses_whatever_it_reads_ends() {
    #[derive(Debug)]
    struct Never;
    impl<'de> Deserialize<'de> for Never {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom("never"))
        }
    }
    #[derive(Debug, Deserialize)]
    struct Holder {
        #[serde(rename = "never")]
        _never: Vec<Never>,
    }
    let document = Document::parse("a: {never: [1, 2, [3]]}", "f").expect("a document");
    let mut mistakes = Vec::new();
    let place = document.field("a").expect("it is there");
    assert!(place.decode::<Holder>(&mut mistakes).is_none());
    assert!(!mistakes.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_panics(text in "\\PC{0,80}|[-a: \\[\\]{}&*!|>'\"%@`,#\n]{0,60}") {
        read(&text);
    }

    #[test]
    fn no_characters_panic(text in ".{0,60}|(items|name|kind|[-?:,#&*!|>'\"%@`\\[\\]{}\\\\ \t\r\n\u{feff}\u{85}\u{2028}0-9a-]|[^a-z]){0,80}") {
        read(&text);
    }

    #[test]
    fn no_item_panics_and_a_refused_one_has_a_mistake(
        text in "items:\n(- (\\{)?((name|ports|map|flag|kind|inner|share|no): ?([a-z]{1,2}|[0-9]{1,6}|\\[1, x\\]|\\{Port: 1\\}|\\{1: 2, a: b\\}|null|true|\\{address: 1\\})(,|\n  )){0,4}\\}?\n?){0,3}"
    ) {
        let (items, mistakes) = read(&text);
        if let Ok(document) = Document::parse(&text, "f") {
            let count = document.items("items", &mut Vec::new()).len();
            prop_assert!(items.len() == count || !mistakes.is_empty(), "{}", text);
        }
    }
}

#[test]
fn each_document_of_a_text_keeps_its_lines() {
    let text = "# head\n---\n\n---\nname: a\nports: [x]\n---\n- no\n--- # third\nname: |\n  ---\n  text\n...\n---\n%YAML 1.2\n---\nname: [\n---\nname: d\nports: [1]\nflag: 3\n";
    let documents = Document::parse_all(text, "f.yaml");
    let mut found = Vec::new();
    for document in &documents {
        let mut mistakes = Vec::new();
        match document {
            Ok(document) => drop(document.root().decode::<Item>(&mut mistakes)),
            Err(mistake) => mistakes.push(mistake.clone()),
        }
        found.push(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    assert_eq!(documents.len(), 5, "{found:#?}");
    assert!(found[0][0].starts_with("f.yaml:6:9: ports[0]: expected a whole number"), "{found:#?}");
    assert!(found[1][0].starts_with("f.yaml:8:1: the document must be a mapping"), "{found:#?}");
    assert!(found[2].is_empty(), "{found:#?}");
    assert!(found[3][0].starts_with("f.yaml:1"), "{found:#?}");
    assert!(found[4][0].starts_with("f.yaml:21:7: flag:"), "{found:#?}");
}

#[test]
fn keys_that_are_not_known_can_be_passed_over_and_near_ones_are_named() {
    let document =
        Document::parse("name: a\nprots: [1]\nzone: b\nPorts: [1]\n", "f.yaml").expect("a document");
    let mut mistakes = Vec::new();
    assert!(document.root().decode_known::<Item>(&mut mistakes).is_some());
    assert!(mistakes.is_empty());
    assert!(document.root().decode::<Item>(&mut mistakes).is_none());
    let reasons: Vec<&str> = mistakes.iter().map(|mistake| mistake.reason.as_str()).collect();
    assert!(reasons[0].ends_with("; is it \"ports\"?"), "{reasons:?}");
    assert!(reasons[1].ends_with(')'), "{reasons:?}");
    assert!(reasons[2].ends_with("; is it \"ports\"?"), "{reasons:?}");
}
