use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::object::{Action, Kind, Mode, Name};

/// A folder of its own for each test, removed with it.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("manifests-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a scratch folder");
        Self(path)
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("folders");
        fs::write(path, text).expect("a file");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")
}

/// The changes in short: `+kind name` and `-kind name`.
fn short(changes: &[Change]) -> Vec<String> {
    let word = |change: &Change| match change {
        Change::Set(object) => format!("+{}", object.key()),
        Change::Remove(key) => format!("-{key}"),
    };
    changes.iter().map(word).collect()
}

#[track_caller]
fn mistakes(text: &str, expected: &[&str]) {
    let scratch = Scratch::new();
    scratch.write("f.yaml", text);
    let (_, _, found) = Folder::open(&scratch.0);
    let prefix = format!("{}/", scratch.0.display());
    let found: Vec<String> = found.iter().map(|one| one.to_string().replace(&prefix, "")).collect();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n  does not start with\n{expected}");
    }
}

#[test]
fn all_mistakes_are_named_with_their_place() {
    mistakes(
        "apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  clusterIP: 10.9.0.300
  ports: [{port: 80000}, {port: 80, targetPort: 99999}]
  internalTrafficPolicy: local
---
# nothing
---
apiVersion: v1
kind: Pod
metadata: {name: Cart_1, labels: {version: 1}}
spec: {containers: [{name: c, image: i, unknown: {fields: [are]}}]}
status: {podIP: 10.0.0.x, phase: Run}
---
kind: Pod
---
[
---
apiVersion: discovery.k8s.io/v1beta1
kind: EndpointSlice
metadata: {name: s}
addressType: IPv4
endpoints: [{addresses: [10.0.0]}]
",
        &[
            "f.yaml:5:14: document 1: spec.clusterIP: \"10.9.0.300\" is not an IP address",
            "f.yaml:6:18: document 1: spec.ports[0].port: invalid value: integer `80000`",
            "f.yaml:6:49: document 1: spec.ports[1].targetPort: 99999 is not a port",
            "f.yaml:7:26: document 1: spec.internalTrafficPolicy: unknown value \"local\" (known: Cluster, Local)",
            "f.yaml:13:18: document 2: metadata.name: \"Cart_1\" is not a name",
            "f.yaml:13:44: document 2: metadata.labels.version: expected a text, found the number 1; put it in quotes",
            "f.yaml:15:17: document 2: status.podIP: \"10.0.0.x\" is not an IP address",
            "f.yaml:15:34: document 2: status.phase: unknown value \"Run\"",
            "f.yaml:17:1: document 3: the key \"apiVersion\" is missing",
            "f.yaml:",
            "f.yaml:21:13: document 5: apiVersion: a EndpointSlice of this version is not read here; write discovery.k8s.io/v1",
            "f.yaml:25:26: document 5: endpoints[0].addresses[0]: \"10.0.0\" is not an IP address",
        ],
    );
}

#[test]
fn misplaced_fields_are_named_with_the_fix() {
    mistakes(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
name: web
podSelector: {}
ingress: []
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: fine}
spec: {podSelector: {}}
---
apiVersion: v1
kind: Service
metadata: {name: cart}
selector: {app: cart}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: open, names: [x]}
rules: [{}]
---
apiVersion: v1
kind: ConfigMap
data: {anything: goes}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: fine}
spec: {template: &anchor {}}
",
        &[
            "f.yaml:3:1: document 1: name: \"name\" does not stand at the top of a NetworkPolicy; move it under metadata:",
            "f.yaml:4:1: document 1: podSelector: \"podSelector\" does not stand at the top of a NetworkPolicy; its fields stand under spec: move it there",
            "f.yaml:5:1: document 1: ingress:",
            "f.yaml:15:1: document 3: selector: \"selector\" does not stand at the top of a Service; its fields stand under spec",
            "f.yaml:19:24: document 4: metadata.names: unknown key \"names\"",
            "f.yaml:20:1: document 4: rules: \"rules\" does not stand at the top of a AuthorizationPolicy",
        ],
    );
}

