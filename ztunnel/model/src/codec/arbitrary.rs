//! Any workload, service, policy, as a codec may give them: canonical addresses, truncated virtual prefixes, sorted
//! ports. What this makes must survive every codec unchanged.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::fields::canonical_prefix;
use crate::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, ServiceAccountMatch, StringMatch};
use crate::service::{GatewayAddress, GatewayDestination};
use crate::service::{
    HealthPolicy, IpFamilies, LoadBalancerMode, LoadBalancing, Scope, Vip, Visibility, WeightedWaypoint,
};
use crate::workload::{
    ApplicationProtocol, ApplicationTunnel, HealthStatus, Locality, NetworkMode, TunnelProtocol, WorkloadType,
};
use crate::{Identity, NamespacedHostname, Network, NetworkAddress, Service, ServicePort, Text, Workload};

fn word() -> impl Strategy<Value = String> {
    // Starts with a letter: "namespace/10.0.0.1" names an address where a gateway is written as text.
    "[a-z][a-z0-9.-]{0,10}"
}

/// Text that no name has, to find what a codec takes for syntax.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => word(), 1 => "\\PC{0,12}", 1 => select(vec!["", "~", "null", "true", "12", "1.5", " a: b", "'\"\\\n\t", "# x"]).prop_map(str::to_owned)]
}

fn network() -> impl Strategy<Value = Network> {
    prop_oneof![Just(String::new()), word()].prop_map(|name| Network::from(name.as_str()))
}

fn ip() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|ip| ip.to_canonical())
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 0..=128_u8).prop_map(|(ip, length)| {
        let length = if ip.is_ipv4() { length % 33 } else { length };
        canonical_prefix(IpNet::new(ip, length).expect("invariant: the length fits the family"))
    })
}

fn key() -> impl Strategy<Value = NamespacedHostname> {
    (word(), word()).prop_map(|(namespace, hostname)| NamespacedHostname { namespace, hostname })
}

fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    btree_map(any::<u16>(), any::<u16>(), 0..4).prop_map(|ports: BTreeMap<u16, u16>| {
        ports
            .into_iter()
            .map(|(service_port, target_port)| ServicePort { service_port, target_port })
            .collect()
    })
}

fn gateway() -> impl Strategy<Value = GatewayAddress> {
    let destination = prop_oneof![
        key().prop_map(GatewayDestination::Hostname),
        (network(), ip())
            .prop_map(|(network, ip)| GatewayDestination::Address(NetworkAddress::new(network, ip))),
    ];
    (destination, any::<u16>())
        .prop_map(|(destination, hbone_mtls_port)| GatewayAddress { destination, hbone_mtls_port })
}

fn application_tunnel() -> impl Strategy<Value = ApplicationTunnel> {
    let protocol = select(vec![ApplicationProtocol::None, ApplicationProtocol::Proxy]);
    (protocol, option::of(1..=u16::MAX)).prop_map(|(protocol, port)| ApplicationTunnel { protocol, port })
}

fn locality() -> impl Strategy<Value = Locality> {
    (text(), text(), text()).prop_map(|(region, zone, subzone)| Locality {
        region: region.into(),
        zone: zone.into(),
        subzone: subzone.into(),
    })
}

pub(super) fn workload() -> impl Strategy<Value = Workload> {
    let names = (word(), text(), word(), word(), word(), text(), network(), text());
    let places = (text(), text(), text(), word(), locality());
    let kinds = (
        select(vec![TunnelProtocol::Tcp, TunnelProtocol::Hbone]),
        select(vec![NetworkMode::Standard, NetworkMode::HostNetwork]),
        select(vec![WorkloadType::Deployment, WorkloadType::CronJob, WorkloadType::Pod, WorkloadType::Job]),
        select(vec![HealthStatus::Healthy, HealthStatus::Unhealthy]),
        any::<u32>(),
        any::<bool>(),
    );
    let references = (option::of(application_tunnel()), option::of(gateway()), option::of(gateway()));
    let policies = vec((word(), word()).prop_map(|(namespace, name)| format!("{namespace}/{name}")), 0..3);
    let lists = (vec(ip(), 0..3), policies, btree_map(key(), ports(), 0..3));
    (names, places, kinds, references, lists).prop_map(|(names, places, kinds, references, lists)| {
        let (uid, name, trust_domain, namespace, service_account, hostname, network, node) = names;
        let (workload_name, canonical_name, canonical_revision, cluster_id, locality) = places;
        let (protocol, network_mode, workload_type, status, capacity, native_tunnel) = kinds;
        let (application_tunnel, waypoint, network_gateway) = references;
        let (addresses, authorization_policies, services) = lists;
        Workload {
            uid: uid.as_str().into(),
            name: name.into(),
            identity: Identity::new(&trust_domain, &namespace, &service_account).expect("words are parts"),
            namespace: namespace.into(),
            addresses,
            hostname: hostname.into(),
            network,
            protocol,
            network_mode,
            node: node.into(),
            workload_type,
            workload_name: workload_name.into(),
            canonical_name: canonical_name.into(),
            canonical_revision: canonical_revision.into(),
            cluster_id: cluster_id.into(),
            locality: locality.into(),
            status,
            capacity,
            native_tunnel,
            application_tunnel,
            waypoint: waypoint.map(Arc::new),
            network_gateway: network_gateway.map(Arc::new),
            authorization_policies: authorization_policies.into_iter().map(Text::from).collect(),
            services: Arc::new(services.into_iter().map(|(key, ports)| (key, ports.into())).collect()),
        }
    })
}

