//! The story of an installation on a real cluster, told once from the first label to the last object removed. It needs a
//! cluster that KUBECONFIG names, of two nodes at least, where `kubectl apply -k deploy/overlays/dev` was run (README), and
//! fails without one. Steps follow each other; the first that fails ends it.

mod apps;
mod benchmark;
mod kubectl;
mod load;
mod wire;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use apps::{SHOP, ask, label, lives, proxies};
use kubectl::{apply, attempt, eventually, exec, fed, json, kubectl, node, require, within};
use load::{Held, Load};
use serde_json::Value;

/// Where it is installed.
const SYSTEM: &str = "ztunnel-system";
const CLIENT: &str = "ztunnel-suite-shop/client";
const OUTSIDER: &str = "ztunnel-suite-legacy/legacy";

type Step = (&'static str, fn(&mut Story));

/// What one step leaves to the next.
#[derive(Default)]
struct Story {
    held: Vec<Held>,
}

fn main() {
    assert!(std::env::var_os("KUBECONFIG").is_some(), "KUBECONFIG must name a cluster (README)");
    let steps: [Step; 16] = [
        ("the manifests of `ztunnelctl install` are those of kustomize", manifests),
        ("the installation is ready", installed),
        ("unmeshed pods talk in plaintext", unmeshed),
        ("a labelled namespace: running pods join without a restart", joined),
        ("what is said between the nodes is encrypted", encrypted),
        ("an AuthorizationPolicy is enforced and says so", authorized),
        ("STRICT refuses plaintext, and kubelet's probes pass", strict),
        ("a bad policy is told by an event", refused),
        ("rules that are deleted in a pod are back in less than a second", repaired),
        ("pods roll under load", rolled),
        ("bulk passes", bulk),
        ("the benchmark measures with and without the mesh", |_| benchmark::run()),
        ("the proxies roll under load", proxies_rolled),
        ("a node is cut off and booted", booted),
        ("an unlabelled namespace: pods leave, connections go on", left),
        ("nothing is left behind", uninstalled),
    ];
    let only = std::env::var("STEPS").ok();
    let mut story = Story::default();
    for (number, (what, step)) in steps.into_iter().enumerate() {
        if only.as_ref().is_some_and(|only| !only.split(',').any(|one| one == number.to_string())) {
            continue;
        }
        let started = Instant::now();
        println!("{number:>2}. {what} …");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| step(&mut story))) {
            last_words();
            resume_unwind(panic);
        }
        println!("    {:.1} s", started.elapsed().as_secs_f64());
    }
}

/// What tells why a step failed: how pods and nodes are, and what our own last said.
fn last_words() {
    let tell = |told: Result<String, String>| println!("{}", told.unwrap_or_else(|error| error));
    tell(attempt(&["get", "pods", "--all-namespaces", "--output=wide"]));
    tell(attempt(&["get", "events", "--all-namespaces", "--field-selector=type=Warning"]));
    for container in ["agent", "proxy", "controller"] {
        for pod in json(&["get", "pods", "--namespace", SYSTEM])["items"].as_array().into_iter().flatten() {
            let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
            if !containers.into_iter().any(|one| one["name"] == container) {
                continue;
            }
            println!("--- {container} of {}", apps::name(pod));
            tell(attempt(&[
                "logs",
                "--namespace",
                SYSTEM,
                apps::name(pod),
                "--container",
                container,
                "--tail=60",
            ]));
            if container == "agent" {
                tell(kubectl::get(SYSTEM, apps::name(pod), 15022, "/pods"));
            }
        }
    }
    if std::env::var_os("CLUSTER").is_some() {
        for name in apps::nodes() {
            println!(
                "--- {name}\n{}",
                node("node", &name, &["sh", "-c", "ip -br link; ip route; ip -6 route; ss -tnp"])
            );
        }
    }
}