#[test]
fn nothing_in_a_policy_is_passed_over() {
    let head = |kind: &str| {
        format!("apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p}}\nspec:\n")
    };
    let text = head("AuthorizationPolicy")
        + "  rules:
  - from:
    - source: {princpals: [a]}
    to:
    - operation: {ports: [80]}
---
" + &head("AuthorizationPolicy").replace("name: p", "name: q")
        + "  action: DENY
  rules:
  - from:
    - source: {ipBlocks: [10.0.0.0/33, 10.0.0.1], serviceAccounts: [a/b/c], namespaces: ['']}
    - source: {}
    to:
    - operation: {ports: ['0', http]}
    when:
    - {key: destination.port, values: ['70000']}
    - {key: source.ip}
  - from: []
---
" + &head("PeerAuthentication")
        + "  mtls: {mode: STRONG}
  portLevelMtls: {70000: {mode: STRICT}, 0: {}}
  selector: {app: a}
";
    mistakes(
        &text,
        &[
            "f.yaml:7:16: document 1: spec.rules[0].from[0].source.princpals: unknown key \"princpals\" (known: principals,",
            "f.yaml:9:27: document 1: spec.rules[0].to[0].operation.ports[0]: expected a text, found the number 80; put it in quotes",
            "f.yaml:18:15: document 2: spec.rules[0].from[0].source: serviceAccounts do not stand beside",
            "f.yaml:18:27: document 2: spec.rules[0].from[0].source.ipBlocks[0]: \"10.0.0.0/33\" is not an IP address or a prefix",
            "f.yaml:18:69: document 2: spec.rules[0].from[0].source.serviceAccounts[0]: \"a/b/c\" is not a service account",
            "f.yaml:18:90: document 2: spec.rules[0].from[0].source.namespaces[0]:",
            "f.yaml:19:15: document 2: spec.rules[0].from[1].source: says nothing",
            "f.yaml:21:27: document 2: spec.rules[0].to[0].operation.ports[0]: \"0\" is not a port",
            "f.yaml:21:32: document 2: spec.rules[0].to[0].operation.ports[1]: \"http\" is not a port",
            "f.yaml:23:40: document 2: spec.rules[0].when[0].values[0]: \"70000\" is not a port",
            "f.yaml:24:7: document 2: spec.rules[0].when[1]: has neither values nor notValues",
            "f.yaml:25:5: document 2: spec.rules[1].from: is empty",
            "f.yaml:31:16: document 3: spec.mtls.mode: unknown value \"STRONG\" (known: UNSET, DISABLE, PERMISSIVE, STRICT)",
            "f.yaml:32:19: document 3: spec.portLevelMtls.70000:",
            "f.yaml:32:42: document 3: spec.portLevelMtls.0: 0 is not a port",
            "f.yaml:33:14: document 3: spec.selector.app: unknown key \"app\" (known: matchLabels)",
        ],
    );
}

#[test]
fn lists_json_and_folders_are_read_and_hidden_names_are_not() {
    let scratch = Scratch::new();
    scratch.write("a.yaml", &format!("{}---\n{}", namespace("a"), namespace("b")));
    scratch.write("deep/er/c.yml", &namespace("c"));
    scratch.write("d.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "d"}}"#);
    let item = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: s, namespace: a}}";
    scratch.write("list.yaml", &format!("apiVersion: v1\nkind: List\nitems: [{item}]\n"));
    for hidden in [".x.yaml", ".git/y.yaml", "z.yaml~", "readme.md"] {
        scratch.write(hidden, &namespace("hidden"));
    }
    let (_, changes, found) = Folder::open(&scratch.0);
    assert!(found.is_empty(), "{found:?}");
    let expected = ["+Namespace a", "+Namespace b", "+Namespace c", "+Namespace d", "+ServiceAccount a/s"];
    assert_eq!(short(&changes), expected);
    let (_, changes, found) = Folder::open(&scratch.path("absent"));
    assert!(changes.is_empty() && found.len() == 1, "{found:?}");
}

