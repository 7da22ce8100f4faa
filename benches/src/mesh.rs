//! A generated mesh: any number of workloads, as many services as they need, named as Kubernetes names them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ztunnel::state::{Applier, Batch, Origin, Snapshot};
use ztunnel_model::codec::Address;
use ztunnel_model::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch};
use ztunnel_model::service::{IpFamilies, Service, ServicePort, Vip, Visibility};
use ztunnel_model::workload::{HealthStatus, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadType};
use ztunnel_model::{Identity, NamespacedHostname, Network};

/// Pods on one node, and services in one namespace.
const PODS: usize = 100;
const SERVICES: usize = 20;

/// A workload of a mesh with so many services; `revision` makes it differ from itself.
pub fn workload(index: usize, services: usize, revision: usize) -> Workload {
    let service = index % services;
    let (namespace, app) = (namespace(service), format!("app-{service}"));
    let name = format!("{app}-7d9f8b6c5d-{index:07x}");
    Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}").as_str().into(),
        name: name.into(),
        identity: Identity::new("cluster.local", &namespace, &app).expect("names without '/'"),
        addresses: vec![pod_address(index)],
        hostname: Default::default(),
        network: "network-1".into(),
        protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::Standard,
        node: node(index).into(),
        workload_type: WorkloadType::Deployment,
        workload_name: app.as_str().into(),
        canonical_name: app.into(),
        canonical_revision: format!("v{revision}").into(),
        cluster_id: "Kubernetes".into(),
        locality: Arc::new(Locality {
            region: "eu-west-1".into(),
            zone: format!("eu-west-1{}", ["a", "b", "c"][index / PODS % 3]).into(),
            subzone: Default::default(),
        }),
        status: HealthStatus::Healthy,
        capacity: 1,
        native_tunnel: false,
        application_tunnel: None,
        waypoint: None,
        network_gateway: None,
        authorization_policies: [format!("{namespace}/only-mesh").into()].into(),
        services: Arc::new([(service_key(service), ports().into())].into()),
        namespace: namespace.into(),
    }
}

pub fn service(index: usize) -> Service {
    with_vip(index, Vip { network: "network-1".into(), prefix: vip(index).into() })
}

/// A service whose virtual address is a prefix.
pub fn prefix_service(index: usize) -> Service {
    let address = Ipv4Addr::from(0xac10_0000_u32.wrapping_add(index as u32 * 16));
    let prefix = format!("{address}/28").parse().expect("a prefix");
    with_vip(index, Vip { network: "network-1".into(), prefix })
}

/// A policy of a namespace; `index` says which namespace.
pub fn policy(index: usize, scope: Scope) -> Policy {
    let principal = StringMatch::Exact(format!("cluster.local/ns/ns-{index}/sa/nobody"));
    let matches = vec![Match { principals: vec![principal], ..Match::default() }];
    Policy {
        key: PolicyKey { namespace: namespace(index * SERVICES), name: "only-mesh".to_owned() },
        scope,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
    }
}

/// As a control plane sends it.
pub fn encoded(index: usize, services: usize, revision: usize) -> Vec<u8> {
    Address::Workload(Arc::new(workload(index, services, revision))).encode()
}

/// What the first node knows of a mesh: all its workloads and services, and a policy in each namespace.
pub fn snapshot(workloads: usize, services: usize) -> Snapshot {
    let mut applier = Applier::new(Some(&node(0)));
    let workloads = (0..workloads).map(|index| Address::Workload(Arc::new(workload(index, services, 1))));
    let addresses = (0..services).map(|index| Address::Service(Arc::new(service(index)))).chain(workloads);
    let policies = (0..services.div_ceil(SERVICES)).map(|index| policy(index, Scope::Namespace));
    let batch = Batch { addresses: addresses.collect(), policies: policies.collect(), ..Batch::default() };
    applier.apply(Origin::Discovery, batch);
    applier.snapshot()
}

/// The address of a service.
pub fn vip(index: usize) -> IpAddr {
    Ipv4Addr::from(0x0a60_0000 + index as u32).into()
}

pub fn pod_address(index: usize) -> IpAddr {
    Ipv4Addr::from(0x0b00_0000 + index as u32).into()
}

pub fn node(index: usize) -> String {
    format!("ip-10-{}.eu-west-1.compute.internal", index / PODS)
}

pub fn network() -> Network {
    "network-1".into()
}

fn namespace(service: usize) -> String {
    format!("team-{}", service / SERVICES)
}

fn service_key(index: usize) -> NamespacedHostname {
    let namespace = namespace(index);
    NamespacedHostname { hostname: format!("app-{index}.{namespace}.svc.cluster.local"), namespace }
}

fn ports() -> Vec<ServicePort> {
    vec![ServicePort { service_port: 80, target_port: 8080 }]
}

fn with_vip(index: usize, vip: Vip) -> Service {
    Service {
        name: format!("app-{index}"),
        key: service_key(index),
        vips: vec![vip],
        ports: ports(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: None,
        ip_families: IpFamilies::Automatic,
        canonical: true,
        visibility: Visibility::Public,
    }
}