fn manifests(_: &mut Story) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
    let rendered = objects(&kubectl(&["kustomize", folder]));
    let printed = objects(&ztunnelctl(&["manifests"]).unwrap_or_else(|error| panic!("{error}")));
    let titles = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(titles(&rendered), titles(&printed));
    for (title, object) in &rendered {
        assert_eq!(object, &printed[title], "{title}");
    }
    // Only OpenShift has all the kinds of its overlay.
    kubectl(&["kustomize", &format!("{folder}/overlays/openshift")]);
    let dry_run = "apply --server-side --force-conflicts --dry-run=server --filename=- --output=name";
    for variant in ["", "overlays/dev", "overlays/gke", "overlays/istiod", "overlays/k3s"] {
        let rendered = kubectl(&["kustomize", &format!("{folder}/{variant}")]);
        // One of them is for a namespace that is not there.
        let rendered = rendered.replace("namespace: istio-system", "namespace: ztunnel-system");
        let taken = fed(&dry_run.split(' ').collect::<Vec<_>>(), &rendered);
        assert_eq!(taken.lines().count(), objects(&rendered).len(), "{variant}: {taken}");
    }
}

/// By kind and name.
fn objects(manifests: &str) -> BTreeMap<String, Value> {
    let one_after_another = fed(&["create", "--dry-run=client", "--filename=-", "--output=json"], manifests);
    let objects = serde_json::Deserializer::from_str(&one_after_another).into_iter::<Value>();
    let title = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    objects.map(|object| object.expect("kubectl writes JSON")).map(|one| (title(&one), one)).collect()
}

fn rolled_out(what: &str, namespace: &str, workload: &str) {
    eventually(what, || {
        attempt(&["--namespace", namespace, "rollout", "status", workload, "--timeout=1s"]).map(drop)
    });
}

fn installed(_: &mut Story) {
    for workload in ["deployment/ztunnel-controller", "daemonset/ztunnel"] {
        rolled_out("the installation is ready", SYSTEM, workload);
    }
    let proxies =
        json(&["get", "pods", "--namespace", SYSTEM, "--selector", "app.kubernetes.io/name=ztunnel"]);
    for pod in proxies["items"].as_array().into_iter().flatten() {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let proxy = containers.into_iter().find(|one| one["name"] == "proxy").expect("a proxy");
        let security = &proxy["securityContext"];
        assert_eq!(security["runAsUser"], 1337);
        assert_eq!(security["capabilities"]["drop"][0], "ALL");
        assert!(security["capabilities"]["add"].is_null() && security["readOnlyRootFilesystem"] == true);
    }
}

fn unmeshed(story: &mut Story) {
    apps::delete();
    apps::create();
    wire::watch();
    for pod in [CLIENT, OUTSIDER] {
        eventually("requests pass", || ask(pod));
    }
    // What shows that the watch would see it, if it were there later.
    eventually("plaintext is seen", || {
        ask(CLIENT)?;
        require(wire::plaintext() > 0, "the marker was not seen")
    });
    story.held.push(Held::open());
}

/// Connections that were accepted from the mesh.
fn tunnelled() -> f64 {
    proxies(
        "istio_tcp_connections_opened_total",
        &["reporter=\"destination\"", "connection_security_policy=\"mutual_tls\""],
    )
}

fn joined(story: &mut Story) {
    let (before, load) = (lives(SHOP), Load::start(CLIENT));
    let started = Instant::now();
    label(SHOP, Some("ambient"));
    within(Duration::from_secs(30), "requests go through tunnels", || {
        let before = tunnelled();
        ask(CLIENT)?;
        require(tunnelled() > before, "no connection was tunnelled")
    });
    println!("    first tunnel {:.1} s after the label", started.elapsed().as_secs_f64());
    load.goes_on();
    // And out and in again, with the load on.
    for (mode, tunnels) in [(None, false), (Some("ambient"), true)] {
        label(SHOP, mode);
        within(Duration::from_secs(30), "the label counts", || {
            let before = tunnelled();
            load.goes_on();
            require((tunnelled() > before) == tunnels, format!("tunnels: {}", !tunnels))
        });
    }
    println!("    {} requests", load.finish("labels that change"));
    eventually("every pod is captured and served", || ztunnelctl(&["status", "--cluster"]));
    assert_eq!(lives(SHOP), before, "no pod was started again");
    story.held.iter().for_each(Held::answers);
}

