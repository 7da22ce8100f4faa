use std::collections::BTreeMap;

use ztunnel_model::Service;
use ztunnel_model::service::{HealthPolicy, IpFamilies, LoadBalancerMode, Scope as Preference};
use ztunnel_model::workload::{HealthStatus, NetworkMode, TunnelProtocol, WorkloadType};

use super::*;
use crate::object::Object;
use crate::source::file::objects;

pub(super) fn sets(text: &str) -> Vec<Change> {
    objects(text).into_iter().map(Change::Set).collect()
}

/// What a subscriber of everything holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mirror(BTreeMap<(resource::Kind, Arc<str>), Resource>);

impl Mirror {
    pub(super) fn take(&mut self, changes: Changes) {
        for (kind, name) in changes.removed {
            assert!(self.0.remove(&(kind, name.clone())).is_some(), "{name} is removed, but was never set");
        }
        for resource in changes.set {
            let key = (resource.kind, resource.name.clone());
            let before = self.0.insert(key, resource.clone());
            assert_ne!(
                before.map(|before| before.body),
                Some(resource.body),
                "{} is the same",
                resource.name
            );
        }
    }

    pub(super) fn policies(&self) -> BTreeMap<String, Policy> {
        let policies = self.0.values().filter(|one| one.kind == resource::Kind::Authorization);
        let decoded = policies.map(|one| {
            let policy = codec::policy::decode(&one.body).expect("what is given out can be read");
            assert_eq!(policy.key.to_string(), *one.name);
            (one.name.to_string(), policy)
        });
        decoded.collect()
    }

    fn addresses(&self) -> impl Iterator<Item = (&Resource, Address)> {
        let addresses = self.0.values().filter(|one| one.kind == resource::Kind::Address);
        addresses.map(|one| (one, Address::decode(&one.body).expect("what is given out can be read")))
    }

    pub(super) fn workload(&self, name: &str) -> Workload {
        let found = self.addresses().find_map(|(resource, address)| match address {
            Address::Workload(one) if one.name == name => {
                assert_eq!(one.uid.as_str(), &*resource.name);
                let services = one.services.keys().map(ToString::to_string);
                assert!(services.eq(resource.belongs_to.iter().map(ToString::to_string)));
                Some(Arc::unwrap_or_clone(one))
            }
            _ => None,
        });
        found.unwrap_or_else(|| panic!("there is no workload {name}"))
    }

    fn names(&self) -> Vec<&str> {
        self.0.values().map(|one| &*one.name).collect()
    }

    fn service(&self, name: &str) -> Service {
        let found = self.addresses().find_map(|(resource, address)| match address {
            Address::Service(one) if one.name == name => {
                assert_eq!(one.key.to_string(), *resource.name);
                Some(Arc::unwrap_or_clone(one))
            }
            _ => None,
        });
        found.unwrap_or_else(|| panic!("there is no service {name}"))
    }
}

pub(super) fn built(text: &str) -> (Index, Mirror) {
    let (mut index, mut mirror) = (Index::new(Config::default()), Mirror::default());
    mirror.take(index.apply(sets(text)));
    (index, mirror)
}

pub(super) fn namespace(name: &str, mesh: bool) -> String {
    let label = if mesh { "{istio.io/dataplane-mode: ambient}" } else { "{}" };
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {label}}}\n---\n")
}

/// `meta` and `spec` are the insides of flow mappings.
pub(super) fn pod(namespace: &str, name: &str, ip: &str, meta: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, {meta}}}\nspec: {{{spec}}}\n\
         status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n---\n"
    )
}

fn service(name: &str, meta: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, {meta}}}\n\
         spec: {{clusterIP: 10.9.0.1, {spec}}}\n---\n"
    )
}

pub(super) fn policy(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {spec}\n---\n"
    )
}