/// What a change of the folder comes to, without the waiting.
fn reread(folder: &mut Folder) -> (Vec<String>, Vec<String>) {
    let changes = folder.read();
    (short(&changes), folder.mistakes.iter().map(ToString::to_string).collect())
}

#[test]
fn bad_input_loses_nothing_that_worked() {
    let scratch = Scratch::new();
    scratch.write("a.yaml", &format!("{}---\n{}", namespace("a"), namespace("b")));
    scratch.write("c.yaml", &namespace("c"));
    let (mut folder, ..) = Folder::open(&scratch.0);
    for bad in [
        format!("{}---\nmetadata: [\n", namespace("a")),
        format!("{}---\n{}spec: []\n", namespace("a"), namespace("b")),
        format!("{}---\n{}names: x\n", namespace("a"), namespace("b")),
        format!("{}---\n{}", namespace("a"), namespace("b").replace("kind:", "kinds:")),
        String::new(),
        "\u{0}".to_owned(),
    ] {
        scratch.write("a.yaml", &bad);
        let (changes, found) = reread(&mut folder);
        let wrong = bad.contains("spec: []");
        assert!(changes.is_empty(), "{bad}: {changes:?}");
        assert_eq!(found.is_empty(), wrong, "{bad}: {found:?}");
    }
    scratch.write("a.yaml", &namespace("a"));
    assert_eq!(reread(&mut folder), (vec!["-Namespace b".to_owned()], vec![]));
    fs::remove_file(scratch.path("c.yaml")).expect("removed");
    assert_eq!(reread(&mut folder).0, ["-Namespace c"]);
    fs::rename(scratch.path("a.yaml"), scratch.path("z.yaml")).expect("renamed");
    assert_eq!(reread(&mut folder), (vec![], vec![]), "another file with the same object changes nothing");
    fs::remove_dir_all(&scratch.0).expect("removed");
    let (changes, found) = reread(&mut folder);
    assert!(
        changes.is_empty() && found.len() == 1,
        "a folder that is gone is a mistake: {changes:?} {found:?}"
    );
}

#[test]
fn of_two_documents_the_one_that_stands_stays() {
    let labelled = |value: &str| namespace("a") + &format!("  labels: {{x: {value}}}\n");
    let scratch = Scratch::new();
    scratch.write("m.yaml", &labelled("m"));
    let (mut folder, ..) = Folder::open(&scratch.0);
    scratch.write("a.yaml", &labelled("a"));
    let (changes, found) = reread(&mut folder);
    assert!(changes.is_empty(), "{changes:?}");
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("a.yaml:1:1") && found[0].contains("m.yaml:1 already"), "{found:?}");
    fs::remove_file(scratch.path("m.yaml")).expect("removed");
    assert_eq!(reread(&mut folder), (vec!["+Namespace a".to_owned()], vec![]));
    let (_, changes, found) = {
        scratch.write("b.yaml", &labelled("b"));
        Folder::open(&scratch.0)
    };
    let Change::Set(Object::Namespace(first)) = &changes[0] else { panic!("{changes:?}") };
    assert_eq!((first.labels["x"].as_str(), changes.len(), found.len()), ("a", 1, 1));
}

#[test]
fn a_new_policy_with_an_unreadable_value_is_applied_on_the_safe_side() {
    let text = |block: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{rules: [{{from: [{{source: {{ipBlocks: ['{block}']}}}}]}}]}}\n"
        )
    };
    let scratch = Scratch::new();
    scratch.write("p.yaml", &text("10.0.0.0/99"));
    let (mut folder, changes, found) = Folder::open(&scratch.0);
    assert_eq!((short(&changes), found.len()), (vec!["+AuthorizationPolicy shop/p".to_owned()], 1));
    scratch.write("p.yaml", &text("10.0.0.0/8"));
    assert_eq!(reread(&mut folder), (vec!["+AuthorizationPolicy shop/p".to_owned()], vec![]));
    scratch.write("p.yaml", &text("10.0.0.0/99"));
    let (changes, found) = reread(&mut folder);
    assert!(changes.is_empty() && found.len() == 1, "the last good one stays");
}