fn encrypted(_: &mut Story) {
    quiet("meshed pods", || {
        for _ in 0..20 {
            eventually("requests pass", || ask(CLIENT));
        }
    });
}

/// Nothing is said in plaintext meanwhile, by connections that were opened meanwhile.
fn quiet<T>(who: &str, work: impl FnOnce() -> T) -> T {
    let before = wire::plaintext();
    let done = work();
    let seen = wire::plaintext() - before;
    assert_eq!(seen, 0, "{who}: {seen} requests passed the wire in plaintext");
    done
}

const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: ztunnel-suite-shop}
spec:
  selector: {matchLabels: {app: nginx}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/ztunnel-suite-shop/sa/default]}}]}]
";

fn authorized(_: &mut Story) {
    apply(DENY);
    eventually("the policy is enforced", || match ask(CLIENT) {
        Ok(_) => Err("a request passes".to_owned()),
        Err(_) => Ok(()),
    });
    eventually("the policy says that it is in force", || {
        let policy = json(&["get", "authorizationpolicy", "--namespace", SHOP, "no-client"]);
        let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
        require(conditions.iter().any(|one| one["status"] == "True"), format!("{conditions:?}"))
    });
    kubectl(&["delete", "authorizationpolicy", "--namespace", SHOP, "no-client"]);
    eventually("requests pass again", || ask(CLIENT));
}

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: ztunnel-suite-shop}
spec: {mtls: {mode: STRICT}}
";

fn strict(_: &mut Story) {
    let before = lives(SHOP);
    apply(STRICT);
    // Nobody may connect to nginx either; kubelet probes it every second.
    apply(&DENY.replace(
        "[{from: [{source: {principals: [cluster.local/ns/ztunnel-suite-shop/sa/default]}}]}]",
        "[{}]",
    ));
    for pod in [CLIENT, OUTSIDER] {
        eventually("nobody connects", || match ask(pod) {
            Ok(_) => Err(format!("{pod} is let in")),
            Err(_) => Ok(()),
        });
    }
    // Every address family that the pods have, by the node itself.
    let nginx =
        apps::pods(SHOP).into_iter().find(|pod| pod["metadata"]["labels"]["app"] == "nginx").expect("nginx");
    let host = nginx["spec"]["nodeName"].as_str().expect("scheduled");
    for address in apps::addresses(&format!("{SHOP}/{}", apps::name(&nginx))) {
        let url = match address.contains(':') {
            true => format!("http://[{address}]:8080/"),
            false => format!("http://{address}:8080/"),
        };
        let answer = node("node", host, &["curl", "--silent", "--max-time", "5", &url]);
        assert!(answer.contains(apps::MARKER), "the node probes {url}: {answer:?}");
    }
    // Longer than kubelet takes to give a pod up.
    let until = Instant::now() + Duration::from_secs(8);
    within(Duration::from_secs(20), "probes pass", || {
        assert_eq!(lives(SHOP), before, "a pod was started again: its probes failed");
        assert!(apps::pods(SHOP).iter().all(apps::is_ready), "a pod is not ready: its probe failed");
        require(Instant::now() >= until, "not long enough")
    });
    kubectl(&["delete", "authorizationpolicy", "--namespace", SHOP, "no-client"]);
    eventually("requests of the mesh pass", || ask(CLIENT));
    eventually("plaintext is refused", || match ask(OUTSIDER) {
        Ok(_) => Err("plaintext is let in".to_owned()),
        Err(_) => Ok(()),
    });
}