#[test]
fn labels_decide_who_is_meshed() {
    for (mesh, labels, spec, expected) in [
        (true, "", "", true),
        (false, "", "", false),
        (true, "istio.io/dataplane-mode: none", "", false),
        (false, "istio.io/dataplane-mode: ambient", "", true),
        (true, "istio.io/dataplane-mode: other", "", true),
        (true, "", "hostNetwork: true", false),
        (false, "istio.io/dataplane-mode: ambient", "hostNetwork: true", false),
    ] {
        let meta = format!("labels: {{{labels}}}");
        let spec = format!("nodeName: n1, serviceAccountName: cart, {spec}");
        let (index, mirror) = built(&(namespace("shop", mesh) + &pod("shop", "a", "10.0.0.1", &meta, &spec)));
        let workload = mirror.workload("a");
        let protocol = if expected { TunnelProtocol::Hbone } else { TunnelProtocol::Tcp };
        assert_eq!(workload.protocol, protocol, "{mesh} {labels} {spec}");
        let host = spec.contains("hostNetwork");
        assert_eq!(workload.network_mode == NetworkMode::HostNetwork, host);
        let aliases = mirror.addresses().next().expect("one").0.aliases.len();
        assert_eq!(aliases, usize::from(!host), "who shares its node's address is not asked for by it");
        let residents = index.residents();
        let identity = Identity::new("cluster.local", "shop", "cart").expect("an identity");
        assert_eq!(residents.contains("n1", &identity), expected, "{mesh} {labels} {spec}");
        assert_eq!(residents.on("n1").count(), usize::from(expected));
    }
    let sidecar = pod("shop", "a", "10.0.0.1", "annotations: {sidecar.istio.io/status: x}", "");
    let (_, mirror) = built(&(namespace("shop", true) + &sidecar));
    assert_eq!(mirror.workload("a").protocol, TunnelProtocol::Tcp, "a pod with a sidecar is served already");
}

#[test]
fn tunnels_wait_for_the_word_of_the_node_and_certificates_do_not() {
    let config = Config { await_redirection: true, ..Config::default() };
    let (mut index, mut mirror) = (Index::new(config), Mirror::default());
    let identity = Identity::new("cluster.local", "shop", "cart").expect("an identity");
    for (mesh, annotation, expected) in [
        (true, "", TunnelProtocol::Tcp),
        (true, "ambient.istio.io/redirection: pending", TunnelProtocol::Tcp),
        (true, "ambient.istio.io/redirection: enabled", TunnelProtocol::Hbone),
        (false, "ambient.istio.io/redirection: enabled", TunnelProtocol::Tcp),
    ] {
        let annotations = format!("annotations: {{{annotation}}}");
        let pod = pod("shop", "a", "10.0.0.1", &annotations, "nodeName: n1, serviceAccountName: cart");
        mirror.take(index.apply(sets(&(namespace("shop", mesh) + &pod))));
        assert_eq!(mirror.workload("a").protocol, expected, "{mesh} {annotation}");
        assert_eq!(
            index.residents().contains("n1", &identity),
            mesh,
            "its proxy may have a certificate before"
        );
    }
    let pod = pod("shop", "a", "10.0.0.1", "", "nodeName: n1, serviceAccountName: cart");
    let strict = policy("PeerAuthentication", "shop", "p", "{mtls: {mode: STRICT}}");
    mirror.take(index.apply(sets(&(namespace("shop", true) + &pod + &strict))));
    assert_eq!(
        mirror.workload("a").protocol,
        TunnelProtocol::Hbone,
        "nothing is sent to a strict pod in plaintext"
    );
}