fn load_balancing() -> impl Strategy<Value = LoadBalancing> {
    let scope =
        select(vec![Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node, Scope::Cluster, Scope::Network]);
    let mode = select(vec![
        LoadBalancerMode::Standard,
        LoadBalancerMode::Strict,
        LoadBalancerMode::Failover,
        LoadBalancerMode::Passthrough,
    ]);
    let health = select(vec![HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll]);
    (vec(scope, 0..4), mode, health).prop_map(|(routing_preferences, mode, health_policy)| LoadBalancing {
        routing_preferences,
        mode,
        health_policy,
    })
}

pub(super) fn service() -> impl Strategy<Value = Service> {
    let vip = (network(), prefix()).prop_map(|(network, prefix)| Vip { network, prefix: prefix.trunc() });
    let weighted =
        (gateway(), any::<u32>()).prop_map(|(destination, weight)| WeightedWaypoint { destination, weight });
    let families =
        select(vec![IpFamilies::Automatic, IpFamilies::Ipv4Only, IpFamilies::Ipv6Only, IpFamilies::Dual]);
    let visibility = select(vec![Visibility::Public, Visibility::Namespace]);
    let kinds = (option::of(load_balancing()), families, any::<bool>(), visibility);
    (
        text(),
        key(),
        vec(vip, 0..3),
        ports(),
        vec(text(), 0..3),
        option::of(gateway()),
        vec(weighted, 0..3),
        kinds,
    )
        .prop_map(|(name, key, vips, ports, subject_alt_names, waypoint, weighted_waypoints, kinds)| {
            let (load_balancing, ip_families, canonical, visibility) = kinds;
            Service {
                name,
                key,
                vips,
                ports,
                subject_alt_names,
                waypoint,
                weighted_waypoints,
                load_balancing,
                ip_families,
                canonical,
                visibility,
            }
        })
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        text().prop_map(StringMatch::Exact),
        text().prop_map(StringMatch::Prefix),
        text().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ]
}

fn matches() -> impl Strategy<Value = Match> {
    let strings = || vec(string_match(), 0..3);
    let account = || {
        (text(), text())
            .prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account })
    };
    let accounts = || vec(account(), 0..3);
    let prefixes = || vec(prefix(), 0..3);
    let ports = || vec(any::<u16>(), 0..3);
    let names = (strings(), strings(), strings(), strings(), accounts(), accounts());
    let addresses = (prefixes(), prefixes(), prefixes(), prefixes(), ports(), ports());
    (names, addresses).prop_map(|(names, addresses)| {
        let (namespaces, not_namespaces, principals, not_principals, service_accounts, not_service_accounts) =
            names;
        let (source_ips, not_source_ips, destination_ips, not_destination_ips, ports, not_ports) = addresses;
        Match {
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports: ports,
            not_destination_ports: not_ports,
        }
    })
}

pub(super) fn policy() -> impl Strategy<Value = Policy> {
    use crate::policy::Scope;
    let clause = vec(matches(), 0..3).prop_map(|matches| Clause { matches });
    let rule = vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let scope = select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let action = select(vec![Action::Allow, Action::Deny]);
    (word(), word(), scope, action, any::<bool>(), vec(rule, 0..3)).prop_map(
        |(namespace, name, scope, action, dry_run, rules)| Policy {
            key: PolicyKey { namespace, name },
            scope,
            action,
            dry_run,
            rules,
        },
    )
}
