use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use ztunnel_model::Network;
use ztunnel_model::codec::static_config::parse;

use super::*;

fn config(text: &str) -> StaticConfig {
    parse(text, "test.yaml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

/// What a document says, as a batch.
fn batch(text: &str) -> Batch {
    let StaticConfig { workloads, services, policies } = config(text);
    let workloads = workloads.into_iter().map(Arc::new).map(Address::Workload);
    let services = services.into_iter().map(Arc::new).map(Address::Service);
    Batch { addresses: workloads.chain(services).collect(), policies, ..Batch::default() }
}

fn without(name: &str) -> Batch {
    Batch { removed_addresses: vec![name.to_owned()], ..Batch::default() }
}

fn discovered(applier: &mut Applier, batch: Batch) -> Changes {
    let changes = applier.apply(Origin::Discovery, batch).expect("it changes something");
    Changes { missing: applier.look_for_missing(), ..changes }
}

fn workload(uid: &str, ip: &str, extra: &str) -> String {
    format!("workloads:\n- {{uid: {uid}, name: {uid}, namespace: n, workloadIps: [{ip}], {extra}}}\n")
}

fn member(uid: &str, ip: &str, extra: &str) -> String {
    workload(uid, ip, &format!("services: {{n/s: {{80: 81}}}}, {extra}"))
}

fn service(name: &str, vips: &str, extra: &str) -> String {
    format!(
        "services:\n- {{name: {name}, namespace: n, hostname: {name}, vips: [{vips}], ports: {{80: 8080}}, {extra}}}\n"
    )
}

fn policy(name: &str, scope: &str) -> String {
    format!(
        "policies:\n- {{name: {name}, namespace: n, scope: {scope}, action: Deny, dryRun: false, rules: []}}\n"
    )
}

fn at(snapshot: &Snapshot, ip: &str) -> Option<String> {
    let ip: IpAddr = ip.parse().expect("an address");
    snapshot.workload_by_address(&Network::default(), ip).map(|workload| workload.uid.to_string())
}

fn vip(snapshot: &Snapshot, ip: &str) -> Option<String> {
    let ip: IpAddr = ip.parse().expect("an address");
    snapshot.service_by_vip(&Network::default(), ip, "n").map(|service| service.name.clone())
}

fn endpoints(snapshot: &Snapshot) -> Vec<String> {
    let key = "n/s".parse().expect("a key");
    let mut uids: Vec<_> =
        snapshot.endpoints(&key).iter().map(|endpoint| endpoint.workload.uid.to_string()).collect();
    uids.sort_unstable();
    uids
}

#[test]
fn endpoints_and_services_come_and_go_in_any_order() {
    let mut applier = Applier::default();
    discovered(&mut applier, batch(&member("a", "10.0.0.1", "")));
    discovered(&mut applier, batch(&member("ill", "10.0.0.2", "status: Unhealthy")));
    assert_eq!(applier.snapshot().staged().count(), 1);
    let changes = discovered(&mut applier, batch(&service("s", "/10.1.0.1", "")));
    assert_eq!(changes.services.len(), 1);
    assert_eq!(applier.snapshot().staged().count(), 0);
    assert_eq!(endpoints(&applier.snapshot()), ["a", "ill"], "health is judged at use");
    let all = "loadBalancer: {mode: Standard, routingPreferences: [], healthPolicy: AllowAll}";
    discovered(&mut applier, batch(&service("s", "/10.1.0.1", all)));
    assert_eq!(endpoints(&applier.snapshot()), ["a", "ill"], "an update keeps the endpoints");
    discovered(&mut applier, without("a"));
    assert_eq!(endpoints(&applier.snapshot()), ["ill"]);
    discovered(&mut applier, batch(&workload("ill", "10.0.0.2", "services: {}")));
    assert!(endpoints(&applier.snapshot()).is_empty(), "a workload that left the service is no endpoint");
    discovered(&mut applier, without("n/s"));
    assert_eq!(applier.snapshot().services().count(), 0);
}

#[test]
fn a_workload_is_found_where_it_is_now() {
    let mut applier = Applier::default();
    discovered(&mut applier, batch(&workload("a", "10.0.0.1, 10.0.0.2", "services: {}")));
    let before = applier.snapshot();
    discovered(
        &mut applier,
        batch(&workload("a", "10.0.0.2, 10.0.0.3", "services: {}, hostname: db.example")),
    );
    let after = applier.snapshot();
    let places = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
    assert_eq!(places.map(|ip| at(&before, ip).is_some()), [true, true, false], "what was read stays");
    assert_eq!(places.map(|ip| at(&after, ip).is_some()), [false, true, true]);
    let key = "n/db.example".parse().expect("a key");
    assert!(after.workload_by_hostname(&key).is_some() && before.workload_by_hostname(&key).is_none());
    discovered(&mut applier, batch(&workload("a", "10.0.0.2", "services: {}, networkMode: HostNetwork")));
    assert_eq!(at(&applier.snapshot(), "10.0.0.2"), None);
}

#[test]
fn the_last_that_took_an_address_has_it_until_it_goes() {
    let mut applier = Applier::default();
    discovered(&mut applier, batch(&workload("old//Pod/a", "10.0.0.1", "services: {}")));
    discovered(&mut applier, batch(&workload("new//Pod/b", "10.0.0.1", "services: {}")));
    assert_eq!(at(&applier.snapshot(), "10.0.0.1").as_deref(), Some("new//Pod/b"));
    discovered(&mut applier, batch(&workload("old//Pod/a", "10.0.0.1", "services: {}, status: Unhealthy")));
    assert_eq!(at(&applier.snapshot(), "10.0.0.1").as_deref(), Some("new//Pod/b"), "an update takes nothing");
    discovered(&mut applier, without("new//Pod/b"));
    assert_eq!(at(&applier.snapshot(), "10.0.0.1").as_deref(), Some("old//Pod/a"));
}

#[test]
fn services_of_one_namespace_share_an_address() {
    let mut applier = Applier::default();
    for name in ["s", "t"] {
        discovered(&mut applier, batch(&service(name, "/10.1.0.1, /10.2.0.0/16", "")));
    }
    for _ in 0..3 {
        discovered(&mut applier, batch(&service("s", "/10.1.0.1, /10.2.0.0/16", "canonical: true")));
        discovered(&mut applier, batch(&service("s", "/10.1.0.1, /10.2.0.0/16", "")));
    }
    assert_eq!(vip(&applier.snapshot(), "10.1.0.1").as_deref(), Some("s"), "the first keeps its place");
    discovered(&mut applier, without("n/s"));
    assert_eq!(vip(&applier.snapshot(), "10.1.0.1").as_deref(), Some("t"), "the other is still there");
    assert_eq!(vip(&applier.snapshot(), "10.2.3.4").as_deref(), Some("t"));
    discovered(&mut applier, batch(&service("t", "/10.3.0.0/24", "")));
    assert_eq!(vip(&applier.snapshot(), "10.2.3.4"), None, "nothing of the old prefix is left");
    assert_eq!(vip(&applier.snapshot(), "10.3.0.9").as_deref(), Some("t"));
    let named = applier.snapshot().service_by_hostname("t", "elsewhere").map(|service| service.name.clone());
    assert_eq!(named.as_deref(), Some("t"));
}

#[test]
fn what_discovery_removes_the_static_configuration_still_says() {
    let mut applier = Applier::default();
    let text = member("a", "10.0.0.1", "") + &policy("p", "Global");
    applier.replace_static(&config(&text)).expect("new");
    assert!(applier.replace_static(&config(&text)).is_none(), "the same again is nothing new");
    assert!(applier.apply(Origin::Discovery, without("a")).is_none(), "it is not discovery's");
    discovered(&mut applier, batch(&workload("a", "10.0.0.2", "services: {}")));
    assert_eq!((at(&applier.snapshot(), "10.0.0.1"), endpoints(&applier.snapshot()).len()), (None, 0));
    discovered(&mut applier, without("a"));
    assert_eq!(at(&applier.snapshot(), "10.0.0.1").as_deref(), Some("a"));
    assert_eq!(endpoints(&applier.snapshot()), ["a"]);
    discovered(&mut applier, batch(&text));
    let removed = Batch { removed_policies: vec!["n/p".to_owned()], ..Batch::default() };
    applier.replace_static(&StaticConfig::default());
    assert_eq!(at(&applier.snapshot(), "10.0.0.1").as_deref(), Some("a"), "equal, but discovery says so too");
    assert_eq!(applier.snapshot().policies().count(), 1);
    discovered(&mut applier, removed);
    discovered(&mut applier, without("a"));
    assert_eq!((at(&applier.snapshot(), "10.0.0.1"), applier.snapshot().policies().count()), (None, 0));
}

#[test]
fn a_missing_policy_is_told_before_anybody_connects() {
    let mut applier = Applier::new(Some("here"));
    let named = "services: {}, authorizationPolicies: [n/p]";
    let far = discovered(&mut applier, batch(&workload("far", "10.0.0.1", &format!("{named}, node: there"))));
    assert_eq!(far.missing.count, 0, "another node's");
    let near =
        discovered(&mut applier, batch(&workload("near", "10.0.0.2", &format!("{named}, node: here"))));
    let missing = MissingPolicy { workload: "near".into(), policy: "n/p".into() };
    assert_eq!(near.missing, Missing { count: 1, new: vec![missing.clone()] });
    let other = discovered(&mut applier, batch(&policy("q", "Global")));
    assert_eq!(other.missing, Missing { count: 1, new: Vec::new() }, "told once");
    assert_eq!(discovered(&mut applier, batch(&policy("p", "WorkloadSelector"))).missing.count, 0);
    let removed = Batch { removed_policies: vec!["n/p".to_owned()], ..Batch::default() };
    assert_eq!(discovered(&mut applier, removed).missing.new, [missing]);
    assert_eq!(discovered(&mut applier, without("near")).missing.count, 0);
}

#[test]
fn policies_move_between_scopes() {
    let mut applier = Applier::default();
    discovered(&mut applier, batch(&workload("a", "10.0.0.1", "services: {}, authorizationPolicies: [n/p]")));
    for scope in ["Global", "Namespace", "WorkloadSelector", "Namespace", "Global"] {
        let before = applier.snapshot().policy_generation();
        discovered(&mut applier, batch(&policy("p", scope)));
        let snapshot = applier.snapshot();
        let workload = snapshot.workload(&"a".into()).expect("there");
        assert_eq!(snapshot.policies_for(workload).count(), 1, "{scope}: once, in whatever way it applies");
        assert!(snapshot.policy_generation() > before);
    }
}

#[test]
fn changes_name_what_differs() {
    let mut applier = Applier::new(Some("here"));
    let first = discovered(&mut applier, batch(&workload("a", "10.0.0.1", "services: {}, node: here")));
    assert!(matches!(first.workloads[0].on_node("here"), (None, Some(_))));
    assert!(applier.snapshot().local_workload("n", "a", "default", Some("here")).is_some());
    let moved = discovered(&mut applier, batch(&workload("a", "10.0.0.1", "services: {}, node: there")));
    assert!(matches!(moved.workloads[0].on_node("here"), (Some(_), None)));
    assert_eq!(moved.workloads[0].uid(), Some(&"a".into()));
    assert!(applier.snapshot().local_workload("n", "a", "default", None).is_none());
    assert!(
        applier
            .apply(Origin::Discovery, batch(&workload("a", "10.0.0.1", "services: {}, node: there")))
            .is_none()
    );
    assert!(applier.apply(Origin::Discovery, without("nobody/knows")).is_none());
}

/// One step of a history: who says what of which key; nothing (`None`) removes it.
type Step = (bool, u8, Option<(u8, u8)>);

fn step() -> impl Strategy<Value = Step> {
    (any::<bool>(), 0..9_u8, proptest::option::weighted(0.7, (0..4_u8, 0..4_u8)))
}

fn resource(key: u8, (place, kind): (u8, u8)) -> String {
    let name = ["a", "b", "c//Pod/"][usize::from(key % 3)];
    match key / 3 {
        0 => {
            let services = ["", "n/s0: {80: 81}", "n/s0: {80: 82}, n/s1: {}", "n/s1: {}"][usize::from(kind)];
            let more = ["", "protocol: HBONE", "status: Unhealthy", "hostname: h"][usize::from(place)];
            workload(
                name,
                &format!("10.0.0.{place}"),
                &format!("services: {{{services}}}, authorizationPolicies: [n/p{kind}], {more}"),
            )
        }
        1 => {
            let vips = ["/10.1.0.1", "/10.1.0.0/24, /10.2.0.0/16", "/10.1.0.1, /10.1.0.2", "/10.1.0.0/24"];
            let canonical = if place == 0 { "canonical: true" } else { "" };
            service(&format!("s{}", key % 3), vips[usize::from(kind)], canonical)
        }
        _ => policy(
            &format!("p{}", key % 3),
            ["Global", "Namespace", "WorkloadSelector"][usize::from(kind % 3)],
        ),
    }
}

fn removal(key: u8) -> Batch {
    match key / 3 {
        0 => without(["a", "b", "c//Pod/"][usize::from(key % 3)]),
        1 => without(&format!("n/s{}", key % 3)),
        _ => Batch { removed_policies: vec![format!("n/p{}", key % 3)], ..Batch::default() },
    }
}

/// Everything that can be asked, without what depends on the order of arrival.
fn answers(snapshot: &Snapshot) -> Vec<String> {
    let mut answers: Vec<String> = snapshot.workloads().map(|workload| format!("{workload:?}")).collect();
    answers.extend(snapshot.services().map(|service| format!("{service:?}")));
    answers.extend(snapshot.policies().map(|policy| format!("{policy:?}")));
    for workload in snapshot.workloads() {
        let policies: Vec<_> = snapshot.policies_for(workload).map(|policy| policy.key.to_string()).collect();
        let local = snapshot.local_workload("n", &workload.name, "default", None).is_some();
        answers.push(format!(
            "{} {policies:?} {:?} {local}",
            workload.uid,
            snapshot.missing_policy(workload)
        ));
    }
    for index in 0..3 {
        let key: NamespacedHostname = format!("n/s{index}").parse().expect("a key");
        let mut endpoints: Vec<_> =
            snapshot.endpoints(&key).iter().map(|e| format!("{} {:?}", e.workload.uid, e.ports)).collect();
        endpoints.sort_unstable();
        answers.push(format!("{key} {endpoints:?} {:?}", snapshot.service_by_hostname(&key.hostname, "n")));
    }
    let mut staged: Vec<_> = snapshot.staged().map(|(key, _)| key.to_string()).collect();
    staged.sort_unstable();
    answers.push(format!("{staged:?}"));
    for ip in ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3"] {
        let ip = ip.parse().expect("an address");
        let owner = snapshot.workload_by_address(&Network::default(), ip);
        answers.push(format!("{ip} {:?}", owner.map(|owner| (owner.uid.is_pod(), owner.protocol))));
    }
    for ip in ["10.1.0.1", "10.1.0.2", "10.1.0.7", "10.2.9.9", "10.3.0.0"] {
        let ip = ip.parse().expect("an address");
        let owner = snapshot.service_by_vip(&Network::default(), ip, "n");
        answers.push(format!("{ip} {:?}", owner.map(|owner| owner.canonical)));
    }
    let hostname = "n/h".parse().expect("a key");
    answers.push(format!("{}", snapshot.workload_by_hostname(&hostname).is_some()));
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_history_leads_where_its_survivors_lead(history in vec(step(), 1..60)) {
        let mut applier = Applier::default();
        let mut said: [HashMap<u8, (u8, u8)>; 2] = Default::default();
        for (discovery, key, what) in history {
            let origin = if discovery { Origin::Discovery } else { Origin::Static };
            let side = &mut said[usize::from(discovery)];
            match what {
                Some(what) => {
                    side.insert(key, what);
                    applier.apply(origin, batch(&resource(key, what)));
                }
                None => {
                    side.remove(&key);
                    applier.apply(origin, removal(key));
                }
            }
        }
        let [fixed, discovered] = said;
        let mut scratch = Applier::default();
        for (key, what) in fixed.into_iter().filter(|(key, _)| !discovered.contains_key(key)).chain(discovered.clone()) {
            scratch.apply(Origin::Static, batch(&resource(key, what)));
        }
        prop_assert_eq!(answers(&applier.snapshot()), answers(&scratch.snapshot()));
        prop_assert_eq!(applier.look_for_missing().count, scratch.look_for_missing().count);
    }
}