fn refused(_: &mut Story) {
    apply(
        &DENY.replace(
            "principals: [cluster.local/ns/ztunnel-suite-shop/sa/default]",
            "ipBlocks: ['10.0.0.300']",
        ),
    );
    eventually("an event tells of the mistake", || {
        let events = json(&[
            "get",
            "events",
            "--namespace",
            SHOP,
            "--field-selector",
            "involvedObject.name=no-client",
        ]);
        let text = events["items"].to_string();
        require(text.contains("10.0.0.300"), format!("events: {text}"))
    });
    kubectl(&["delete", "authorizationpolicy", "--namespace", SHOP, "no-client"]);
    eventually("requests pass again", || ask(CLIENT));
}

/// In the namespace that has the address ADDRESS; how long it took in milliseconds.
const FLUSH: &str = "for n in /var/run/netns/*; do if nsenter --net=$n ip -4 address show | grep -q ' ADDRESS/'; then \
    start=$(date +%s%3N); nsenter --net=$n nft delete table inet ztunnel || exit; \
    while [ $(($(date +%s%3N) - start)) -lt 20000 ]; do \
    nsenter --net=$n nft list table inet ztunnel > /dev/null 2>&1 && break; done; echo $(($(date +%s%3N) - start)); fi; done";

fn repaired(_: &mut Story) {
    let [first, _] = apps::nodes();
    let address = apps::addresses(CLIENT).into_iter().find(|ip| !ip.contains(':')).expect("an IPv4 address");
    for _ in 0..10 {
        let told = node("node", &first, &["sh", "-c", &FLUSH.replace("ADDRESS", &address)]);
        let took: u64 =
            told.trim().parse().unwrap_or_else(|_| panic!("the namespace was not found: {told:?}"));
        println!("    {took} ms");
        assert!(took < 1000, "the rules are back after {took} ms");
        eventually("requests pass", || ask(CLIENT));
    }
    quiet("a pod that was repaired", || drop(eventually("requests pass", || ask(CLIENT))));
}

fn rolled(_: &mut Story) {
    let load = quiet("pods that roll", || {
        let load = Load::start(CLIENT);
        kubectl(&["--namespace", SHOP, "rollout", "restart", "deployment/nginx"]);
        rolled_out("nginx has rolled", SHOP, "deployment/nginx");
        kubectl(&["--namespace", SHOP, "scale", "deployment/nginx", "--replicas=6"]);
        rolled_out("nginx has grown", SHOP, "deployment/nginx");
        kubectl(&["--namespace", SHOP, "scale", "deployment/nginx", "--replicas=2"]);
        load.goes_on();
        load
    });
    println!("    {} requests", load.finish("pods that roll"));
}

fn bulk(_: &mut Story) {
    let server = apps::addresses(&format!("{SHOP}/iperf")).remove(0);
    let report = exec(CLIENT, &["iperf3", "--client", &server, "--time", "3", "--json"]);
    let report: serde_json::Value =
        serde_json::from_str(&report.unwrap_or_else(|error| panic!("{error}"))).expect("JSON");
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0);
    println!("    {:.2} Gbit/s", rate / 1e9);
    assert!(rate > 0.0, "{report}");
}

fn proxies_rolled(story: &mut Story) {
    let load = quiet("proxies that roll", || {
        let load = Load::start(CLIENT);
        kubectl(&["--namespace", SYSTEM, "rollout", "restart", "daemonset/ztunnel"]);
        rolled_out("the proxies have rolled", SYSTEM, "daemonset/ztunnel");
        load.goes_on();
        load
    });
    println!("    {} requests", load.finish("proxies that roll"));
    story.held.clear();
    story.held.push(Held::open());
}