#[test]
fn security_policies_are_read_whole() {
    let text = "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: p, creationTimestamp: '1970-01-01T00:01:00Z'}\nspec: {mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}, 81: {}}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, annotations: {istio.io/dry-run: 'true'}}\nspec: {action: DENY, selector: {matchLabels: {a: b}}, rules: [{}]}\n";
    let objects = objects(text);
    let Object::PeerAuthentication(peer) = &objects[0] else { panic!("{objects:?}") };
    assert_eq!((peer.mode, peer.created, &peer.name), (Mode::Strict, Some(60), &Name::new("default", "p")));
    assert_eq!((peer.ports[&80], peer.ports[&81]), (Mode::Disable, Mode::Unset));
    let Object::AuthorizationPolicy(policy) = &objects[1] else { panic!("{objects:?}") };
    assert_eq!((policy.action, policy.dry_run.as_deref()), (Action::Deny, Some("true")));
    assert_eq!(policy.rules.len(), 1);
    assert_eq!(objects[1].key().kind, Kind::AuthorizationPolicy);
}

/// Changes until these have come, in this order.
async fn expect(folder: &mut Folder, expected: &[&str]) {
    let mut seen: Vec<String> = Vec::new();
    let deadline = Duration::from_secs(3);
    while seen.len() < expected.len() {
        let (changes, _) = timeout(deadline, folder.next()).await.unwrap_or_else(|_| panic!("only {seen:?}"));
        seen.extend(short(&changes));
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn whatever_happens_in_the_folder_is_followed() {
    let scratch = Scratch::new();
    let (mut folder, ..) = Folder::open(&scratch.0);
    scratch.write("a.yaml", &namespace("a"));
    expect(&mut folder, &["+Namespace a"]).await;
    // As editors save: a new file takes the name of the old one.
    scratch.write(".a.yaml.swp", &format!("{}  labels: {{x: y}}\n", namespace("a")));
    fs::rename(scratch.path(".a.yaml.swp"), scratch.path("a.yaml")).expect("renamed");
    expect(&mut folder, &["+Namespace a"]).await;
    scratch.write("new/er/b.yaml", &namespace("b"));
    expect(&mut folder, &["+Namespace b"]).await;
    scratch.write("new/er/b.yaml", &namespace("c"));
    expect(&mut folder, &["-Namespace b", "+Namespace c"]).await;
    fs::remove_dir_all(scratch.path("new")).expect("removed");
    expect(&mut folder, &["-Namespace c"]).await;
    scratch.write("bad.yaml", "kind: [\n");
    let (changes, found) = timeout(Duration::from_secs(3), folder.next()).await.expect("told");
    assert!(changes.is_empty() && found.len() == 1, "new mistakes are told without changes");
}

#[tokio::test]
async fn a_volume_of_a_config_map_is_followed() {
    let scratch = Scratch::new();
    scratch.write("..v1/a.yaml", &namespace("a"));
    symlink("..v1", scratch.path("..data")).expect("a link");
    symlink("..data/a.yaml", scratch.path("a.yaml")).expect("a link");
    let (mut folder, changes, _) = Folder::open(&scratch.0);
    assert_eq!(short(&changes), ["+Namespace a"]);
    scratch.write("..v2/a.yaml", &namespace("b"));
    symlink("..v2", scratch.path("..data_tmp")).expect("a link");
    fs::rename(scratch.path("..data_tmp"), scratch.path("..data")).expect("swapped");
    fs::remove_dir_all(scratch.path("..v1")).expect("removed");
    expect(&mut folder, &["-Namespace a", "+Namespace b"]).await;
}
