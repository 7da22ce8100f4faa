use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

const NOWHERE: &str = "/nowhere/cni.sock";

/// The variables of a call; one can be left out or replaced.
fn environment(changes: &[(&str, Option<&str>)]) -> impl Fn(&str) -> Option<OsString> {
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_INFRA_CONTAINER_ID=c1";
    let mut variables: Vec<(String, String)> = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/var/run/netns/one"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", args),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for (name, value) in changes {
        variables.retain(|(known, _)| known != name);
        variables.extend(value.map(|value| ((*name).to_owned(), value.to_owned())));
    }
    move |name| variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.into())
}

fn previous() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "cni0" }, { "name": "eth0", "sandbox": "/var/run/netns/one", "mtu": 1450 }],
        "ips": [
            { "address": "10.1.0.1/24", "interface": 0 },
            { "address": "10.1.0.7/24", "gateway": "10.1.0.1", "interface": 1 },
            { "address": "fd00::7/64", "interface": 1 },
        ],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dns": {},
    })
}

fn configuration(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": "network",
        "type": "ztunnel-cni",
        "socket": NOWHERE,
        "enrolled": "/nowhere/enrolled.json",
        "cni.dev/valid-attachments": [],
        "prevResult": previous(),
    })
}

fn call(changes: &[(&str, Option<&str>)], configuration: &Value) -> Result<String, Value> {
    call_with(changes, configuration.to_string().as_bytes())
}

fn call_with(changes: &[(&str, Option<&str>)], stdin: &[u8]) -> Result<String, Value> {
    run(environment(changes), stdin)
        .map_err(|failure| serde_json::from_str(&failure.to_json()).expect("an error is JSON"))
}

fn failure(outcome: Result<String, Value>, code: u32) -> String {
    let failure = outcome.expect_err("must fail");
    assert_eq!(failure["code"], code, "{failure}");
    assert!(VERSIONS.contains(&failure["cniVersion"].as_str().expect("a version")));
    failure["msg"].as_str().expect("a message").to_owned()
}

#[test]
fn every_version_hands_the_result_on() {
    for version in VERSIONS {
        let printed = call(&[], &configuration(version)).expect("not enrolled");
        let mut printed: Value = serde_json::from_str(&printed).expect("a result is JSON");
        assert_eq!(printed["cniVersion"], *version);
        let of_address = |index: usize| printed["ips"][index].get("version").cloned();
        let old = version.starts_with("0.");
        assert_eq!(of_address(1), old.then(|| json!("4")), "{version}");
        assert_eq!(of_address(2), old.then(|| json!("6")), "{version}");
        printed["cniVersion"] = "1.0.0".into();
        for address in printed["ips"].as_array_mut().expect("a list") {
            address.as_object_mut().expect("an object").remove("version");
        }
        assert_eq!(printed, previous());
    }
    for version in ["", "0.2.0", "2.0.0", "1.0", "garbage"] {
        let message = failure(call(&[], &configuration(version)), 1);
        assert!(message.contains(version) && message.contains("1.1.0"), "{message}");
    }
}

#[test]
fn the_pods_addresses_are_those_inside() {
    let expected: Vec<std::net::IpAddr> =
        ["10.1.0.7", "fd00::7"].map(|text| text.parse().expect("valid")).into();
    assert_eq!(chain::addresses(&previous()).expect("valid"), expected);
    let unnamed = json!({ "ips": [{ "address": "10.1.0.7/24" }] });
    assert_eq!(chain::addresses(&unnamed).expect("valid"), expected[..1]);
    assert!(chain::addresses(&json!({})).expect("valid").is_empty());
    for wrong in [
        json!([]),
        json!({ "ips": 1 }),
        json!({ "ips": [1] }),
        json!({ "ips": [{ "address": "here" }] }),
        json!({ "ips": [{}] }),
        json!({ "ips": [{ "address": "10.1.0.7/24", "interface": 1 }], "interfaces": [{}] }),
        json!({ "ips": [{ "address": "10.1.0.7/24", "interface": -1 }] }),
    ] {
        let mut configuration = configuration("1.0.0");
        configuration["prevResult"] = wrong;
        failure(call(&[], &configuration), 6);
    }
}