/// The wire is watched from the other node, and a pod of the node that boots asks nginx from its first moment on.
fn booted(_: &mut Story) {
    let [first, second] = apps::nodes();
    kubectl(&["delete", "peerauthentication", "--namespace", SHOP, "strict", "--ignore-not-found"]);
    wire::stop(&second);
    for round in 0..rounds() {
        let started = Instant::now();
        let (before, starts) = (wire::count(&first), apps::starts(apps::EARLY));
        node("crash", &second, &[]);
        node("boot", &second, &[]);
        eventually("the pods of the node run anew", || {
            require(apps::starts(apps::EARLY) > starts, "not yet")?;
            attempt(&["wait", "--for=condition=Ready", &format!("node/{second}"), "--timeout=1s"])
        });
        apps::ready();
        for pod in [CLIENT, apps::EARLY] {
            eventually("requests pass", || ask(pod));
        }
        let seen = wire::count(&first) - before;
        assert_eq!(seen, 0, "a node that boots: {seen} requests passed the wire in plaintext");
        println!("    round {round}: {:.1} s", started.elapsed().as_secs_f64());
    }
}

/// How often the node is cut off and booted.
fn rounds() -> usize {
    std::env::var("ROUNDS").map_or(1, |rounds| rounds.parse().expect("ROUNDS is a number"))
}

fn left(story: &mut Story) {
    story.held.clear();
    story.held.push(Held::open());
    let (before, load) = (lives(SHOP), Load::start(CLIENT));
    label(SHOP, None);
    within(Duration::from_secs(30), "requests go past the proxies", || {
        let before = tunnelled();
        ask(CLIENT)?;
        require(tunnelled() <= before, "connections are still tunnelled")
    });
    println!("    {} requests", load.finish("pods that leave"));
    // What shows that the watch was there all the time.
    let [first, _] = apps::nodes();
    let seen = wire::count(&first);
    eventually("plaintext is seen again", || require(wire::count(&first) > seen, "the wire is quiet"));
    story.held.iter().for_each(Held::answers);
    assert_eq!(lives(SHOP), before, "no pod was started again");
    assert!(ask(OUTSIDER).is_ok(), "anybody may ask again");
}

/// Rules, CNI files and what programs leave in their folders, on each node.
fn traces() -> Vec<String> {
    let look = "nft list tables | grep ztunnel; ls /etc/cni/net.d /opt/cni/bin | grep ztunnel; grep -l ztunnel /etc/cni/net.d/*; \
        find /var/run/ztunnel /var/lib/ztunnel /var/lib/kubelet/ztunnel ! -type d 2> /dev/null; \
        for n in /var/run/netns/*; do nsenter --net=$n sh -c 'nft list tables | grep ztunnel; \
        { ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; } | sed -n \"/proto 154/s/^/ztunnel: /p\"'; done; true";
    let nodes = apps::nodes();
    nodes.iter().map(|name| node("node", name, &["sh", "-c", look])).collect()
}

fn ztunnelctl(arguments: &[&str]) -> Result<String, String> {
    let programs = ztunnel_lab::binaries::find().map_err(|error| error.to_string())?;
    let mut command = std::process::Command::new(programs.proxy.with_file_name("ztunnelctl"));
    let output = command.args(arguments).output().map_err(|error| error.to_string())?;
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    require(output.status.success(), format!("{arguments:?}: {out}{err}"))?;
    Ok(out)
}

fn uninstalled(_: &mut Story) {
    label(SHOP, Some("ambient"));
    eventually("requests pass", || ask(CLIENT));
    // What shows that the traces would be seen, if they were there later.
    assert!(traces().iter().all(|text| text.contains("inet ztunnel") && text.contains("conflist")));
    ztunnelctl(&["uninstall", "--delete-policies"]).unwrap_or_else(|error| panic!("{error}"));
    for text in traces() {
        assert!(!text.contains("ztunnel"), "{text}");
    }
    assert!(ask(CLIENT).is_ok(), "pods talk as before");
    let marked = apps::pods(SHOP)
        .into_iter()
        .find(|pod| pod["metadata"]["annotations"].to_string().contains("ambient.istio.io/redirection"));
    assert_eq!(marked.map(|pod| apps::name(&pod).to_owned()), None, "no pod is said to be captured");
    assert!(attempt(&["get", "namespace", SYSTEM]).is_err(), "the namespace is gone");
    apps::delete();
}