#[test]
fn a_label_of_a_namespace_moves_its_pods_only() {
    let pods =
        pod("shop", "a", "10.0.0.1", "", "nodeName: n1") + &pod("bank", "b", "10.0.0.2", "", "nodeName: n1");
    let (mut index, mut mirror) = built(&pods);
    let changes = index.apply(sets(&namespace("shop", true)));
    assert_eq!(changes.set.len(), 1, "{changes:?}");
    mirror.take(changes);
    assert_eq!(mirror.workload("a").protocol, TunnelProtocol::Hbone);
    assert!(index.apply(sets(&namespace("shop", true))).is_empty(), "nothing changed");
    assert_eq!(index.residents().on("n1").count(), 1);
    let gone = Key { kind: Kind::Namespace, namespace: "".into(), name: "shop".into() };
    mirror.take(index.apply([Change::Remove(gone)]));
    assert_eq!(mirror.workload("a").protocol, TunnelProtocol::Tcp);
    assert_eq!(index.residents(), Residents::default());
}

#[test]
fn pods_become_workloads() {
    let node = "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}\n---\n";
    let (_, mirror) = built(&(node.to_owned() + &pod("shop", "a", "10.0.0.1", "", "nodeName: n1")));
    let workload = mirror.workload("a");
    assert_eq!(workload.uid.as_str(), "Kubernetes//Pod/shop/a");
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!((workload.locality.region.as_str(), workload.locality.zone.as_str()), ("r", "z"));
    assert_eq!((workload.locality.subzone.as_str(), workload.node.as_str()), ("s", "n1"));
    assert_eq!((workload.workload_type, workload.workload_name.as_str()), (WorkloadType::Pod, "a"));
    assert_eq!((workload.canonical_name.as_str(), workload.canonical_revision.as_str()), ("a", "latest"));
    assert_eq!(workload.status, HealthStatus::Healthy);
    let (resource, _) = mirror.addresses().next().expect("one");
    assert_eq!((&*resource.aliases[0], resource.node.as_deref()), ("/10.0.0.1", Some("n1")));

    for (status, present, healthy) in [
        ("{phase: Pending, podIP: 10.0.0.1}", true, false),
        ("{phase: Succeeded, podIP: 10.0.0.1}", false, false),
        ("{phase: Failed, podIP: 10.0.0.1}", false, false),
        ("{phase: Running}", false, false),
        (
            "{podIP: '', podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], conditions: [{type: Ready, status: 'True'}]}",
            true,
            true,
        ),
        ("{podIP: 10.0.0.1, conditions: [{type: Ready, status: 'False'}]}", true, false),
    ] {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nstatus: {status}\n");
        let (_, mirror) = built(&text);
        assert_eq!(
            mirror.names(),
            if present { vec!["Kubernetes//Pod/default/a"] } else { vec![] },
            "{status}"
        );
        if present {
            assert_eq!(mirror.workload("a").status == HealthStatus::Healthy, healthy, "{status}");
        }
    }
}

#[test]
fn owners_and_labels_name_workloads() {
    let owner = |kind: &str, name: &str, labels: &str| {
        format!("labels: {{{labels}}}, ownerReferences: [{{kind: {kind}, name: {name}, controller: true}}]")
    };
    for (meta, kind, name, canonical, revision) in [
        (
            owner("ReplicaSet", "cart-5d", "pod-template-hash: 5d"),
            WorkloadType::Deployment,
            "cart",
            "cart",
            "latest",
        ),
        (owner("ReplicaSet", "cart-5d", ""), WorkloadType::Pod, "cart-5d", "cart-5d", "latest"),
        (owner("StatefulSet", "db", "app: database"), WorkloadType::Pod, "db", "database", "latest"),
        (owner("Job", "night-28000000", ""), WorkloadType::CronJob, "night", "night", "latest"),
        (owner("Job", "night-2800", ""), WorkloadType::Job, "night-2800", "night-2800", "latest"),
        (owner("Job", "once", "version: v3"), WorkloadType::Job, "once", "once", "v3"),
        ("labels: {service.istio.io/workload-name: w}".to_owned(), WorkloadType::Pod, "w", "w", "latest"),
        (
            "labels: {app: c, app.kubernetes.io/name: b, service.istio.io/canonical-name: a, version: z, \
             app.kubernetes.io/version: y, service.istio.io/canonical-revision: x}"
                .to_owned(),
            WorkloadType::Pod,
            "p",
            "a",
            "x",
        ),
    ] {
        let (_, mirror) = built(&pod("shop", "p", "10.0.0.1", &meta, ""));
        let workload = mirror.workload("p");
        let found = (workload.workload_type, workload.workload_name.as_str());
        assert_eq!(found, (kind, name), "{meta}");
        let found = (workload.canonical_name.as_str(), workload.canonical_revision.as_str());
        assert_eq!(found, (canonical, revision), "{meta}");
    }
}