#[test]
fn the_variable_that_is_missing_or_wrong_is_named() {
    let good = configuration("1.1.0");
    for command in ["ADD", "CHECK", "DEL"] {
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            let outcome = call(&[("CNI_COMMAND", Some(command)), (name, None)], &good);
            if (command, name) == ("DEL", "CNI_NETNS") {
                assert_eq!(outcome, Ok(String::new()));
            } else {
                assert!(failure(outcome, 4).contains(name), "{command} {name}");
            }
        }
    }
    for (name, value) in [
        ("CNI_COMMAND", None),
        ("CNI_COMMAND", Some("DANCE")),
        ("CNI_CONTAINERID", Some("../c1")),
        ("CNI_NETNS", Some("netns")),
        ("CNI_ARGS", Some("K8S_POD_NAMESPACE")),
        ("CNI_ARGS", Some("K8S_POD_NAMESPACE=shop")),
        ("CNI_ARGS", Some("K8S_POD_NAMESPACE=;K8S_POD_NAME=cart")),
    ] {
        assert!(failure(call(&[(name, value)], &good), 4).contains(name), "{name} {value:?}");
    }
    let mut unnamed = good;
    unnamed["enrolled"] = "/proc/self/mem".into();
    for args in [None, Some(""), Some("IgnoreUnknown=1;A=b")] {
        call(&[("CNI_ARGS", args)], &unnamed).expect("not a pod");
    }
}

#[test]
fn garbage_on_stdin_is_refused() {
    for garbage in [&b""[..], b"{", b"[]", b"\xff\xfe", b"{\"cniVersion\":1}", b"null"] {
        for command in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
            failure(call_with(&[("CNI_COMMAND", Some(command))], garbage), 6);
        }
    }
    let message = failure(run_endless(), 6);
    assert!(message.contains("1048576"), "{message}");
    for (seconds, valid) in [(0, false), (1, true), (90, true), (91, false)] {
        let mut configuration = configuration("1.0.0");
        configuration["timeoutSeconds"] = seconds.into();
        let outcome = call(&[], &configuration);
        if valid {
            outcome.expect("valid");
        } else {
            assert!(failure(outcome, 7).contains("timeoutSeconds"));
        }
    }
    let mut alone = configuration("1.0.0");
    alone.as_object_mut().expect("an object").remove("prevResult");
    for command in ["ADD", "CHECK"] {
        assert!(failure(call(&[("CNI_COMMAND", Some(command))], &alone), 7).contains("prevResult"));
    }
}

fn run_endless() -> Result<String, Value> {
    run(environment(&[]), std::io::repeat(b' '))
        .map_err(|failure| serde_json::from_str(&failure.to_json()).expect("an error is JSON"))
}

#[test]
fn the_other_commands_answer_without_the_agent() {
    for command in ["STATUS", "GC", "DEL", "CHECK"] {
        assert_eq!(call(&[("CNI_COMMAND", Some(command))], &configuration("1.1.0")), Ok(String::new()));
    }
    let version = [("CNI_COMMAND", Some("VERSION"))];
    for (stdin, expected) in [
        ("", "1.1.0"),
        ("{}", "1.1.0"),
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"9.0.0"}"#, "1.1.0"),
    ] {
        let printed = call_with(&version, stdin.as_bytes()).expect("answered");
        let printed: Value = serde_json::from_str(&printed).expect("JSON");
        assert_eq!(printed, json!({ "cniVersion": expected, "supportedVersions": VERSIONS }));
    }
}

#[test]
fn without_the_agent_the_file_decides() {
    let path = std::env::temp_dir().join(format!("plugin-{}-enrolled.json", std::process::id()));
    let with_file = |file: PathBuf| {
        let mut configuration = configuration("1.0.0");
        configuration["enrolled"] = file.to_string_lossy().into();
        configuration
    };
    let pod = |namespace: &str| format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=p");
    for (text, passing, failing) in [
        (r#"{"namespaces":["shop"]}"#, &["bank", "kube-system"][..], &["shop"][..]),
        (r#"{"namespaces":["kube-system"]}"#, &["shop"][..], &["kube-system"][..]),
        (r#"{"namespaces":["sh"#, &["kube-system"][..], &["shop", "bank"][..]),
        ("", &["kube-system"][..], &["shop"][..]),
    ] {
        std::fs::write(&path, text).expect("written");
        for command in ["ADD", "CHECK"] {
            let call = |namespace| {
                let args = pod(namespace);
                call(&[("CNI_COMMAND", Some(command)), ("CNI_ARGS", Some(&args))], &with_file(path.clone()))
            };
            passing.iter().for_each(|namespace| drop(call(namespace).expect(namespace)));
            for namespace in failing {
                let message = failure(call(namespace), 11);
                let named = [&format!("{namespace}/p")[..], NOWHERE, "ztunnel-redirect runs"];
                assert!(named.iter().all(|part| message.contains(part)), "{message}");
            }
        }
    }
    let mut exempting = with_file(path.clone());
    exempting["exempt"] = json!(["mesh"]);
    call(&[("CNI_ARGS", Some(&pod("mesh")))], &exempting).expect("exempt");
    failure(call(&[("CNI_ARGS", Some(&pod("kube-system")))], &exempting), 11);
    std::fs::remove_file(path).expect("removed");
}
