use super::*;

#[test]
fn the_built_in_lab_is_valid() {
    let spec = Spec::parse(DEFAULT, "default.yaml").unwrap_or_else(|mistakes| panic!("{mistakes:#?}"));
    assert_eq!(spec.nodes.len(), 2);
    let text = static_config::to_json(&spec.static_config());
    assert_eq!(static_config::parse(&text, "f").expect("it was written by us"), spec.static_config());
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = "
nodes: [{name: n1}, {name: n1}, {name: 'A b'}]
pods:
- {name: a, node: n1, color: red}
- {name: b, node: n9}
- {name: c, node: n1, addresses: [10.9.9.9, x]}
- {name: d, node: n1}
- {name: d, node: n1}
- {name: e, node: n1, addresses: [10.244.1.10]}
podz: []
";
    let mistakes: Vec<String> =
        Spec::parse(text, "lab.yaml").expect_err("refused").iter().map(ToString::to_string).collect();
    for part in [
        "lab.yaml:2:",
        "listed twice",
        "\"A b\" is not a name",
        "lab.yaml:4:",
        "color: unknown key",
        "there is no node \"n9\"",
        "10.9.9.9 is not in the node's networks",
        "\"x\" is not an IP address",
        "the name d is taken",
        "podz: unknown key",
    ] {
        assert!(mistakes.iter().any(|text| text.contains(part)), "{part} is not in {mistakes:#?}");
    }
}

fn refused(text: &str) -> Vec<String> {
    Spec::parse(text, "lab.yaml").expect_err("refused").iter().map(ToString::to_string).collect()
}

#[test]
fn addresses_that_no_pod_can_have_are_refused_where_they_stand() {
    let text = "
nodes: [{name: n1}, {name: n2}]
pods:
- {name: network, node: n2, addresses: [10.244.2.0, 'fd00:244:2::']}
- {name: gateway, node: n2, addresses: [10.244.2.1, 'fd00:244:2::1']}
- {name: broadcast, node: n2, addresses: [10.244.2.255]}
- {name: good, node: n2, addresses: [10.244.2.2, 'fd00:244:2::ff']}
- {name: elsewhere, node: n2, addresses: ['fd00:244:1::10']}
";
    let expected = [
        "lab.yaml:4:41: pods[0].addresses[0]: 10.244.2.0 stands for the network itself, no pod can have it",
        "lab.yaml:4:53: pods[0].addresses[1]: fd00:244:2:: stands for the network itself, no pod can have it",
        "lab.yaml:5:41: pods[1].addresses[0]: 10.244.2.1 is the node's own, the gateway of its pods",
        "lab.yaml:5:53: pods[1].addresses[1]: fd00:244:2::1 is the node's own, the gateway of its pods",
        "lab.yaml:6:43: pods[2].addresses[0]: 10.244.2.255 is the network's broadcast address, no pod can have it",
        "lab.yaml:8:43: pods[4].addresses[0]: fd00:244:1::10 is not in the node's networks 10.244.2.0/24 and \
         fd00:244:2::/64",
    ];
    assert_eq!(refused(text), expected);
}

#[test]
fn an_address_belongs_to_one_pod_and_a_virtual_address_to_one_service() {
    let text = "
nodes: [{name: n1}]
pods:
- {name: a, node: n1}
- {name: b, node: n1, addresses: [10.244.1.10]}
- {name: c, node: n1, addresses: [10.244.1.20, 'fd00:244:1::a']}
services:
- {name: s, namespace: n, hostname: s, vips: [/10.96.0.1], ports: {}}
- {name: t, namespace: n, hostname: t, vips: [/10.96.0.1], ports: {}}
";
    let mistakes = refused(text);
    for (place, reason) in [
        ("lab.yaml:5:", "address 10.244.1.10 is taken by pod a"),
        ("lab.yaml:6:", "address fd00:244:1::a is taken by pod a"),
        ("lab.yaml:9:", "10.96.0.1"),
    ] {
        let told = |text: &String| text.starts_with(place) && text.contains(reason);
        assert!(mistakes.iter().any(told), "no {place} … {reason} in {mistakes:#?}");
    }
    assert_eq!(mistakes.len(), 3, "{mistakes:#?}");
}

#[test]
fn names_that_the_lab_needs_are_refused() {
    let text = "
nodes: [{name: n1}, {name: ca}, {name: underlay}]
pods:
- {name: underlay, node: n1}
- {name: ca, node: n1, namespace: underlay}
";
    let expected = [
        "lab.yaml:2:28: nodes[1].name: the lab itself needs the name ca",
        "lab.yaml:2:40: nodes[2].name: the lab itself needs the name underlay",
        "lab.yaml:4:10: pods[0].name: the lab itself needs the name underlay",
        "lab.yaml:4:10: pods[0].name: the name underlay is taken",
        "lab.yaml:5:10: pods[1].name: the name ca is taken",
    ];
    assert_eq!(refused(text), expected);
}