#[test]
fn services_take_their_pods_and_ports() {
    let ports = "ports: [{name: web, port: 80, targetPort: http}, {port: 81, name: x}, {port: 53, protocol: UDP, name: u}]";
    let with = "containers: [{ports: [{name: http, containerPort: 8080}]}]";
    let text = service("cart", "", &format!("selector: {{app: cart}}, {ports}"))
        + &pod("shop", "a", "10.0.0.1", "labels: {app: cart}", with)
        + &pod("shop", "b", "10.0.0.2", "labels: {app: cart}", "")
        + &pod("shop", "c", "10.0.0.3", "labels: {app: other}", with)
        + &pod("bank", "d", "10.0.0.4", "labels: {app: cart}", with);
    let (mut index, mut mirror) = built(&text);
    let cart = mirror.service("cart");
    assert_eq!(cart.key.to_string(), "shop/cart.shop.svc.cluster.local");
    let pairs = |ports: &[ztunnel_model::ServicePort]| {
        ports.iter().map(|port| (port.service_port, port.target_port)).collect::<Vec<_>>()
    };
    assert_eq!(pairs(&cart.ports), [(80, 0), (81, 81)]);
    assert!(cart.canonical && cart.load_balancing.is_none());
    assert_eq!(pairs(&mirror.workload("a").services[&cart.key]), [(80, 8080), (81, 81)]);
    assert_eq!(pairs(&mirror.workload("b").services[&cart.key]), [(81, 81)], "it has no port of that name");
    assert!(mirror.workload("c").services.is_empty() && mirror.workload("d").services.is_empty());
    let narrower = service("cart", "", &format!("selector: {{app: other}}, {ports}"));
    let changes = index.apply(sets(&narrower));
    assert_eq!(changes.set.len(), 3, "the service is the same, the pods differ: {changes:?}");
    mirror.take(changes);
    assert!(mirror.workload("a").services.is_empty() && !mirror.workload("c").services.is_empty());
    mirror.take(index.apply([Change::Remove(Key::new(Kind::Service, &Name::new("shop", "cart")))]));
    assert!(mirror.workload("c").services.is_empty());
    assert_eq!(mirror.names().len(), 4);
}

#[test]
fn kinds_of_services() {
    let none: &[Preference] = &[];
    let zone: &[Preference] = &[Preference::Network, Preference::Region, Preference::Zone];
    for (spec, mode, preferences, health) in [
        ("trafficDistribution: PreferClose", LoadBalancerMode::Failover, zone, HealthPolicy::OnlyHealthy),
        ("trafficDistribution: PreferSameZone", LoadBalancerMode::Failover, zone, HealthPolicy::OnlyHealthy),
        (
            "trafficDistribution: PreferSameNode, publishNotReadyAddresses: true",
            LoadBalancerMode::Failover,
            &[
                Preference::Network,
                Preference::Region,
                Preference::Zone,
                Preference::Subzone,
                Preference::Node,
            ][..],
            HealthPolicy::AllowAll,
        ),
        (
            "trafficDistribution: PreferClose, internalTrafficPolicy: Local",
            LoadBalancerMode::Strict,
            &[Preference::Node][..],
            HealthPolicy::OnlyHealthy,
        ),
        ("publishNotReadyAddresses: true", LoadBalancerMode::Standard, none, HealthPolicy::AllowAll),
    ] {
        let (_, mirror) = built(&service("cart", "", spec));
        let balancing = mirror.service("cart").load_balancing.unwrap_or_else(|| panic!("{spec}: none"));
        assert_eq!((balancing.mode, balancing.routing_preferences.as_slice()), (mode, preferences), "{spec}");
        assert_eq!(balancing.health_policy, health, "{spec}");
    }
    for (spec, addresses, families) in [
        ("clusterIP: 10.9.0.2, ipFamilies: [IPv4]", 1, IpFamilies::Ipv4Only),
        ("clusterIP: None, ipFamilies: [IPv6]", 0, IpFamilies::Ipv6Only),
        (
            "clusterIP: 10.9.0.2, clusterIPs: [10.9.0.2, 'fd00::2'], ipFamilies: [IPv4, IPv6]",
            2,
            IpFamilies::Dual,
        ),
        ("clusterIP: None", 0, IpFamilies::Automatic),
    ] {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {{{spec}}}\n");
        let (_, mirror) = built(&text);
        let service = mirror.service("s");
        assert_eq!((service.vips.len(), service.ip_families), (addresses, families), "{spec}");
        assert_eq!(mirror.addresses().next().expect("one").0.aliases.len(), addresses);
    }
    let (_, mirror) = built(&service("s", "", "type: ExternalName, externalName: example.com"));
    assert!(mirror.names().is_empty());
}

#[test]
fn slices_of_services_without_selector_become_workloads() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}\naddressType: IPv4\nports: [{name: sql, port: 5432, protocol: TCP}, {name: other, port: 1}]\nendpoints:\n- addresses: [10.8.0.1]\n- addresses: [10.8.0.2]\n  conditions: {ready: false}\n- addresses: [10.0.0.1]\n  targetRef: {kind: Pod, name: a, namespace: shop}\n---\n";
    let db = service("db", "", "ports: [{name: sql, port: 5000, targetPort: 5432}]");
    let text = slice.to_owned() + &pod("shop", "a", "10.0.0.1", "", "");
    let (mut index, mut mirror) = built(&text);
    assert_eq!(mirror.names(), ["Kubernetes//Pod/shop/a"], "a slice without its service is nothing");
    mirror.take(index.apply(sets(&db)));
    let uid = |ip: &str| format!("Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/{ip}");
    assert!(mirror.names().contains(&uid("10.8.0.1").as_str()), "{:?}", mirror.names());
    let bare = mirror.workload("db-1");
    let key = mirror.service("db").key;
    let ports: Vec<_> =
        bare.services[&key].iter().map(|port| (port.service_port, port.target_port)).collect();
    assert_eq!(ports, [(5000, 5432)]);
    assert_eq!((bare.network_mode, bare.protocol), (NetworkMode::HostNetwork, TunnelProtocol::Tcp));
    assert_eq!(mirror.workload("a").services.len(), 1, "the pod behind an endpoint is one of the service");
    assert_eq!(mirror.names().len(), 4);
    let healthy = mirror.addresses().filter(|(_, address)| {
        matches!(address, Address::Workload(one) if one.name == "db-1" && one.status == HealthStatus::Healthy)
    });
    assert_eq!(healthy.count(), 1);
    mirror.take(index.apply(sets(&slice.replace("10.8.0.2", "10.8.0.3"))));
    assert!(mirror.names().contains(&uid("10.8.0.3").as_str()) && mirror.names().len() == 4);
    mirror.take(index.apply([Change::Remove(Key::new(Kind::EndpointSlice, &Name::new("shop", "db-1")))]));
    assert_eq!(mirror.names().len(), 2);
    assert!(mirror.workload("a").services.is_empty());
}

#[test]
fn any_order_of_changes_ends_the_same() {
    let mut text = namespace("shop", true) + &namespace("bank", false);
    for index in 0..12 {
        let (place, app) = (["shop", "bank", "istio-system"][index % 3], ["a", "b"][index % 2]);
        text += &pod(
            place,
            &format!("p{index}"),
            &format!("10.0.0.{index}"),
            &format!("labels: {{app: {app}, tier: t{}}}", index % 4),
            &format!("nodeName: n{}, serviceAccountName: s{}", index % 2, index % 3),
        );
    }
    text += &service("cart", "", "selector: {app: a}, ports: [{port: 80}]");
    text += &service("bare", "", "ports: [{port: 80, name: x}]");
    text +=
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z}}\n---\n";
    text += "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: bare}}\naddressType: IPv4\nports: [{name: x, port: 90}]\nendpoints: [{addresses: [10.8.0.1]}, {addresses: [10.0.0.0], targetRef: {kind: Pod, name: p0}}]\n---\n";
    for (kind, place, name, spec) in [
        ("AuthorizationPolicy", "shop", "all", "{rules: [{}]}"),
        ("AuthorizationPolicy", "shop", "some", "{selector: {matchLabels: {app: a}}}"),
        ("AuthorizationPolicy", "istio-system", "wide", "{selector: {matchLabels: {tier: t1}}, rules: [{}]}"),
        (
            "AuthorizationPolicy",
            "istio-system",
            "mesh",
            "{action: DENY, rules: [{to: [{operation: {ports: ['1']}}]}]}",
        ),
        ("PeerAuthentication", "istio-system", "mesh", "{mtls: {mode: STRICT}}"),
        ("PeerAuthentication", "bank", "one", "{mtls: {mode: PERMISSIVE}}"),
        ("PeerAuthentication", "bank", "two", "{mtls: {mode: STRICT}}"),
        (
            "PeerAuthentication",
            "shop",
            "w",
            "{selector: {matchLabels: {app: b}}, portLevelMtls: {80: {mode: DISABLE}}}",
        ),
        (
            "PeerAuthentication",
            "bank",
            "w",
            "{selector: {matchLabels: {app: b}}, portLevelMtls: {80: {mode: STRICT}}}",
        ),
    ] {
        text += &policy(kind, place, name, spec);
    }
    let all = objects(&text);
    let mut random = Random(7);
    for round in 0..300 {
        // The last ones stay out, so that what they shaped has to be undone.
        let mut steps: Vec<Change> = Vec::new();
        let (kept, dropped) = {
            let mut shuffled = all.clone();
            random.shuffle(&mut shuffled);
            let dropped = shuffled.split_off(all.len() - round % 8);
            (shuffled, dropped)
        };
        steps.extend(kept.iter().chain(&dropped).cloned().map(Change::Set));
        random.shuffle(&mut steps);
        let mut undo: Vec<Change> = dropped.iter().map(|one| Change::Remove(one.key())).collect();
        random.shuffle(&mut undo);
        steps.extend(undo);
        let (mut index, mut mirror) = (Index::new(Config::default()), Mirror::default());
        while !steps.is_empty() {
            let some = 1 + random.below(4).min(steps.len() - 1);
            mirror.take(index.apply(steps.drain(..some)));
        }
        let (mut fresh, mut expected) = (Index::new(Config::default()), Mirror::default());
        expected.take(fresh.apply(kept.iter().cloned().map(Change::Set)));
        assert_eq!(mirror, expected, "round {round}");
        assert_eq!(index.residents(), fresh.residents(), "round {round}");
        let sorted = |index: &Index| {
            let mut all: Vec<_> = index.statuses().collect();
            all.sort_by(|a, b| (a.kind, &a.namespace, &a.name).cmp(&(b.kind, &b.namespace, &b.name)));
            all
        };
        assert_eq!(sorted(&index), sorted(&fresh), "round {round}");
        mirror.take(index.apply(kept.iter().map(|one: &Object| Change::Remove(one.key()))));
        assert_eq!(mirror, Mirror::default(), "round {round}: nothing is left behind");
        assert_eq!((index.strict, index.pods.len(), index.attached.len()), (0, 0, 0));
    }
}

/// A small generator: the same numbers in every run.
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for index in (1..list.len()).rev() {
            list.swap(index, self.below(index + 1));
        }
    }
}
